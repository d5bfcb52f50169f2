"""Compiled programs are kept in the user's folder, bounded, switched off and moved; a hit changes no bit."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from ground import programs
from tests.jobs import ROOT
from tests.thrift import some

PROGRAM = """
from ground import environment
environment.start("command")
import jax, jax.numpy as jnp
from jax._src import monitoring
hits = []
monitoring.register_event_listener(lambda name, **_: hits.append(name) if name.endswith("/cache_hits") else None)

@jax.jit
def descend(weights):
    def step(weights, _):
        loss, slope = jax.value_and_grad(lambda w: jnp.square(jnp.tanh(w @ w.T) - 0.5).mean())(weights)
        return weights - 0.3 * slope, loss
    return jax.lax.scan(step, weights, length=20)

weights, losses = descend(jax.random.normal(jax.random.key(0), (48, 32)))
print(len(hits) > 0, jax.config.jax_compilation_cache_dir, jax.device_get((weights, losses))[0].tobytes().hex())
"""


def command(home: Path, count: int = 1, **environment: str) -> list[tuple[bool, str, str]]:
    """For each of `count` commands at the same time: whether it found a program, where, and what it computed."""
    plain = {name: value for name, value in os.environ.items() if not name.startswith(("JAX_", "XDG_"))}
    plain |= {"HOME": str(home), "JAX_PLATFORMS": "cpu"} | environment
    arguments = [sys.executable, "-c", PROGRAM]
    started = [
        subprocess.Popen(arguments, cwd=ROOT, env=plain, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(count)
    ]
    told = []
    for process in started:
        out, errors = process.communicate()
        assert (process.returncode, errors) == (0, "")
        hit, folder, bits = out.split()
        told.append((hit == "True", folder, bits))
    return told


def kept(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


@pytest.mark.slow
def test_what_was_compiled_is_found_again_and_no_bit_depends_on_it(tmp_path):
    cold, warm = command(tmp_path)[0], command(tmp_path)[0]
    off = command(tmp_path / "other", JAX_ENABLE_COMPILATION_CACHE="false")[0]
    where = tmp_path / ("Library/Caches" if sys.platform == "darwin" else ".cache") / "emojimaze" / "programs"
    assert Path(cold[1]).parent == where
    assert (cold[0], warm[0], off[0]) == (False, True, False)
    assert cold[2] == warm[2] == off[2]
    assert not kept(tmp_path / "other")
    # What is damaged, as by a full disk or a kill, is compiled again, without a word.
    for path in kept(where):
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert command(tmp_path)[0] == (False, warm[1], warm[2])


@pytest.mark.slow
def test_it_is_moved_by_the_standard_of_the_system_and_by_jax(tmp_path):
    assert Path(command(tmp_path, XDG_CACHE_HOME=str(tmp_path / "caches"))[0][1]).is_relative_to(tmp_path / "caches")
    mine = str(tmp_path / "mine")
    assert command(tmp_path, JAX_COMPILATION_CACHE_DIR=mine)[0][1] == mine
    assert not (tmp_path / ".cache").exists()


@pytest.mark.slow
def test_several_processes_share_it(tmp_path):
    results = command(tmp_path, count=3)
    assert len({bits for *_, bits in results}) == 1
    assert command(tmp_path)[0] == (True, *results[0][1:])


@pytest.mark.parametrize("home", some(["read-only", "a file", "gone"]))
def test_a_home_that_cannot_be_written_is_no_obstacle(tmp_path, home):
    if home == "read-only" and os.access("/sys/kernel", os.F_OK):
        place = Path("/sys/kernel")  # nobody can write there, not even root
    elif home == "a file":
        place = tmp_path / "file"
        place.write_text("")
    else:
        place = Path("/proc/nowhere")
    assert command(place)[0][:2] == (False, "None")


def test_a_user_without_a_home_is_no_obstacle(monkeypatch):
    for name in ("HOME", "XDG_CACHE_HOME", "JAX_COMPILATION_CACHE_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)  # as where the system knows no such user
    before = jax.config.jax_compilation_cache_dir
    programs.keep()
    assert jax.config.jax_compilation_cache_dir == before


def test_what_was_used_longest_ago_is_removed_first(tmp_path):
    (tmp_path / "machine").mkdir()
    for age in range(6):
        path = tmp_path / "machine" / f"{age}-cache"
        path.write_bytes(bytes(100))
        os.utime(path, (1e9 - age, 1e9 - age))
    programs.bound(tmp_path, 350)
    assert {path.name for path in kept(tmp_path)} == {"0-cache", "1-cache", "2-cache"}
    programs.bound(tmp_path, 350)
    assert len(kept(tmp_path)) == 3
    programs.bound(tmp_path / "nowhere", 0)
    programs.bound(tmp_path, 0)
    assert not kept(tmp_path)


@pytest.mark.parametrize(
    ("given", "parent"),
    [
        ({}, None),
        ({"XDG_CACHE_HOME": ""}, None),
        ({"XDG_CACHE_HOME": "a/b"}, None),
        ({"XDG_CACHE_HOME": "/a/b"}, "/a/b"),
    ],
)
def test_the_folder_is_the_users(given, parent, monkeypatch):
    monkeypatch.setenv("HOME", "/home/somebody")
    for system, default in (("linux", "/home/somebody/.cache"), ("darwin", "/home/somebody/Library/Caches")):
        monkeypatch.setattr(sys, "platform", system)
        assert programs.home(given) == Path(parent or default, "emojimaze", "programs")
