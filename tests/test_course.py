"""The course of a run: its numbers are those of the single measurements, and it is drawn against what one likes."""

import dataclasses

import numpy as np
import pytest

from analysis import changes, measures
from analysis.figures import panels
from analysis.measures.attempts import per_maze, slices
from analysis.measures.course import AXES
from analysis.measures.course import panels as small_multiples
from envs import tokens
from envs.labyrinth import LabyrinthOptions
from ground.terminal import ConfigError
from tests import tiny, untrained

LABYRINTH = LabyrinthOptions(size=2, turns=3, view="bump", plan_length=2)
SMALL = {"episodes": 64, "samples": 4, "mazes": 6}
CHECKPOINTS = ["pretrain", "rl-000001", "rl"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    config = tiny.changed(world=LABYRINTH, population={"seeds": 2, "sweep": ("rl.learning_rate=1e-4,1e-2",)})
    return untrained.write(tmp_path_factory.mktemp("runs") / "run", config, scale=2.0)


@pytest.fixture(scope="module")
def course(run):
    return measures.course(run, **SMALL)


@pytest.mark.slow
def test_it_follows_the_last_stage_from_where_it_set_out(course):
    assert course["checkpoint"].values.tolist() == CHECKPOINTS
    assert course["updates"].values.tolist() == [[0.0] * 4, [1.0] * 4, [4.0] * 4]
    per_update = 16 * LABYRINTH.make()[0].episode_length()
    np.testing.assert_array_equal(course["tokens"], per_update * course["updates"])


@pytest.mark.slow
def test_its_numbers_are_those_of_the_single_measurements(run, course):
    names = CHECKPOINTS
    returns = measures.returns(run, names, episodes=64)
    divergence = measures.divergence(run, names, episodes=64)
    updates = measures.updates(run, names).sel(kind="all")
    spectra = measures.spectra(run, names).sel(kind="all")
    attempts = measures.attempts(run, names, samples=4, mazes=6)
    ledger = measures.ledger(run, names, mazes=6, episodes=8)
    expected = {
        **{name: returns[name] for name in ("success", "return")},
        **{name: divergence[name] for name in ("kl", "kl_by_channel", "entropy")},
        **{name: updates[name] for name in ("paper", "norm")},
        **{name: spectra[name] for name in ("rank_share_above_rounding", "stable_rank")},
        "sliced_pass_at_k": attempts["sliced_pass_at_k"].sel(k=4),
        "ways": attempts["ways"],
        "survival": ledger["survival"],
        "told_success": ledger["told_success"].sel(policy="model"),
    }
    assert set(course.data_vars) == {*expected, "updates", "tokens"}
    for name, array in expected.items():
        assert course[name].dims == array.dims
        np.testing.assert_array_equal(course[name], array)
        assert course[name].attrs["units"] == array.attrs["units"]
    assert course["sliced_pass_at_k"].attrs["long_name"] == "pass@4"
    assert course["channel"].values.tolist() == ["thought", "action"]
    np.testing.assert_allclose(course["kl_by_channel"].sum("channel"), course["kl"], rtol=1e-6)
    kept = [path.name.rpartition("-")[0] for path in (run.path / "analysis").iterdir()]
    assert kept.count("divergence-rl") == 1  # found again, not measured twice


@pytest.mark.slow
def test_nothing_has_moved_where_training_set_out(course):
    start = course.sel(checkpoint="pretrain")
    for name in ("kl", "survival", "paper", "norm", "rank_share_above_rounding"):
        np.testing.assert_array_equal(start[name], 0.0)
    assert start["stable_rank"].isnull().all()


def test_tokens_of_a_thought_count_as_used(run):
    used = measures.updates(run, "rl").attrs["used_tokens"].split()
    assert {tokens.VOCABULARY[token] for token in run.world.sayings} <= set(used)
    assert not {tokens.VOCABULARY[token] for token in tokens.BADGES[1:]} & set(used)  # nobody names itself here


@pytest.mark.slow
def test_pass_at_k_of_a_slice_is_that_of_its_mazes(run):
    attempts = measures.attempts(run, "rl", samples=4, mazes=6).isel(checkpoint=0)
    each = per_maze(attempts, 2)
    near, far = slices(attempts["distance"].values, attempts["random_successes"].values)
    for name, inside in (("near", near), ("far", far)):
        mine = attempts["sliced_pass_at_k"].sel(slice=name, k=2)
        expected = each.values[:, inside].mean(axis=1) if inside.any() else np.full(4, np.nan)
        np.testing.assert_allclose(mine, expected)


@pytest.mark.parametrize(
    ("distance", "chance", "near", "far"),
    [
        ([1, 2, 3, 4, 5, 9], [3, 0, 1, 0, 1, 0], [1, 1, 1, 0, 0, 0], [0, 0, 0, 1, 0, 1]),
        ([2, 2, 2, 2, 2, np.nan], [0, 1, 0, 1, 0, 0], [1, 1, 1, 1, 1, 0], [0] * 6),  # unreachable: in neither
        ([np.nan] * 6, [0, 1, 0, 2, 0, 0], [0, 1, 0, 1, 0, 0], [1, 0, 1, 0, 1, 1]),
    ],
)
def test_slices_by_hand(distance, chance, near, far):
    found = slices(np.array(distance, float), np.array(chance))
    assert found.astype(int).tolist() == [near, far]
    stacked = slices(np.array([distance] * 2, float), np.array([chance] * 2))
    np.testing.assert_array_equal(stacked, np.stack([found, found], axis=1))


def test_lengths_of_an_update_by_hand():
    before = {"a": np.array([[3.0, 0.0]], np.float32), "b": np.array([[[0.0, 4.0]]], np.float32)}
    after = {"a": np.array([[3.0, 1.0]], np.float32), "b": np.array([[[2.0, 6.0]]], np.float32)}
    found = changes.lengths(before, after, ["a", "b"])
    assert (found["norm"].tolist(), found["relative_norm"].tolist()) == ([3.0], [0.6])


@pytest.mark.slow
@pytest.mark.parametrize("against", AXES)
def test_small_multiples_against_updates_tokens_and_kl(run, course, against, tmp_path):
    measured = measures.course(run, against=against, **SMALL)
    shown = small_multiples({"run": measured})
    words = [panel.y for panel in shown]
    assert [panel.x for panel in shown] == [AXES[against][2]] * len(shown)
    low, high = "rl.learning_rate=0.0001", "rl.learning_rate=0.01"
    assert all(list(panel.curves) == [low, high] for panel in shown)
    expected = ["reach the goal (%)", "entropy of a decision (nats), thought", "pass@4 (% of mazes), near", "‖Δ‖"]
    assert all(any(word in panel for panel in words) for word in expected)
    assert ("KL from the base (nats per episode)" in words) == (against != "kl")
    entropy = shown[words.index("entropy of a decision (nats), action")].curves[high]
    _, factor, _ = AXES[against]
    x = factor * measured[AXES[against][0]].values[:, 2:]
    order = np.argsort(x.mean(axis=1))
    np.testing.assert_allclose(entropy.x, x[order])
    np.testing.assert_allclose(entropy.values, measured["entropy"].sel(channel="action").values[order, 2:])
    path = panels.save(panels.draw(shown, 5.5, title="t", meaning="", footer="", plain=False), tmp_path / "f", shown,
                       title="t", meaning="", footer="", plain=False)  # fmt: skip
    assert all(part.exists() for part in path)


@pytest.mark.slow
def test_other_stages_are_no_part_of_it(run):
    every = measures.course(run, ["init", *CHECKPOINTS], against="kl", **SMALL)
    assert np.isfinite(every["kl"]).all()
    lengths = {len(curve.x) for panel in small_multiples({"run": every}) for curve in panel.curves.values()}
    assert max(lengths) == len(CHECKPOINTS)


@pytest.mark.slow
def test_one_arm_has_a_line_for_each_place(run, course):
    alone = course.isel(member=slice(0, 2))
    shown = {panel.y: list(panel.curves) for panel in small_multiples({"run": alone})}
    assert shown["entropy of a decision (nats)"] == ["thought", "action"]
    assert shown["pass@4 (% of mazes)"] == ["near", "far"]


def test_what_a_part_does_otherwise_is_not_found(run):
    parts = [
        measures.returns,
        measures.divergence,
        measures.updates,
        measures.spectra,
        measures.attempts,
        measures.ledger,
    ]
    assert list(measures.course.made_of) == parts
    for place, part in enumerate(parts):
        other = [*parts[:place], dataclasses.replace(part, version=part.version + 1), *parts[place + 1 :]]
        assert dataclasses.replace(measures.course, made_of=other).code != measures.course.code


@pytest.mark.slow
def test_wrong_requests_and_what_came_before(run):
    with pytest.raises(ConfigError, match="--against=step: use update, tokens, kl"):
        measures.course(run, against="step", **SMALL)
    with pytest.raises(ConfigError, match="--episodes=70"):
        measures.course(run, "rl", episodes=70)
    before = measures.course(run, "init", **SMALL)
    assert before["updates"].isnull().all()
