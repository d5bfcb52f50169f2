"""A member that diverges is frozen, named and left out; the others never notice."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import train
from agents import runs
from agents.learning import learner, population
from agents.runs import stages
from tests import tiny

SICK = tiny.changed(population={"seeds": 1, "sweep": ("rl.learning_rate=1e-3,1e30,2e-3",)})
WELL = tiny.changed(population={"seeds": 1, "sweep": ("rl.learning_rate=1e-3,1e-4,2e-3",)})


def test_a_member_that_fails_is_frozen_where_it_was_and_the_others_go_on(key):
    """Steps to a target; member 1's loss is NaN from the third update on, member 2's parameters are infinite."""

    def update(state, config, params, shards):
        loss = jnp.where((config == 1) & (state.update >= 2), jnp.nan, 1.0 - state.parameters)
        step = jnp.where(config == 2, jnp.inf, loss)
        after = state.replace(parameters=state.parameters + step, update=state.update + 1)
        return after, {"loss": loss, "gradient_norm": jnp.float32(1)}

    mesh = population.mesh(3, 1, jax.devices()[:1])
    program = population.Chunk(lambda *_: update, mesh, updates=5)
    keys = jnp.broadcast_to(jax.random.key_data(key), (3, 2))
    counts = jnp.zeros(3, jnp.int32)
    start = learner.TrainState(jnp.array([0.0, 0.25, 0.5]), (), keys, counts, counts + 0)
    state, metrics = program(start, jnp.arange(3), jnp.arange(3))
    assert state.update.tolist() == [5, 2, 0]
    assert state.parameters.tolist() == [1, 1, 0.5]
    assert np.isfinite(metrics["loss"]).tolist() == [[True] * 5, [True, True, False, False, False], [False] * 5]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return train.train(SICK, tmp_path_factory.mktemp("runs") / "sick")


@pytest.mark.slow
def test_a_run_names_who_has_diverged_and_leaves_it_out(run):
    summary = run.summary()
    assert summary["diverged"] == {"member 1 (seed 0, rl.learning_rate=1e+30)": "update 1 of rl"}
    after = summary["return"]["after_rl"]
    assert after[1] is None
    assert [point["after_rl_interval"] for point in summary["return"]["points"]] == [None] * 3
    assert [point["after_rl"] for point in summary["return"]["points"]] == after
    assert run.diverged() == {1: "update 1 of rl"}
    for before, frozen in zip(*(jax.tree.leaves(run.parameters(x)) for x in ("pretrain", "rl")), strict=True):
        np.testing.assert_array_equal(before[1], frozen[1])
        assert np.isfinite(frozen).all()


@pytest.mark.slow
def test_the_other_members_are_those_of_a_run_where_nobody_fails(run, tmp_path):
    well = train.train(WELL, tmp_path / "well")
    for one, other in zip(*(jax.tree.leaves(x.parameters("rl")) for x in (run, well)), strict=True):
        np.testing.assert_array_equal(one[[0, 2]], other[[0, 2]])
    assert run.summary()["return"]["after_rl"][::2] == well.summary()["return"]["after_rl"][::2]


@pytest.mark.slow
def test_analyses_look_at_the_others(run):
    opened = runs.open(run.path)
    assert opened.kept.tolist() == [0, 2]
    assert [member.values["rl.learning_rate"] for member in opened.population] == [1e-3, 2e-3]
    kernel = opened.kept_parameters("rl")["value"]["kernel"]
    np.testing.assert_array_equal(kernel, run.parameters("rl")["value"]["kernel"][[0, 2]])
    assert len(opened.params.tile_map) == 2
    assert np.isfinite(opened.metric("rl", "loss")).all()


@pytest.mark.slow
def test_a_run_whose_members_all_diverge_stops_and_says_so(tmp_path):
    config = tiny.changed(rl={"learning_rate": 1e30})
    with pytest.raises(stages.Diverged, match="rl: the loss of every member is NaN or infinite after update 1"):
        train.train(config, tmp_path / "run")
    with pytest.raises(runs.RunError, match="every member has diverged"):
        _ = runs.open(tmp_path / "run").kept
