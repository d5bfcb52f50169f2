"""Help and wrong options are answered at once: nothing heavy is imported first, and no device is started."""

import os
import re
import subprocess
import sys

import pytest

import envs
import train
from agents.learning.algorithms import ALGORITHMS
from ground.terminal import ConfigError
from tests.jobs import ROOT

HEAVY = {"pandas", "seaborn", "scipy.stats", "matplotlib", "matplotlib.pyplot", "xarray", "orbax.checkpoint", "PIL"}
"""What drawing, saving and other people's environments need."""


def run(*arguments: str, **environment: str) -> tuple[int, str, str, set[str]]:
    """Exit status, output, lines of error and the modules that a command imported."""
    done = subprocess.run(
        [sys.executable, "-X", "importtime", *arguments], cwd=ROOT, env=os.environ | environment, check=False,
        capture_output=True, text=True,
    )  # fmt: skip
    lines = done.stderr.splitlines(keepends=True)
    imported = {line.rpartition("|")[2].strip() for line in lines if line.startswith("import time:")}
    said = "".join(line for line in lines if not line.startswith("import time:"))
    return done.returncode, done.stdout, said, imported


@pytest.mark.parametrize("command", [("train.py",), ("-m", "analysis"), ("-m", "studies")], ids=" ".join)
def test_help_is_printed_without_jax(command):
    status, out, said, imported = run(*command, "--help")
    assert (status, said) == (0, "")
    assert out.count("uv run") > 2
    assert "tyro" in imported  # so the modules are counted
    assert not imported & {"jax", "numpy", *HEAVY}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("train.py --lr 3", "did you mean --rl.learning-rate?"),
        pytest.param("train.py --seed much", "--seed: invalid literal", marks=pytest.mark.slow),
        pytest.param("train.py --world.name EmojiMaze-v9", "choose one of", marks=pytest.mark.slow),
        pytest.param("-m benchmarks everything", "choose one of", marks=pytest.mark.slow),
    ],
)
def test_a_wrong_option_is_told_before_jax_looks_for_devices(arguments, words):
    status, out, said, imported = run(*arguments.split(), JAX_PLATFORMS="nonsense")
    assert (status, out, said.count("\n")) == (2, "", 1)
    assert words in said
    assert not imported & (HEAVY - {"matplotlib", "PIL"} if "benchmarks" in arguments else HEAVY)


@pytest.mark.parametrize(
    "arguments", ["train.py --help-all", pytest.param("-m studies list --out /nowhere", marks=pytest.mark.slow)]
)
def test_other_lists_come_without_other_peoples_environments(arguments):
    status, out, said, imported = run(*arguments.split())
    assert (status, said) == (0, "")
    assert out
    assert not imported & {"seaborn", "matplotlib.pyplot", "scipy.stats", "orbax.checkpoint"}


@pytest.mark.parametrize(
    ("option", "meant"),
    [
        ("--lr", "--rl.learning-rate"),
        ("--seeds", "--population.seeds"),
        ("--env", "--world.name"),
        ("--steps", "--rl.updates"),
        ("--width", "--policy.width"),
        ("--warmup", "--pretrain.warmup or --sft.warmup"),
        ("--learning_rate", "--rl.learning-rate"),
        ("--populaton.seeds", "--population.seeds"),
        *train.SYNONYMS.items(),
    ],
)
def test_an_option_is_answered_with_the_one_that_is_meant(option, meant):
    with pytest.raises(ConfigError) as caught:
        train.parse([option, "3"])
    assert str(caught.value) == f"Unrecognized options: {option} 3; did you mean {meant}?"


def printed(capsys, *arguments: str) -> str:
    with pytest.raises(SystemExit) as caught:
        train.parse(arguments)
    assert caught.value.code == 0
    return capsys.readouterr().out


def test_the_short_help_says_what_there_is(capsys):
    short, every = printed(capsys, "--help"), printed(capsys, "--help-all")
    known = set(re.findall(r"--[a-z][\w.-]*", every))
    assert set(re.findall(r"--[a-z][\w.-]*", short)) <= known | {"--help-all"}
    assert {*train.SYNONYMS.values()} <= known
    assert len(known) > 10 * short.count("\n    --")
    assert 10 <= short.count("\n    --") <= 13
    assert {"EmojiMaze-v0", "EmojiLabyrinth-v0"} <= set(re.findall(r"\w+-v0", short)) <= set(envs.WORLDS)
    (algorithms,) = re.findall(r"--algorithm NAME +(.*), …", short)
    assert set(algorithms.split(", ")) < set(ALGORITHMS)


def test_help_beside_other_options_is_that_of_their_choice(capsys):
    every = printed(capsys, "--world.name", "EmojiLabyrinth-v0", "--help")
    assert "--world.loops" in every
    assert printed(capsys, "--world.name", "EmojiLabyrinth-v0", "--help-all") == every
