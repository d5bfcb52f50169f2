"""A package of which only parts are imported is the whole package to everybody who asks for more."""

import importlib
import subprocess
import sys

import pytest

from ground import late
from tests.jobs import ROOT


def ends_well(program: str) -> None:
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    "first",
    [
        pytest.param("import envs, gymnax", marks=pytest.mark.slow),
        pytest.param("import gymnax, envs", marks=pytest.mark.slow),
        pytest.param("import envs; from gymnax import make", marks=[pytest.mark.slow, pytest.mark.long]),
    ],
)
def test_gymnax_knows_our_worlds_whatever_is_imported_first(first):
    ends_well(f"""
{first}
import sys, gymnax, gymnax.environments
from gymnax.environments import environment, spaces
assert ("seaborn" in sys.modules) == ({first!r} != "import envs, gymnax")
world, params = gymnax.make("EmojiMaze-v0")
assert isinstance(world, envs.maze.EmojiMaze) and isinstance(world, gymnax.environments.environment.Environment)
assert isinstance(gymnax.make("CartPole-v1")[0], environment.Environment)
assert gymnax.environments.spaces is spaces and gymnax.environments.FourRooms
assert {{"CartPole-v1", *envs.WORLDS}} <= set(gymnax.registered_envs)
from gymnax import wrappers
wrappers.LogWrapper(world)
class Other(envs.maze.EmojiMaze):
    class Options(envs.maze.MazeOptions):
        name = "Other-v0"
envs.register(Other)
assert "Other-v0" in gymnax.registered_envs
""")


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package that notes what is imported of it, and can be broken."""
    name = "late_example"
    for folder, text in (
        ("", "import builtins\nvalue = 1\nfrom late_example import inner, other\n"),
        ("inner", "value = 2\n"),
    ):
        (tmp_path / name / folder).mkdir()
        (tmp_path / name / folder / "__init__.py").write_text(text)
    (tmp_path / name / "inner" / "part.py").write_text("value = 3\n")
    (tmp_path / name / "other.py").write_text("from late_example.inner import part, value\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path / name
    for module in [module for module in sys.modules if module.split(".")[0] == name]:
        del sys.modules[module]


def test_a_part_is_imported_alone_and_the_rest_when_it_is_used(package):
    told = []
    late_example = late.package(package.name, ("inner.part",), then=lambda: told.append(late_example.value))
    assert importlib.import_module(package.name) is late_example
    assert late_example.inner.part.value == 3
    assert not hasattr(late_example, "__wrapped__")
    assert late.pending(late_example)
    assert f"{package.name}.other" not in sys.modules
    assert not told
    assert late_example.other.part is sys.modules[f"{package.name}.inner.part"]
    assert (late_example.value, late_example.inner.value, told) == (1, 2, [1])
    assert not late.pending(late_example)
    with pytest.raises(AttributeError, match="nothing"):
        late_example.nothing  # noqa: B018


def test_what_is_there_already_is_taken(package):
    whole = importlib.import_module(package.name)
    assert late.package(package.name, ("inner.part",), then=pytest.fail) is whole
    assert not late.pending(whole)


def test_a_package_that_cannot_be_imported_says_so_every_time(package):
    (package / "other.py").write_text("import no_such_module\n")
    broken = late.package(package.name, ("inner.part",), then=pytest.fail)
    for _ in range(2):
        with pytest.raises(ModuleNotFoundError, match="no_such_module"):
            broken.other  # noqa: B018
    with pytest.raises(ModuleNotFoundError, match="no_such_package"):
        late.package("no_such_package", (), then=pytest.fail)
