"""The frame of measurements: found again or not, labels, twins, checkpoints; and every measurement on a hard run."""

import dataclasses
import errno
import importlib.util
import sys
from typing import Literal

import numpy as np
import pytest
import xarray as xr

from agents import runs
from analysis import estimates, measure, measures
from analysis.measure import REGISTRY
from envs.labyrinth import LabyrinthOptions
from ground import files
from ground.files import RunError
from ground.terminal import ConfigError
from tests import tiny, untrained

CALLS = []


@measure.measure(version=3, also=("tallied",))
def counted(run: runs.Run, checkpoint: str, *, scale: float = 1.0, sides: int = 2) -> xr.Dataset:
    """Counts its calls.

    Args:
        scale: a factor.
        sides: how many, and what
            they are is not said.
    """
    CALLS.append((run.path.name, checkpoint))
    kernel = run.kept_parameters(checkpoint)["embedding"]["embedding"].reshape(len(run.kept), -1)
    mean = scale * kernel.mean(axis=1)
    measure.progress(0.5)
    return xr.Dataset(
        {
            "mean": ("member", mean, {"long_name": "mean weight", "units": "1"}),
            "pair": (("member", "side"), np.stack([mean] * sides, axis=1)),
            "floor": ("side", np.arange(sides)),
        },
        {"side": [f"side {index}" for index in range(sides)]},
    )


@measure.measure()
def whole(run: runs.Run, *, kind: Literal["all", "none"] = "all") -> xr.Dataset:
    """Measures a run.

    Args:
        kind: of what.
    """
    return xr.Dataset({"members": ("member", run.kept)})


@pytest.fixture(scope="module", autouse=True)
def registry():
    """Nothing of this file stays registered."""
    yield
    for name in ("counted", "tallied", "whole"):
        del REGISTRY[name]


@pytest.fixture(autouse=True)
def forget():
    CALLS.clear()


LABYRINTH = LabyrinthOptions(size=2, turns=3, view="bump")
SWEEP = {"seeds": 2, "sweep": ("rl.learning_rate=1e-4,1e-2",)}


def make(path, lost=(), **changes):
    """An untrained run of the labyrinth, some of whose members have diverged."""
    run = untrained.write(path, tiny.changed(**{"world": LABYRINTH, "population": SWEEP} | changes))
    return lose(run, lost)


def lose(run, members):
    loss = np.ones((run.config.rl.updates, run.members))
    loss[2:, list(members)] = np.nan
    run.write_metrics("rl", 0, {"loss": loss, "return": loss, "learning_rate": 1e-3 * np.ones_like(loss)})
    return runs.open(run.path)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return make(tmp_path_factory.mktemp("runs") / "run")


# Found again, or not


def test_what_cannot_be_kept_is_returned_and_said_once(tmp_path, capsys, monkeypatch):
    run = make(tmp_path / "run")

    def refuse(path, data):
        with files.reporting(path, "write"):
            raise OSError(errno.EROFS, "Read-only file system")

    with monkeypatch.context() as patch:
        patch.setattr(files, "write", refuse)
        shown = counted(run)
    (line,) = capsys.readouterr().err.splitlines()
    assert line == f"{run.path / 'analysis'}: cannot be written (Read-only file system); nothing is kept"
    xr.testing.assert_equal(shown, counted(run))
    assert len(CALLS) == 4  # measured again, for it was not kept


def test_the_same_options_are_found_again_and_not_computed(tmp_path):
    run = make(tmp_path / "run")
    first = counted(run)
    assert CALLS == [("run", "pretrain"), ("run", "rl")]
    for again in (
        counted(runs.open(run.path)),
        counted(str(run.path)),
        counted(run, scale=1, sides=np.int64(2)),
        counted(run, checkpoints=["pretrain", "rl"]),
        REGISTRY["tallied"](run),
    ):
        xr.testing.assert_identical(again, first)
    assert len(CALLS) == 2
    expected = run.kept_parameters("rl")["embedding"]["embedding"].reshape(4, -1).mean(axis=1)
    np.testing.assert_allclose(first["mean"].sel(checkpoint="rl"), expected, rtol=1e-6)
    names = sorted(path.name for path in (run.path / "analysis").iterdir())
    assert [name.rpartition("-")[0] for name in names] == ["counted-pretrain", "counted-rl"]


def test_other_options_defaults_versions_and_members_are_not_found(tmp_path):
    run = make(tmp_path / "run")
    counted(run, "rl")
    other_default = {**counted.options, "scale": dataclasses.replace(counted.options["scale"], default=2.0)}
    others = [
        lambda: counted(run, "rl", scale=3.0),
        lambda: counted(run, "rl", sides=3),
        lambda: dataclasses.replace(counted, options=other_default)(run, "rl"),
        lambda: dataclasses.replace(counted, version=4)(run, "rl"),
        lambda: dataclasses.replace(counted, name="renamed")(run, "rl"),
        lambda: counted(lose(run, [3]), "rl"),
    ]
    for number, ask in enumerate(others, 2):
        for _ in range(2):
            ask()
            assert len(CALLS) == number
    assert counted(runs.open(run.path), "rl")["member"].values.tolist() == [0, 1, 2]


TEXT = '''"""A module."""
import numpy as np
import xarray as xr
from analysis.measure import measure

FACTOR = 2.0

def panels(arms):
    return ["a panel"]

@measure(panels=panels)
def edited(run, checkpoint):
    """Says little."""
    # Why.
    return xr.Dataset({"x": ("member", FACTOR * np.ones(len(run.kept)))})
'''


def edited(path, text):
    """The measurement of a module with this text, as a user has it who edits a file and starts again."""
    path.write_text(text)
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec
    assert spec.loader
    sys.modules[path.stem] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    measurement = REGISTRY.pop("edited")
    assert measurement.code
    return measurement


def test_changed_code_is_not_found_and_comments_docstrings_layout_and_panels_do_not_matter(run, tmp_path):
    whole = edited(tmp_path / "edited_one.py", TEXT)
    assert whole(run, "rl")["x"].values.tolist() == [[2.0] * 4]
    same = TEXT.replace("a panel", "another").replace("Says little", "Says more").replace("# Why.\n", "# Why not.\n\n")
    same = same.replace("(run, checkpoint)", "(\n    run, checkpoint\n)")
    assert edited(tmp_path / "edited_two.py", same).code == whole.code
    changed = edited(tmp_path / "edited_three.py", TEXT.replace("2.0", "5.0"))
    assert changed(run, "rl")["x"].values.tolist() == [[5.0] * 4]


def test_a_file_that_is_edited_while_a_process_runs_is_not_what_that_one_measures_with(tmp_path):
    path = tmp_path / "edited_four.py"
    before = edited(path, TEXT)
    running = dataclasses.replace(before)  # as it was registered, its digest not asked for yet
    path.write_text(TEXT.replace("2.0", "5.0"))
    assert running.code == before.code
    assert running.code != edited(path, TEXT.replace("2.0", "5.0")).code


def test_what_a_measurement_takes_of_another_it_is_made_of():
    borrowed = 0
    for measurement in REGISTRY.values():
        home = measurement.function.__module__
        there = [one for one in vars(sys.modules[home]).values() if isinstance(one, measure.Measurement)]
        taken = [one for one in there if one.function.__module__ != home]
        borrowed += len(taken)
        assert all(one in measurement.made_of for one in taken), measurement.name
    assert borrowed


def test_what_was_measured_with_other_code_is_found_and_said_once(tmp_path, monkeypatch, capsys):
    run = make(tmp_path / "run")
    told = []
    with measure.hearing(told.append):
        first = counted(run)
        counted(run)
        assert told == []
        now = runs.provenance()
        other = now | {"git": {"commit": "b", "dirty": False, "changes": "00"}, "packages": {"jax": "0.0.1"}}
        monkeypatch.setattr(measure.runs, "provenance", lambda: other)
        xr.testing.assert_identical(counted(run), first)
    (what,) = set(told)
    assert what.startswith(f"{run.path / 'analysis'}: not measured as now: ")
    assert f"jax {now['packages']['jax']} → 0.0.1" in what
    assert what.endswith("; delete it to measure again")
    counted(run)
    counted(run)
    assert capsys.readouterr().err == what + "\n"


def test_damaged_files_are_refused_in_one_line(tmp_path):
    run = make(tmp_path / "run")
    measured = counted(run, "rl")
    (path,) = (run.path / "analysis").iterdir()
    text = path.read_bytes()
    for damaged in (b"", text[:-3], text[: len(text) // 2], text.replace(b"mean weight", b"mean height")):
        path.write_bytes(damaged)
        with pytest.raises(RunError) as error:
            counted(run, "rl")
        assert str(error.value).startswith(f"{path}: ")
        assert str(error.value).endswith("; delete it to measure again")
        assert "\n" not in str(error.value)
    path.unlink()
    xr.testing.assert_equal(counted(run, "rl"), measured)


# Checkpoints


def test_checkpoints_asked_for_together_are_those_asked_for_one_by_one(tmp_path):
    run, other = make(tmp_path / "one"), make(tmp_path / "other")
    names = ["init", "pretrain", "rl-000001", "rl"]
    together = counted(run, "all")
    assert together["checkpoint"].values.tolist() == run.checkpoints() == names
    assert together["stage"].values.tolist() == ["init", "pretrain", "rl", "rl"]
    assert together["update"].values.tolist() == [0, run.config.pretrain.updates, 1, run.config.rl.updates]
    for name in names:
        alone = counted(other, name)
        assert alone.sizes["checkpoint"] == 1
        xr.testing.assert_equal(alone.sel(checkpoint=name), together.sel(checkpoint=name))
    assert together["floor"].dims == ("checkpoint", "side")
    assert counted(run, "rl,init,rl")["checkpoint"].values.tolist() == ["rl", "init"]
    assert CALLS == [("one", name) for name in names] + [("other", name) for name in names]


def test_default_checkpoints_follow_the_stages(tmp_path):
    run = make(tmp_path / "run")
    assert (measure.ends(run), measure.end(run), measure.arms(run)) == (
        ["pretrain", "rl"], ["rl"], ["init", "pretrain", "rl"]
    )  # fmt: skip
    tuned = make(tmp_path / "tuned", sft={"updates": 10})
    assert (measure.ends(tuned), measure.end(tuned)) == (["sft", "rl"], ["rl"])
    base = make(tmp_path / "base", rl={"updates": 0})
    assert measure.ends(base) == ["pretrain"]


def test_what_measures_a_run_has_no_checkpoints(run):
    assert not REGISTRY["whole"].followed
    measured = whole(run)
    assert "checkpoint" not in measured.dims
    assert measured["members"].values.tolist() == [0, 1, 2, 3]
    assert measured["unit"].values.tolist() == [0, 1, 2, 3]
    with pytest.raises(ConfigError, match="--checkpoints: whole measures a run as a whole"):
        whole(run, "rl")


def test_wrong_questions(run, tmp_path):
    for ask, kind, words in (
        (
            lambda: counted(run, "rl-000009"),
            RunError,
            "no checkpoint 'rl-000009'; there are init, pretrain, rl-000001, rl",
        ),
        (lambda: counted(run, "rl,"), RunError, "no checkpoint ''"),
        (lambda: counted(run, []), ConfigError, "--checkpoints: names none"),
        (lambda: counted(run, scal=2.0), ConfigError, "--scal: counted has no such option; it has scale, sides"),
        *(
            (lambda scale=scale: counted(run, scale=scale), ConfigError, f"--scale={scale:g}: use a finite number")
            for scale in (float("nan"), float("inf"), 1e39, -1e-46, 1e-300)
        ),
        (lambda: counted(run, sides=2**31), ConfigError, f"--sides={2**31}: use a 32-bit integer"),
        (lambda: counted(run, sides=65_537), ConfigError, "--sides=65537: use 65536 at most"),
        (lambda: whole(run, at_once=1), ConfigError, "--at-once: whole has no such option; it has kind"),
        (lambda: whole(run, kind="some"), ConfigError, "--kind=some: use all, none"),
        (lambda: counted(tmp_path / "none"), RunError, "no such run directory"),
    ):
        with pytest.raises(kind) as error:
            ask()
        assert words in str(error.value)
    assert not CALLS


def test_a_result_without_its_members_is_a_fault_of_the_measurement(run):
    short = dataclasses.replace(whole, name="short", function=lambda run, kind: xr.Dataset({"x": ("member", [1])}))
    with pytest.raises(ValueError, match=r"short: .* where the member axis must have 4"):
        short(run)
    with pytest.raises(AssertionError, match=r"every command has an option {'json'}"):

        @measure.measure()
        def taken(run: runs.Run, *, json: int = 1) -> xr.Dataset: ...


def test_progress_is_told_with_what_is_measured(tmp_path):
    told = []
    counted(make(tmp_path / "run"), "rl", tell=told.append)
    assert told == ["run: counted of rl", "run: counted of rl, 50%"]
    measure.progress(0.7)  # nobody asks
    assert len(told) == 2


def test_options_and_their_help_are_those_of_the_function():
    assert counted.summary == "Counts its calls."
    assert {name: (option.type, option.default, option.help) for name, option in counted.options.items()} == {
        "scale": (float, 1.0, "a factor."),
        "sides": (int, 2, "how many, and what they are is not said."),
    }


# Labels


def labels(dataset, *names):
    return [dataset[name].values.tolist() for name in names]


def test_labels_of_a_sweep_that_shares_a_base(run):
    measured = counted(run, "init,pretrain,rl")
    assert labels(measured, "member", "seed", "base") == [[0, 1, 2, 3], [0, 1, 0, 1], [0] * 4]
    rates = ["rl.learning_rate=0.0001"] * 2 + ["rl.learning_rate=0.01"] * 2
    assert labels(measured, "point", "rl.learning_rate") == [rates, [1e-4, 1e-4, 1e-2, 1e-2]]
    assert measured["unit"].values.tolist() == [[0] * 4, [0] * 4, [0, 1, 2, 3]]


def test_labels_of_members_with_bases_of_their_own_of_which_one_has_diverged(tmp_path):
    run = make(tmp_path / "run", lost=[1], seed=7, pretrain={"shared": False})
    measured = counted(run)
    assert labels(measured, "member", "seed", "base") == [[0, 2, 3], [7, 7, 8], [7, 7, 8]]
    assert measured["rl.learning_rate"].values.tolist() == [1e-4, 1e-2, 1e-2]
    assert measured["unit"].values.tolist() == [[0, 0, 1], [0, 2, 3]]
    kernel = run.parameters("rl")["embedding"]["embedding"].reshape(4, -1).mean(axis=1)
    np.testing.assert_allclose(measured["mean"].sel(checkpoint="rl"), kernel[[0, 2, 3]], rtol=1e-6)


def test_labels_where_nothing_is_swept_and_the_world_is(tmp_path):
    plain = counted(make(tmp_path / "plain", population={"seeds": 3}))
    assert plain["point"].values.tolist() == [""] * 3
    assert set(plain.coords) == {
        "member", "side", "checkpoint", "seed", "base", "pretraining", "point", "unit", "stage", "update"
    }  # fmt: skip
    worlds = counted(make(tmp_path / "worlds", population={"seeds": 2, "sweep": ("world.loops=0,0.5",)}))
    assert worlds["unit"].sel(checkpoint="pretrain").values.tolist() == [0, 0, 2, 2]  # one base in two worlds


def test_where_pretraining_is_swept_bases_of_one_seed_are_not_one_base(tmp_path):
    swept = {"seeds": 2, "sweep": ("pretrain.slip=0.1,0.4", "rl.learning_rate=1e-4,1e-2")}
    measured = counted(make(tmp_path / "run", population=swept, pretrain={"shared": False}))
    assert labels(measured, "base") == [[0, 1] * 4]
    assert measured["pretraining"].values.tolist() == ["pretrain.slip=0.1"] * 4 + ["pretrain.slip=0.4"] * 4
    assert "8 members of 4 bases" in str(estimates.table({"run": measured}).renderables[-1])


def test_the_bases_own_numbers_count_once_for_each_base(run):
    measured = counted(run, "rl")
    value = measured["mean"].isel(checkpoint=0)
    of_base = measured["mean"].isel(checkpoint=0).assign_attrs(independent="base")
    assert (estimates.of(value).members, estimates.of(of_base).members) == (4, 1)
    assert estimates.of(of_base, units="unit").members == 4
    of_world = value.assign_attrs(independent="point")
    assert (estimates.of(of_world).members, estimates.of(of_world[:2]).members) == (2, 1)


@pytest.mark.slow
def test_the_misfit_is_the_bases_own(run):
    misfit = measures.ledger(run, "rl", mazes=2, episodes=8)["misfit"].sel(checkpoint="rl")
    assert len(np.unique(misfit.values)) == estimates.of(misfit).members == 1
    assert np.isnan(estimates.of(misfit).low)


def test_twins_are_those_of_the_stage(tmp_path):
    tuned = make(tmp_path / "tuned", sft={"updates": 10})
    shares = {name: measure.twins(tuned, name).tolist() for name in ("init", "pretrain", "sft", "rl-000001", "rl")}
    alone = [0, 1, 2, 3]
    assert shares == {"init": [0] * 4, "pretrain": [0] * 4, "sft": alone, "rl-000001": alone, "rl": alone}
    assert measure.twins(make(tmp_path / "base", rl={"updates": 0}), None).tolist() == [0] * 4


def both_means(policy, world, own, start, params, factor, *, name):
    return factor * own[name][name].mean(), start[name][name].mean()


def test_of_several_checkpoints_twins_are_twins_at_each(tmp_path):
    tuned = make(tmp_path / "tuned", sft={"updates": 10})
    first, again = measure.once(tuned, "pretrain")
    assert (first.tolist(), again.tolist()) == ([0], [0] * 4)
    assert measure.once(tuned, "pretrain", "sft")[0].tolist() == [0, 1, 2, 3]
    own, start = measure.each(both_means, tuned, "pretrain", "sft", shared=(2.0,), name="embedding")
    for told, checkpoint, factor in ((own, "pretrain", 2), (start, "sft", 1)):
        table = tuned.parameters(checkpoint)["embedding"]["embedding"].reshape(4, -1)
        np.testing.assert_allclose(told, factor * table.mean(axis=1), rtol=1e-4, atol=1e-7)
    assert np.ptp(start) > 0


# Every measurement

TOGETHER = {"overlaps", "subnetwork"}
"""Members are compared with each other, or draw in a row."""


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.long if name == "course" else ()) for name in measures.__all__]
)
def test_every_measurement_numbers_members_as_the_run_does(name, tmp_path):
    world = {"world": dataclasses.replace(tiny.CONFIG.world, badge="spoken")} if name in tiny.MAZE else {}
    world |= {"world": dataclasses.replace(LABYRINTH, plan_length=4)} if name in tiny.THINKING else {}
    hard = make(tmp_path / "hard", lost=[1], **world)  # a sweep of which a member has diverged
    measurement = getattr(measures, name)
    assert REGISTRY[measurement.name] is measurement
    assert measurement.summary.endswith(".")
    assert all(option.help for option in measurement.options.values())
    measured = measurement(hard, **tiny.SMALLEST.get(name, {}))
    assert labels(measured, "member", "seed") == [[0, 2, 3], [0, 0, 1]]
    assert measured["rl.learning_rate"].values.tolist() == [1e-4, 1e-2, 1e-2]
    for _, array in estimates.rows(measured.isel(checkpoint=-1) if measurement.followed else measured):
        assert "long_name" in array.attrs, array.name  # the table calls it so
    if measurement.followed:
        assert measured["checkpoint"].values.tolist() == list(measurement.default(hard))
    # Nobody's numbers depend on who else is there; as many members share its programs.
    other = measurement(make(tmp_path / "other", lost=[3], **world), **tiny.SMALLEST.get(name, {}))
    both = [dataset.sel(member=[0, 2]) for dataset in (measured, other)]
    if name not in TOGETHER:
        alone = [part.drop_vars(["unit", "agreement", "axis_cosine"], errors="ignore") for part in both]
        xr.testing.assert_allclose(*alone, rtol=1e-5)
    if measurement.panels:
        assert measurement.panels({"hard": measured, "other": other})
