"""A base taken from another run: the same to the bit as one trained here, and refused where it is another."""

import dataclasses
import io
import shutil

import jax
import numpy as np
import pytest

import train
from agents import runs
from agents.runs import bases
from agents.runs.config import ConfigError
from ground import terminal
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


def test_a_base_that_other_code_made_is_taken_and_said(base, tmp_path, monkeypatch):
    made, provenance = base.sessions()[0]["packages"]["jax"], train.sessions.provenance
    packages = provenance()["packages"] | {"jax": "0.0.1"}
    monkeypatch.setattr(train.sessions, "provenance", lambda: provenance() | {"packages": packages})
    console = terminal.console(file=io.StringIO(), width=400)
    train.train(tiny.CONFIG, tmp_path / "run", console, base.path, evaluate=False)
    assert f"{base.path}: not trained as now: jax {made} → 0.0.1\n" in console.file.getvalue()


def test_the_number_of_members_may_differ(base, tmp_path):
    config = tiny.changed(rl={"updates": 0}, population={"seeds": 3})
    run = train.train(config, tmp_path / "run", base=base.path)
    assert len(run.metrics("pretrain")) == 3 * BASE.pretrain.updates
    for leaf, theirs in zip(*(jax.tree.leaves(x.parameters("pretrain")) for x in (run, base)), strict=True):
        assert len(leaf) == 3
        np.testing.assert_array_equal(leaf[2], theirs[0])


def test_a_kill_before_the_base_is_whole_costs_only_time(base, alone, tmp_path):
    run = runs.create(tmp_path / "run", dataclasses.asdict(tiny.CONFIG), members=2)
    bases.adopt(run, base)
    shutil.rmtree(run.path / "checkpoints" / "pretrain")
    same(train.resume(run.path), alone)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pretrain": {"updates": 10}}, "--pretrain.updates=10: differs from --base .*that run has 8"),
        ({"world": {"gold_ratio": 0.5}}, r"--world.gold_ratio=0.5: differs from --base .*that run has 0.2"),
        ({"policy": {"width": 32}}, "--policy.width=32: differs"),
        ({"pretrain": {"shared": False}, "seed": 3}, "no base of seed 3; it has seed 0"),
    ],
)
def test_another_base_is_refused_before_anything_is_written(base, tmp_path, changes, message):
    with pytest.raises(ConfigError, match=message):
        train.train(tiny.changed(**changes), tmp_path / "run", base=base.path)
    assert not (tmp_path / "run").exists()


def test_a_base_is_known_by_its_seed_and_by_what_is_swept_of_pretraining():
    own = tiny.changed(pretrain={"shared": False})
    assert own.pretraining == tiny.CONFIG.pretraining == tiny.changed(seed=1, rl={"updates": 9}).pretraining
    assert [base.seed for base in own.bases] == [0, 1]
    assert tiny.CONFIG.bases == own.bases[:1]
    wide = tiny.changed(pretrain={"shared": False}, population={"sweep": ("rl.learning_rate=1e-3,1e-4",)})
    assert (wide.bases, wide.base_of.tolist()) == (own.bases, [0, 1, 0, 1])
    swept = tiny.changed(pretrain={"shared": False}, population={"sweep": ("pretrain.slip=0,0.1",)})
    assert [(base.seed, base.values["pretrain.slip"]) for base in swept.bases] == [(0, 0), (1, 0), (0, 0.1), (1, 0.1)]


def test_arms_of_other_sweeps_and_sizes_share_bases(tmp_path):
    """Three bases of their own, trained as one population; a sweep of two of them, and a run of the third alone."""
    own = {"pretrain": {"shared": False}, "rl": {"updates": 0}}
    trunk = train.train(tiny.changed(**own, population={"seeds": 3}), tmp_path / "bases")
    single = train.train(tiny.changed(**own, population={"seeds": 1}, seed=2), tmp_path / "single")
    wide = {"pretrain": {"shared": False}, "population": {"sweep": ("rl.learning_rate=1e-3,1e-4",)}}
    arm = train.train(tiny.changed(**wide, rl={"updates": 1}), tmp_path / "arm", base=trunk.path)
    for name in ("init", "pretrain"):
        trees = (jax.tree.leaves(run.parameters(name)) for run in (trunk, single, arm))
        for leaf, alone, swept in zip(*trees, strict=True):
            np.testing.assert_allclose(leaf[2], alone[0], rtol=1e-4, atol=1e-6)  # devices divide the work otherwise
            np.testing.assert_array_equal(swept, leaf[[0, 1, 0, 1]])
    losses = trunk.metrics("pretrain")["loss"].to_numpy().reshape(-1, 3)
    np.testing.assert_array_equal(arm.metrics("pretrain")["loss"].to_numpy().reshape(-1, 4), losses[:, [0, 1, 0, 1]])
    assert arm.summary()["return"]["before_rl"][:2] == arm.summary()["return"]["before_rl"][2:]
    assert len(set(arm.summary()["return"]["before_rl"])) == 2
    with pytest.raises(ConfigError, match="no base of seed 3; it has seed 0, seed 1, seed 2"):
        bases.open(trunk.path, tiny.changed(pretrain={"shared": False}, seed=3))


def test_a_base_that_is_not_finished_or_not_there_is_refused(tmp_path):
    made = runs.create(tmp_path / "young", dataclasses.asdict(BASE), members=2)
    with pytest.raises(ConfigError, match="has not finished pretraining; --resume it"):
        bases.open(made.path, tiny.CONFIG)
    with pytest.raises(runs.RunError, match="no such run directory"):
        bases.open(tmp_path / "nothing", tiny.CONFIG)
