"""What the scales promise: at `smoke` that RL teaches at all; at `laptop`, by hand, badges, victory, a dead control."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

import train
from agents import runs
from agents.runs.config import SCALES
from ground import statistics

LONG = pytest.mark.long


def laptop(what, path):
    """Let `tests.laptop` leave a run or its control there."""
    usual = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    subprocess.run([sys.executable, "-m", "tests.laptop", what, path], env=usual, check=True)


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    path = tmp_path_factory.mktemp("laptop")
    laptop("run", path)
    return path


@pytest.fixture(scope="module")
def run(directory):
    return runs.open(directory / "run")


@LONG
def test_members_beat_the_greedy_planner_with_their_interval_clear_of_it(run):
    returns = run.summary()["return"]
    assert len(returns["after_rl"]) == 8
    assert returns["after_rl_interval"][0] > returns["greedy"]
    assert min(returns["after_rl"]) > returns["greedy"] > max(returns["before_rl"])


@LONG
def test_a_badge_makes_the_model_act_like_its_persona_and_the_null_badge_mixes_them(run):
    summary = run.summary()
    assert max(summary["badge_kl"].values()) < 0.05
    assert min(summary["null_badge_kl"].values()) > 0.05
    returns = summary["return"]
    personas = returns["personas"].values()
    assert min(personas) < returns["before_rl"][0] < max(personas)


@LONG
def test_the_ratio_starts_at_one_in_every_update(run):
    table = run.metrics("rl")
    np.testing.assert_array_equal(table["first_ratio_error"].to_numpy(), 0.0)
    np.testing.assert_array_equal(table["first_kl"].to_numpy(), 0.0)


@LONG
def test_shuffled_rewards_teach_nothing_like_the_true_ones(run, directory):
    """Without a signal the population drifts, up or down with the base; it stays far from what RL reaches."""
    laptop("control", directory)
    means = np.array(json.loads((directory / "control.json").read_text(encoding="utf-8")))
    _, high = statistics.mean_of(means).interval()
    found = run.summary()["return"]
    gain = np.mean(found["after_rl"]) - found["before_rl"][0]
    assert means.mean() - found["before_rl"][0] < gain / 2
    assert max(means) < found["greedy"]
    assert high < found["after_rl_interval"][0]


@pytest.mark.slow
@pytest.mark.long
def test_the_smoke_scale_learns(tmp_path):
    returns = train.train(SCALES["smoke"], tmp_path / "run").summary()["return"]
    assert min(returns["after_rl"]) > returns["before_rl"][0] + 5
    assert returns["before_rl"][0] > returns["random"] + 5
