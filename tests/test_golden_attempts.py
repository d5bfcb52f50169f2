"""Attempts and beliefs of a run that older code trained, against what that code's `pass-at-k` and `personas` wrote.

`tests/golden/attempts` holds the run (NSR in the labyrinth, four members of one base, no training states) and their
documents: 16 attempts at 8 mazes, 16 episodes of each persona.
"""

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import xarray as xr

from agents import runs
from analysis import estimates, measures
from analysis.measures.attempts import per_maze

GOLDEN = Path(__file__).parent / "golden" / "attempts"
STAGES = ("pretrain", "rl")


pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return runs.open(shutil.copytree(GOLDEN / "run", tmp_path_factory.mktemp("golden") / "run"))


def old(name):
    """A document, and its table by column."""
    table = pq.read_table(GOLDEN / f"{name}.parquet").to_pydict()
    return json.loads((GOLDEN / f"{name}.json").read_text()), {key: np.array(x) for key, x in table.items()}


@pytest.fixture(scope="module")
def attempts(run):
    return measures.attempts(run, samples=16, mazes=8)


@pytest.mark.parametrize("stage", STAGES)
def test_attempts_are_the_same_to_the_last_one(attempts, stage):
    document, table = old("pass_at_k")
    measured, mine = attempts.sel(checkpoint=stage), table["checkpoint"] == stage
    for name in ("successes", "distinct"):
        counts = table[name][mine].reshape(-1, 8)  # of the base one row for all
        np.testing.assert_array_equal(measured[name], np.broadcast_to(counts, (4, 8)))
    theirs = document["checkpoints"][stage]
    assert measured["k"].values.tolist() == document["ks"]
    for name, wanted in (("pass_at_k", theirs["members"]), ("ways", theirs["distinct"])):
        np.testing.assert_array_equal(measured[name], np.broadcast_to(wanted, measured[name].shape))
    np.testing.assert_allclose(measured["pass_at_k"].mean("member"), theirs["mean"], rtol=1e-13)


def test_what_compared_two_checkpoints_is_a_selection(attempts):
    document, _ = old("pass_at_k")
    before, after = (attempts.sel(checkpoint=stage) for stage in STAGES)
    gain = after["pass_at_k"] - before["pass_at_k"]
    np.testing.assert_allclose(gain.mean("member"), document["difference"]["mean"], atol=1e-13)
    for k, mean in zip(document["ks"], document["difference"]["mean"], strict=True):
        estimate = estimates.of(per_maze(after, k) - per_maze(before, k))
        assert (estimate.mean, estimate.members) == (pytest.approx(mean, abs=1e-13), 4)
        assert estimate.low < mean < estimate.high
    behind = xr.concat([per_maze(before, k) - per_maze(after, k) for k in range(1, 17)], "k").mean("maze")
    for values, first in (
        (behind.mean("member").values[:, None], [document["crossover"]]),
        (behind.transpose("k", "member").values, document["crossover_of_members"]),
    ):  # the first k at which the base is ahead
        ahead = values > 1e-12
        assert [int(x.argmax()) + 1 if x.any() else None for x in ahead.T] == first
    gap = float(before["pass_at_k"].sel(k=16).mean() - after["pass_at_k"].sel(k=1).mean())
    assert gap == pytest.approx(document["sampling_efficiency_gap"], abs=1e-13)
    solved = [dataset["successes"] > 0 for dataset in (before, after)]
    assert float((solved[0] & ~solved[1]).mean()) == document["solved"]["only_before"]
    assert float((~solved[0] & solved[1]).mean()) == document["solved"]["only_after"]
    often = per_maze(after, 4).where(solved[0])
    assert float(often.mean()) == pytest.approx(document["slices"]["sometimes"]["after"]["mean"][2], abs=1e-13)


@pytest.mark.long
def test_beliefs_are_the_same(run):
    document, table = old("personas")
    measured = measures.beliefs(run, episodes=16)
    for stage in STAGES:
        ours, mine, theirs = (
            measured.sel(checkpoint=stage),
            table["checkpoint"] == stage,
            document["checkpoints"][stage],
        )
        shape = ours["implied"].shape
        for name in ("implied", "ideal", "benchmark"):
            values = table[name][mine].reshape(-1, *shape[1:])
            np.testing.assert_allclose(ours[name], np.broadcast_to(values, shape), rtol=1e-4, atol=1e-6)
        nats = np.array(theirs["nats"]["mean"])
        for name, wanted in (
            ("nats", nats[:, 0]),
            ("prior_nats", nats[:, 1]),
            ("badge_kl", theirs["badge_kl"]["mean"]),
        ):
            np.testing.assert_allclose(ours[name].mean("member"), wanted, rtol=1e-5)
        np.testing.assert_array_equal(ours["episodes"].mean("member"), theirs["episodes"])
