"""`docs/metrics.md` names every metric that a stage writes, and no other."""

import functools
import re
from pathlib import Path

import jax
import pytest

from agents.learning.algorithms import ALGORITHMS
from agents.runs import metrics, stages
from tests import tiny

PAGE = (Path(__file__).parent.parent / "docs" / "metrics.md").read_text(encoding="utf-8")

COLUMNS = (*metrics.KEYS, metrics.SEED)

ROWS = re.findall(r"^\| `(\w+)` \| ([\w, ]+) \| [^|]+ \| .+ \| (?:`--([\w.-]+)` )?\|$", PAGE, re.MULTILINE)
"""(metric, stages, option) of every row."""

OPTIONS = {
    "rl.reference": {"reference": "reward", "reference_weight": 0.1},
    "rl.staleness": {"staleness": 1},
    "rl.imitation": {"imitation": "sft"},
}
"""Options that metrics are written with, and what turns them on."""


@functools.cache
def written(stage: str, *options: str, algorithm: str = "ppo") -> frozenset[str]:
    """The metrics of a stage, from the shapes of its program alone: nothing is compiled or trained."""
    changes = {"group": 1, **ALGORITHMS[algorithm].switches}
    for option in options:
        changes |= OPTIONS[option]
    config = tiny.changed(rl=changes, sft={"updates": 2, "chunk": 1, "episodes": 16})
    made = stages.make_stage(config, stage)
    state = jax.eval_shape(made.initial, None)
    return frozenset(jax.eval_shape(made.program.program, state, *made.arguments)[1])


def named(stage: str, *options: str) -> frozenset[str]:
    return frozenset(name for name, of, option in ROWS if stage in of.split(", ") and option in ("", *options))


def test_rows_are_read_and_each_is_of_a_known_stage_and_option():
    assert len(ROWS) == len({name for name, _, _ in ROWS}) == PAGE.count("\n| `") - len(COLUMNS)
    assert {option for _, _, option in ROWS} == {"", *OPTIONS}
    assert {stage for _, of, _ in ROWS for stage in of.split(", ")} == {"pretrain", "sft", "rl"}


@pytest.mark.parametrize("key", COLUMNS)
def test_the_keys_of_a_row_are_named(key):
    assert f"\n| `{key}` |" in PAGE


@pytest.mark.parametrize("stage", ["pretrain", "sft", "rl"])
def test_what_a_stage_writes_is_named(stage):
    assert written(stage) == named(stage)


@pytest.mark.parametrize("option", OPTIONS)
def test_what_an_option_adds_is_named_with_it(option):
    assert written("rl", option) == named("rl", option)
    assert written("rl") < named("rl", option)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_an_algorithm_writes_what_its_switches_say(algorithm):
    reference = ["rl.reference"] if "reference" in ALGORITHMS[algorithm].switches else []
    assert written("rl", algorithm=algorithm) == named("rl", *reference)
