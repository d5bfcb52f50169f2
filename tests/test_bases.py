"""A base taken from another run: the same to the bit as one trained here, and refused where it is another."""

import dataclasses
import shutil

import jax
import numpy as np
import pytest

import train
from agents import runs
from agents.runs import bases
from agents.runs.config import ConfigError
from tests import tiny

pytestmark = pytest.mark.slow  # several whole runs

BASE = tiny.changed(rl={"updates": 0})


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return train.train(BASE, tmp_path_factory.mktemp("runs") / "base")


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    return train.train(tiny.CONFIG, tmp_path_factory.mktemp("runs") / "alone")


def same(one: runs.Run, other: runs.Run) -> None:
    assert one.checkpoints() == other.checkpoints()
    for name in one.checkpoints():
        jax.tree.map(np.testing.assert_array_equal, one.parameters(name), other.parameters(name))
    assert one.metrics().equals(other.metrics())
    assert one.summary()["return"] == other.summary()["return"]


def test_a_run_from_a_base_is_the_run_that_trains_it(base, alone, tmp_path, monkeypatch):
    trained = []
    run_stage = train.stages.run_stage
    monkeypatch.setattr(
        train.stages, "run_stage", lambda run, stage, *rest: trained.append(stage.name) or run_stage(run, stage, *rest)
    )
    same(train.train(tiny.CONFIG, tmp_path / "run", base=base.path), alone)
    assert trained == ["rl"]


def test_the_number_of_members_may_differ(base, tmp_path):
    config = tiny.changed(rl={"updates": 0}, population={"seeds": 3})
    run = train.train(config, tmp_path / "run", base=base.path)
    assert len(run.metrics("pretrain")) == 3 * BASE.pretrain.updates
    for leaf, theirs in zip(*(jax.tree.leaves(x.parameters("pretrain")) for x in (run, base)), strict=True):
        assert len(leaf) == 3
        np.testing.assert_array_equal(leaf[2], theirs[0])


def test_a_kill_before_the_base_is_whole_costs_only_time(base, alone, tmp_path):
    run = runs.create(tmp_path / "run", dataclasses.asdict(tiny.CONFIG), members=2)
    bases.adopt(run, tiny.CONFIG, base)
    shutil.rmtree(run.path / "checkpoints" / "pretrain")
    same(train.resume(run.path), alone)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pretrain": {"updates": 10}}, "--pretrain.updates=10: differs from --base .*that run has 8"),
        ({"world": {"gold_ratio": 0.5}}, r"--world.gold_ratio=0.5: differs from --base .*that run has 0.2"),
        ({"policy": {"width": 32}}, "--policy.width=32: differs"),
        ({"pretrain": {"shared": False}}, "--pretrain.shared=False: differs"),
    ],
)
def test_another_base_is_refused_before_anything_is_written(base, tmp_path, changes, message):
    with pytest.raises(ConfigError, match=message):
        train.train(tiny.changed(**changes), tmp_path / "run", base=base.path)
    assert not (tmp_path / "run").exists()


def test_members_with_bases_of_their_own_must_be_the_same_members():
    own = tiny.changed(pretrain={"shared": False})
    assert own.pretraining != tiny.changed(pretrain={"shared": False}, seed=1).pretraining
    assert own.pretraining == tiny.changed(pretrain={"shared": False}, population={"at_once": 2}).pretraining
    assert tiny.CONFIG.pretraining == tiny.changed(seed=1, rl={"updates": 9}).pretraining


def test_a_base_that_is_not_finished_or_not_there_is_refused(tmp_path):
    made = runs.create(tmp_path / "young", dataclasses.asdict(BASE), members=2)
    with pytest.raises(ConfigError, match="has not finished pretraining; --resume it"):
        bases.open(made.path, tiny.CONFIG)
    with pytest.raises(runs.RunError, match="no such run directory"):
        bases.open(tmp_path / "nothing", tiny.CONFIG)
