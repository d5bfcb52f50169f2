"""Populations: one program, members that equal runs of their own, any number of devices, one trace."""

import dataclasses

import jax
import numpy as np
import pytest

from agents.learning import population, rl
from agents.runs import config as configs
from agents.runs import stages
from agents.runs.config import Config
from tests import tiny

GRID = tiny.changed(population={"seeds": 4, "sweep": ("rl.learning_rate=3e-4,1e-2",)})


@pytest.fixture(scope="module")
def base():
    state, _ = tiny.train_stage(tiny.CONFIG, "pretrain")
    return state.parameters


def close(one, other, tolerance=2e-4):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=tolerance), one, other)


def test_members_are_the_grid_by_seeds():
    assert [(member.seed, member.values["rl.learning_rate"]) for member in GRID.members] == [
        (seed, rate) for rate in (3e-4, 1e-2) for seed in range(4)
    ]


def test_one_program_serves_populations_of_any_size():
    traced = []

    @jax.jit
    def fit(points, offset):
        traced.append(points["x"].shape)
        return {"mean": points["x"].mean(axis=1) + offset, "place": points["place"]}

    devices = len(jax.devices())
    for members in (devices, 2 * devices, 5 * devices):
        x, offset = np.random.default_rng(members).normal(size=(members, 3)).astype(np.float32), np.arange(members)
        points = {"x": jax.numpy.asarray(x), "place": offset}
        told = population.in_turn(fit, points, offset.astype(np.float32))
        np.testing.assert_allclose(told["mean"], x.mean(axis=1) + offset, rtol=1e-6)
        np.testing.assert_array_equal(told["place"], offset)
    assert traced == [(devices, 3)]
    population.in_turn(fit, {"x": x[:-1], "place": offset[:-1]}, offset[:-1].astype(np.float32))  # it is no multiple
    assert len(traced) == 2


@pytest.mark.slow
def test_each_of_eight_members_equals_its_own_run(base):
    shared = jax.tree.map(lambda x: np.broadcast_to(x, (8, *x.shape[1:])), base)
    together, metrics = tiny.train_stage(GRID, "rl", shared)
    assert metrics["return"].shape == (8, GRID.rl.updates)
    assert len({tuple(row) for row in metrics["return"].tolist()}) == 8
    for index, member in enumerate(GRID.members):
        config = tiny.changed(
            seed=member.seed,
            rl={"learning_rate": member.values["rl.learning_rate"]},
            population={"seeds": 1},
        )
        alone, own = tiny.train_stage(config, "rl", base)
        for mine, other in zip(jax.tree.leaves(together.parameters), jax.tree.leaves(alone.parameters), strict=True):
            np.testing.assert_allclose(mine[index], other[0], atol=2e-4)
        np.testing.assert_allclose(metrics["return"][index], own["return"][0], atol=1e-3)


@pytest.mark.slow
def test_the_members_at_once_change_no_bit(base):
    shared = jax.tree.map(lambda x: np.broadcast_to(x, (8, *x.shape[1:])), base)
    found = []
    for at_once in (1, 3):
        population = dataclasses.replace(GRID.population, at_once=at_once)
        config = dataclasses.replace(GRID, population=population)
        made = tiny.train_stage(config, "rl", shared, chunks=2, mesh=tiny.mesh(8, 8, 1), options=tiny.AS_USERS)
        found.append(made)
    for other in found[1:]:
        jax.tree.map(np.testing.assert_array_equal, found[0], other)


@pytest.mark.parametrize(
    ("stage", "members", "devices"),
    [
        ("pretrain", 1, 4),
        pytest.param("rl", 1, 2, marks=pytest.mark.slow),
        pytest.param("rl", 2, 4, marks=pytest.mark.slow),
    ],
)
def test_any_number_of_devices_trains_the_same_policy(base, stage, members, devices):
    config = tiny.changed(population={"seeds": members}, pretrain={"shared": False})
    start = jax.tree.map(lambda x: np.broadcast_to(x, (members, *x.shape[1:])), base)
    one, metrics = tiny.train_stage(config, stage, start, mesh=tiny.mesh(members, 8, 1))
    mesh = tiny.mesh(members, 8, devices)
    assert mesh.size == devices
    many, others = tiny.train_stage(config, stage, start, mesh=mesh)
    close(one.parameters, many.parameters)
    np.testing.assert_allclose(metrics["return"], others["return"], rtol=1e-4)
    np.testing.assert_allclose(metrics["loss"], others["loss"], atol=1e-4)


def test_new_seeds_and_hyperparameters_never_recompile(base):
    config = tiny.changed(population={"seeds": 4})
    traces = 0
    policy, (world, _) = config.make_policy(), config.world.make()
    inner = rl.update_function(policy, world, 4, config.sft)

    def counted(*arguments):
        nonlocal traces
        traces += 1
        return inner(*arguments)

    program = population.Chunk(lambda *_: counted, population.mesh(4, 8), 1)
    start = jax.tree.map(lambda x: np.broadcast_to(x, (4, *x.shape[1:])), base)
    counts = []
    for seed in (0, 10, 20):
        changes: Config = dataclasses.replace(config, seed=seed)
        values = {"rl.learning_rate": 1e-3 * (seed + 1), "rl.clip_low": 0.1 + seed / 100, "rl.discount": 0.9}
        rates = configs.changed(changes, values).per_member("rl")
        state = program.place(stages.make_stage(changes, "rl").initial(start))
        for _ in range(3):
            state, _ = program(state, *program.place((rates, changes.world_params())))
        counts.append(traces)
    assert len(set(counts)) == 1


def test_a_chunk_moves_nothing_between_host_and_device(base):
    stage = stages.make_stage(tiny.CONFIG, "rl")
    arguments = stage.program.place(stage.arguments)
    start = jax.tree.map(lambda x: np.broadcast_to(x, (2, *x.shape[1:])), base)
    state = stage.program.place(stage.initial(start))
    state, _ = stage.program(state, *arguments)
    with jax.transfer_guard("disallow"):
        state, metrics = stage.program(state, *arguments)
        jax.block_until_ready(metrics)


def test_the_state_given_to_a_chunk_is_donated(base):
    stage = stages.make_stage(tiny.CONFIG, "rl")
    start = jax.tree.map(lambda x: np.broadcast_to(x, (2, *x.shape[1:])), base)
    state = stage.program.place(stage.initial(start))
    stage.program(state, *stage.program.place(stage.arguments))
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state.parameters))


def test_worlds_can_differ_between_members(base):
    config = tiny.changed(population={"seeds": 1, "sweep": ("world.mold_reward=-10,-1000",)})
    start = jax.tree.map(lambda x: np.broadcast_to(x, (2, *x.shape[1:])), base)
    _, metrics = tiny.train_stage(config, "rl", start, chunks=1)
    assert metrics["return"][1, 0] < 5 * metrics["return"][0, 0] < 0
