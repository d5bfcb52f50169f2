"""The environment is input too: where it is wrong, a command ends in one line and status 2."""

import os
import subprocess
import sys
from importlib import metadata

import jax
import pytest

from ground import environment
from ground.terminal import ConfigError
from tests.jobs import ROOT
from tests.thrift import some

SAY = (
    "from ground import environment\nenvironment.start('command', together=True)\n"
    "import jax\nprint(jax.devices(), '\\u00d7')"
)


def run(program: str = SAY, **environment: str) -> tuple[int, str, list[str]]:
    """Exit status, output and lines of error of a command in an environment."""
    plain = {name: value for name, value in os.environ.items() if name not in ("XLA_FLAGS", "JAX_PLATFORMS")}
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, env=plain | environment, capture_output=True, check=False
    )
    return done.returncode, done.stdout.decode(), done.stderr.decode().splitlines()


@pytest.mark.parametrize(
    ("environment", "words"),
    some(
        [
            ({"JAX_PLATFORMS": "cuda"}, ("JAX_PLATFORMS=cuda", "--extra cuda")),
            ({"JAX_PLATFORMS": "foo"}, ("JAX_PLATFORMS=foo", "unset JAX_PLATFORMS")),
            ({"JAX_NUM_CPU_DEVICES": "0"}, ("JAX_NUM_CPU_DEVICES=0", "from 1")),
            ({"JAX_NUM_CPU_DEVICES": "-2"}, ("JAX_NUM_CPU_DEVICES=-2", "from 1")),
            ({"JAX_NUM_CPU_DEVICES": "abc"}, ("abc", "jax_num_cpu_devices", "correct")),
            ({"JAX_ENABLE_X64": "perhaps"}, ("perhaps", "JAX_ENABLE_X64", "correct")),
            ({"JAX_DEFAULT_PRNG_IMPL": "dice"}, ("dice", "correct")),
            (
                {"JAX_NUM_CPU_DEVICES": "2", "XLA_FLAGS": "--xla_force_host_platform_device_count=3"},
                ("JAX_NUM_CPU_DEVICES=2 and XLA_FLAGS=--xla_force_host_platform_device_count=3", "unset one"),
            ),
            (
                {"XLA_FLAGS": "--xla_force_host_platform_device_count=0"},
                ("XLA_FLAGS=--xla_force_host_platform_device_count=0", "from 1"),
            ),
            ({"XLA_FLAGS": "--xla_unheard_of=1"}, ("XLA_FLAGS=--xla_unheard_of=1", "correct")),
            ({"JAX_PROCESS_ID": "0"}, ("JAX_PROCESS_ID without", "set all three, or none")),
        ],
        3,
    ),
    ids=lambda value: " ".join(map("=".join, value.items())) if isinstance(value, dict) else "",
)
def test_a_wrong_variable_is_one_line(environment, words):
    status, out, errors = run(**environment)
    assert (status, out, len(errors)) == (2, "", 1), errors
    assert errors[0].startswith("command: ")
    assert [word for word in words if word not in errors[0]] == []


def test_where_python_has_no_fcntl_it_says_what_would_do():
    status, out, errors = run("import sys\nsys.modules['fcntl'] = None\n" + SAY)
    assert (status, out, len(errors)) == (2, "", 1), errors
    assert "Linux or macOS" in errors[0]


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (MemoryError(), "out of memory (MemoryError); use fewer"),
        (
            jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory\nallocating 9 bytes"),
            "allocating 9 bytes); use",
        ),
    ],
)
def test_a_lack_of_memory_is_one_line(error, words):
    with pytest.raises(ConfigError) as caught, environment.enough_memory():
        raise error
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
    with pytest.raises(jax.errors.JaxRuntimeError, match="INTERNAL"), environment.enough_memory():
        raise jax.errors.JaxRuntimeError("INTERNAL: a bug")


@pytest.mark.parametrize(
    ("environment", "devices"),
    [
        pytest.param({"JAX_NUM_CPU_DEVICES": "3"}, 3, marks=pytest.mark.slow),
        ({"XLA_FLAGS": "--xla_force_host_platform_device_count=3"}, 3),
        pytest.param({"MPLBACKEND": "nonsense"}, len(os.sched_getaffinity(0)), marks=pytest.mark.slow),
        pytest.param({"PYTHONIOENCODING": "ascii"}, len(os.sched_getaffinity(0)), marks=pytest.mark.slow),
        pytest.param(
            {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
            len(os.sched_getaffinity(0)),
            marks=pytest.mark.slow,
        ),
    ],
    ids=str,
)
def test_what_can_be_used_is_used(environment, devices):
    program = SAY.replace("import jax", "import matplotlib.pyplot, jax")
    status, out, errors = run(program, JAX_PLATFORMS="cpu", **environment)
    assert (status, errors) == (0, [])
    assert out.count("CpuDevice") == devices
    assert ("×" if "UTF8" not in str(environment) and "ascii" not in str(environment) else "?") in out


def test_programs_are_compiled_quickly_unless_told_otherwise():
    program = "from ground import environment\nenvironment.start('command')\nimport os\n"
    status, out, errors = run(program + "print(os.environ['XLA_FLAGS'])", JAX_PLATFORMS="cpu")
    assert (status, out.strip(), errors) == (0, f"--{environment.LEVEL}=2", [])


@pytest.mark.parametrize(
    ("platforms", "flags", "quick"),
    [
        ("cpu", "--xla_other=1", f"--xla_other=1 --{environment.LEVEL}=2"),
        ("cpu", f"--{environment.LEVEL}=3", f"--{environment.LEVEL}=3"),
        ("cuda,cpu", "", f"--{environment.TRITON}=false"),
        ("gpu", "--xla_other=1", f"--xla_other=1 --{environment.TRITON}=false"),
        ("cuda", f"--{environment.TRITON}=true", f"--{environment.TRITON}=true"),
        ("tpu", "--xla_other=1", "--xla_other=1"),
    ],
)
def test_each_device_by_its_own_flag_and_flags_that_are_there_stay(monkeypatch, platforms, flags, quick):
    monkeypatch.setenv("JAX_PLATFORMS", platforms)
    assert environment._quick(flags) == quick


@pytest.mark.parametrize(("plugin", "name"), [("xla_cuda13", environment.TRITON), (None, environment.LEVEL)])
def test_what_is_installed_decides_where_nobody_has(monkeypatch, plugin, name):
    plugins = [metadata.EntryPoint(plugin, "x", "jax_plugins")] if plugin else []
    monkeypatch.delenv("JAX_PLATFORMS", raising=False)
    monkeypatch.setattr(environment.importlib.metadata, "entry_points", lambda group: plugins)
    monkeypatch.setattr(environment.importlib.util, "find_spec", lambda name: None)
    assert environment._quick("").startswith(f"--{name}=")
