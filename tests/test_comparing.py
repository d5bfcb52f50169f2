"""Runs beside each other: differences by hand, jobs of a sweep as one population, the command."""

import dataclasses
import json

import numpy as np
import pytest
import xarray as xr
from scipy import stats

from agents import runs
from agents.runs import config as configs
from analysis import __main__ as command
from analysis import comparing, estimates, measure, measures, transitions
from ground.files import RunError
from ground.terminal import ConfigError
from tests import tiny, untrained


def course(values, x, bases, **coordinates):
    """A number float[C, M] of members of some bases, and how far each was, float[C, M] or float[C]."""
    values, x = np.asarray(values, float), np.asarray(x, float)
    members = values.shape[1]
    x = x if x.ndim == 2 else np.repeat(x[:, None], members, axis=1)
    dims = ("checkpoint", "member")
    about = {"long_name": "kl", "units": "", "table": 0}
    return xr.Dataset(
        {
            "return": (dims, values, {"long_name": "return", "units": "reward"}),
            "updates": (dims, x, about), "tokens": (dims, 1e6 * x, about), "kl": (dims, x, about),
        },
        {
            "checkpoint": [f"rl-{place:06d}" for place in range(len(values))],
            "member": np.arange(members), "base": ("member", np.asarray(bases)),
            "unit": (dims, np.tile(np.arange(members), (len(values), 1))),
            "point": ("member", coordinates.get("point", [""] * members)),
            "pretraining": ("member", coordinates.get("pretraining", [""] * members)),
        },
    )  # fmt: skip


FIRST = course([[0, 0, 0, 0, 0], [1.0, 2.0, 4.0, 3.0, 6.0]], [0, 4], [0, 1, 2, 3, 4])
SECOND = course([[0, 0, 0, 0, 0, 0], [3.0, 2.5, 4.5, 5.0, 7.5, 9.0]], [0, 4], [0, 1, 2, 3, 4, 9])


def test_differences_are_paired_over_bases():
    one, other = comparing.differences({"a": FIRST, "b": SECOND}, "update")
    assert (one.arm, one.end.mean, one.less.members, other.arm, other.pairs) == ("a", 3.2, 0, "b", 5)
    by_hand = np.array([2.0, 0.5, 0.5, 2.0, 1.5])
    assert other.less.mean == pytest.approx(by_hand.mean())
    assert other.less.error == pytest.approx(stats.sem(by_hand))
    low, high = stats.ttest_rel([3.0, 2.5, 4.5, 5.0, 7.5], [1.0, 2.0, 4.0, 3.0, 6.0]).confidence_interval()
    assert other.less.low <= low + 1e-9  # no narrower than Student's t, and wider where members are skewed
    assert other.less.high >= high - 1e-9
    assert other.end.mean == pytest.approx(np.mean([3.0, 2.5, 4.5, 5.0, 7.5, 9.0]))


@pytest.mark.parametrize("why", ["other seeds", "pretrained otherwise"])
def test_other_bases_are_two_samples(why):
    other = SECOND.assign_coords(base=("member", np.arange(10, 16))) if why == "other seeds" else SECOND
    told = comparing.differences({"a": FIRST, "b": other}, "update", lambda one, two: why == "other seeds")[1]
    assert told.pairs == 0
    found = stats.ttest_ind(SECOND["return"][-1], FIRST["return"][-1], equal_var=False)
    low, high = found.confidence_interval()
    np.testing.assert_allclose([told.less.low, told.less.high], [low, high])


def test_two_samples_that_agree_among_themselves_leave_an_interval_of_no_width():
    first, other = (course([[0.0] * 8, [end] * 8], [0, 4], range(start, start + 8)) for end, start in ((0, 0), (1, 8)))
    told = comparing.differences({"a": first, "b": other}, "update")[1]
    assert (told.pairs, told.less.mean, told.less.low, told.less.high, told.less.members) == (0, 1, 1, 1, 8)
    three = other.isel(member=range(3))  # too few for one
    assert np.isnan(comparing.differences({"a": first, "b": three}, "update")[1].less.low)


def test_bases_of_equal_seeds_that_pretrained_otherwise_are_not_paired():
    points = [f"pretrain.slip={slip}" for slip in (0.1, 0.4)]
    values, seeds = np.arange(20.0).reshape(2, 10), [*range(5)] * 2
    repeated = np.repeat(points, 5).tolist()
    for pretraining, pairs in ((repeated, 0), ([""] * 10, 5)):
        swept = course(values, [0, 4], seeds, point=repeated, pretraining=pretraining)
        first, second = comparing.differences({"a": swept}, "update")
        assert (first.arm, second.arm, second.pairs) == (*points, pairs)


def test_equally_far_is_where_a_member_first_came():
    x = np.array([[0.0, 0.0, 0.0], [1.0, 2.0, 1.0], [4.0, 1.0, 2.0]])
    values = np.array([[0.0, 0.0, 0.0], [10.0, 20.0, 10.0], [40.0, 5.0, 30.0]])
    values, x = (xr.DataArray(numbers, dims=("checkpoint", "member")) for numbers in (values, x))
    np.testing.assert_allclose(transitions.at(values, x, 1.5), [15.0, 15.0, 20.0])
    np.testing.assert_allclose(transitions.at(values, x, 0.0), [0.0, 0.0, 0.0])
    np.testing.assert_allclose(transitions.at(values, x, 4.0), [40.0, np.nan, np.nan])


@pytest.mark.parametrize(("against", "scale"), [("update", 1.0), ("tokens", 1e6), ("kl", 1.0)])
def test_differences_where_all_have_come_equally_far(against, scale):
    """The second came twice as far: half of its way is compared."""
    other = SECOND.assign(updates=2 * SECOND["updates"], tokens=2 * SECOND["tokens"], kl=2 * SECOND["kl"])
    told = comparing.differences({"a": FIRST, "b": other}, against)[1]
    assert told.at == 4 * scale
    halves = np.array([3.0, 2.5, 4.5, 5.0, 7.5]) / 2 - np.array([1.0, 2.0, 4.0, 3.0, 6.0])
    assert told.equally_far.mean == pytest.approx(halves.mean())


def test_points_of_a_grid_are_arms():
    swept = course([[0] * 4, [1.0, 2.0, 5.0, 7.0]], [0, 4], [0, 1, 0, 1], point=["x=1", "x=1", "x=2", "x=2"])
    told = comparing.differences({"a": swept}, "update")
    assert [(one.arm, one.pairs) for one in told] == [("x=1", 0), ("x=2", 2)]
    assert told[1].less.mean == pytest.approx(4.5)
    named = [one.arm for one in comparing.differences({"a": swept, "b": SECOND}, "update")]
    assert named == ["a, x=1", "a, x=2", "b"]


def test_runs_of_other_worlds_are_compared_where_they_have_the_same_places():
    def channels(dataset, names):
        wide = dataset["return"].expand_dims(channel=names, axis=-1) * np.arange(1, len(names) + 1)
        return dataset.assign({"return": wide.assign_attrs(dataset["return"].attrs)})

    first, other = channels(FIRST, ["thought", "action"]), channels(SECOND, ["name", "action"])
    told = comparing.differences({"a": first, "b": other}, "update")
    assert [(one.arm, one.place, one.pairs) for one in told] == [
        ("a", "thought", 0), ("a", "action", 0), ("b", "name", 0), ("b", "action", 5),
    ]  # fmt: skip
    assert (told[2].less.members, told[2].end.mean) == (0, SECOND["return"][-1].mean())
    assert told[3].less.mean == pytest.approx(2 * 1.3)
    alone = comparing.differences({"a": channels(FIRST, ["action"]), "b": other}, "update")
    assert [one.pairs for one in alone] == [0, 0, 5]


# Jobs of a sweep


SMALL = tiny.changed(population={"seeds": 4}, pretrain={"shared": False})


@pytest.fixture(scope="module")
def jobs(tmp_path_factory):
    """Two rates, and each in two jobs of other seeds."""
    folder = tmp_path_factory.mktemp("sweep")
    made = []
    for rate in (1e-3, 3e-3):
        for seed in (0, 4):
            rl = dataclasses.replace(SMALL.rl, learning_rate=rate)
            config = dataclasses.replace(SMALL, seed=seed, rl=rl)
            made.append(untrained.write(folder / f"job-{len(made)}", config, scale=1 + 0.1 * len(made)))
    return made


def test_runs_are_named_by_what_sets_them_apart(jobs):
    rates = ["rl.learning_rate=0.001", "rl.learning_rate=0.003"]
    assert comparing.named(jobs) == [rates[0], rates[0], rates[1], rates[1]]
    assert comparing.named(jobs[:2]) == ["", ""]

    def called(*chosen):
        held = [dataclasses.replace(jobs[0], document=configs.to_dict(config), members=8) for config in chosen]
        return comparing.named(held)

    ppo, grpo = (dataclasses.replace(configs.start("smoke", "EmojiMaze-v0", name)) for name in ("ppo", "grpo"))
    eight = dataclasses.replace(ppo.population, seeds=8)
    ppo, grpo = (dataclasses.replace(one, population=eight) for one in (ppo, grpo))
    assert called(ppo, grpo) == ["algorithm=ppo", "algorithm=grpo"]  # and not all of its switches
    swept = [
        dataclasses.replace(ppo, population=dataclasses.replace(ppo.population, seeds=4, sweep=(sweep,)))
        for sweep in ("rl.learning_rate=1e-3,3e-3", "rl.learning_rate=1e-2,3e-2")
    ]
    assert called(*swept) == ["", ""]
    assert called(ppo, swept[0]) == ["population.sweep=none", "population.sweep=rl.learning_rate"]


@pytest.mark.slow
def test_jobs_of_other_seeds_are_one_population(jobs):
    datasets = [comparing.measured(run, "norm") for run in jobs]
    arms = comparing.joined(comparing.named(jobs), jobs, datasets)
    assert list(arms) == ["rl.learning_rate=0.001", "rl.learning_rate=0.003"]
    for arm, mine in zip(arms.values(), (datasets[:2], datasets[2:]), strict=True):
        assert arm["member"].values.tolist() == list(range(8))
        assert arm["seed"].values.tolist() == list(range(8))
        assert len(np.unique(arm["unit"].values[-1])) == 8
        np.testing.assert_array_equal(arm["norm"], np.concatenate([one["norm"] for one in mine], axis=1))
    _, told = comparing.differences(arms, "update")
    assert told.pairs == 8
    ends = [np.concatenate([x["norm"].values[-1] for x in mine]) for mine in (datasets[:2], datasets[2:])]
    assert told.less.mean == pytest.approx((ends[1] - ends[0]).mean())
    assert len(told.less.values) == 8


@pytest.mark.parametrize(
    ("changes", "before"),
    [
        ({}, [0, 0, 0, 0]),
        ({"pretrain": {"shared": False}}, [0, 1, 2, 3]),
        ({"sft": {"updates": 10}}, [0, 1, 2, 3]),
        ({"population": {"sweep": ("world.wind_probability=0.1,0.2",)}}, [0, 1, 0, 1, 0, 1, 0, 1]),
    ],
    ids=["a shared base", "bases of their own", "tuned", "two worlds"],
)
def test_a_base_that_jobs_share_counts_once(changes, before, tmp_path):
    def make(name, seeds, **other):
        config = tiny.changed(**changes | {"population": {"seeds": seeds, **changes.get("population", {})}}, **other)
        return runs.create(tmp_path / name, configs.to_dict(config), members=len(config.members))

    opened, whole = [make(f"job-{seed}", 1, seed=seed) for seed in range(4)], make("whole", 4)
    each = opened[0].members
    steps = ["sft" if "sft" in changes else "pretrain", "rl-000002", "rl"]
    datasets = []
    for run in opened:
        units = np.array([measure.twins(run, step) for step in steps])
        part = course([[-18.8] * each, [1.0 + run.config.seed] * each, [0.0] * each], [0, 2, 4], range(each))
        datasets.append(part.assign_coords(checkpoint=steps, unit=(("checkpoint", "member"), units)))
    (joined,) = comparing.joined(comparing.named(opened), opened, datasets).values()
    place = np.arange(4 * each).reshape(each, 4).T.ravel()  # a run has its members point by point
    for step in steps:
        expected = np.array(before if step == steps[0] else range(4 * each))
        for found in (joined["unit"].sel(checkpoint=step).values, measure.twins(whole, step)[place]):
            np.testing.assert_array_equal(found[:, None] == found, expected[:, None] == expected)
    told = estimates.of(joined["return"].sel(checkpoint=steps[0]))
    assert (told.mean, told.members) == (-18.8, len(set(before)))
    assert np.isnan(told.low) == (len(set(before)) < 4)


def test_the_same_seed_twice_is_refused(jobs):
    twice = [jobs[0], jobs[0]]
    with pytest.raises(RunError, match="both have a member of seed 0; leave one out"):
        comparing.joined(comparing.named(twice), twice, [FIRST, FIRST])


def test_its_number_is_that_of_the_measurement(jobs):
    told = comparing.measured(jobs[0], "norm", "tokens")
    expected = measures.updates(jobs[0], ["pretrain", "rl-000001", "rl"]).sel(kind="all")["norm"]
    np.testing.assert_array_equal(told["norm"], expected)
    assert told["updates"].values[:, 0].tolist() == [0, 1, 4]
    per_update = SMALL.rl.episodes * SMALL.world.make()[0].episode_length()
    np.testing.assert_array_equal(told["tokens"], per_update * told["updates"])


def test_the_command_prints_draws_and_writes(jobs, capsys, tmp_path):
    paths = [str(run.path) for run in jobs]
    assert command.main(["compare", *paths, "--as-one", "--measure", "norm", "--json", str(tmp_path / "x.json")]) == 0
    words = " ".join(capsys.readouterr().out.split())
    for part in ("rl.learning_rate=0.003", "8 bases", "less the first at equal update", "compare-norm-update.png"):
        assert part in words
    assert "job-3, config" in words
    (_, row) = json.loads((tmp_path / "x.json").read_text())["differences"]
    assert (row["pairs"], row["arm"]) == (8, "rl.learning_rate=0.003")
    assert row["less"]["low"] < row["less"]["mean"] < row["less"]["high"]
    lines = jobs[0].figure("compare-norm-update.csv").read_text().splitlines()
    assert {line.split(",")[1] for line in lines[1:]} == {"rl.learning_rate=0.001", "rl.learning_rate=0.003"}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--measure", "kl", "--against", "kl"], "--against=kl: KL against itself"),
        (["--measure", "tokens", "--against", "tokens"], "--measure=tokens: EmojiMaze-v0 has no such number"),
        (["--measure", "success"], "--measure=success: EmojiMaze-v0 has no such number; choose one of return, kl,"),
        (["--width", "1"], "--width=1: use 2 to 40 inches"),
        (["--against", "steps"], "--against steps: choose one of update, tokens, kl"),
    ],
)
def test_wrong_requests_end_in_one_line(jobs, capsys, arguments, words):
    assert command.main(["compare", str(jobs[0].path), "--no-figures", *arguments]) == 2
    err = capsys.readouterr().err
    assert words in err
    assert err.count("\n") == 1


def test_runs_must_be_there_finished_and_apart(jobs, tmp_path):
    with pytest.raises(ConfigError, match="which runs"):
        comparing.run(comparing.Command(runs=()), None)
    with pytest.raises(ConfigError, match="two of the runs have the same name"):
        comparing.run(comparing.Command(runs=(jobs[0].path, jobs[0].path)), None)
    begun = runs.create(tmp_path / "begun", configs.to_dict(SMALL), members=4)
    begun.save_parameters("pretrain", jobs[0].parameters("pretrain"))
    with pytest.raises(RunError, match="not finished; go on with"):
        comparing.measured(begun, "norm")
