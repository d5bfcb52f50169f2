"""What the `laptop` scale promises: badges that work, policies that beat the planner, a dead control."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import train
from agents import evaluation, learner, statistics
from agents.config import SCALES
from tests import tiny

CONFIG = SCALES["laptop"]
pytestmark = [pytest.mark.slow]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return train.train(CONFIG, tmp_path_factory.mktemp("runs") / "laptop")


def test_members_beat_the_greedy_planner_with_their_interval_clear_of_it(run):
    returns = run.summary()["return"]
    assert len(returns["after_rl"]) == 8
    assert returns["after_rl_interval"][0] > returns["greedy"]
    assert min(returns["after_rl"]) > returns["greedy"] > max(returns["before_rl"])


def test_a_badge_makes_the_model_act_like_its_persona_and_the_null_badge_mixes_them(run):
    summary = run.summary()
    assert max(summary["badge_kl"].values()) < 0.05
    assert min(summary["null_badge_kl"].values()) > 0.05
    returns = summary["return"]
    personas = returns["personas"].values()
    assert min(personas) < returns["before_rl"][0] < max(personas)


def test_the_ratio_starts_at_one_in_every_update(run):
    table = run.metrics("rl")
    np.testing.assert_array_equal(table["first_ratio_error"].to_numpy(), 0.0)
    np.testing.assert_array_equal(table["first_kl"].to_numpy(), 0.0)


def test_shuffled_rewards_teach_nothing_like_the_true_ones(run):
    """Without a signal the population drifts, up or down with the base; it stays far from what RL reaches."""
    control = dataclasses.replace(CONFIG, rl=dataclasses.replace(CONFIG.rl, shuffle_rewards=True))
    state, _ = tiny.train_stage(control, "rl", run.parameters("pretrain"))
    world, _ = control.world.make()
    mesh = learner.population_mesh(8, 4096)
    parameters = jax.tree.map(jnp.asarray, state.parameters)
    returns = evaluation.policy_returns(control.make_policy(), parameters, world, control.world_params(), mesh, 4096)
    means = np.asarray(returns).mean(axis=1)
    _, high = statistics.bootstrap_interval(means, statistic=np.mean)
    found = run.summary()["return"]
    gain = np.mean(found["after_rl"]) - found["before_rl"][0]
    assert means.mean() - found["before_rl"][0] < gain / 2
    assert max(means) < found["greedy"]
    assert high < found["after_rl_interval"][0]
