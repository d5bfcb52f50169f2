"""Studies: arms pair by base, runs are shared by what they are, every promise is kept, wrong commands get one line."""

import dataclasses
import io
import json
import subprocess

import numpy as np
import pytest
import xarray as xr
from rich.console import Console

import train
from agents import runs
from agents.runs import config as configs
from agents.runs import reporting
from analysis.figures.panels import Areas, Rows
from ground.terminal import ConfigError
from studies import __main__ as command
from studies import populations, store, study
from studies.report import results
from studies.study import Results, Study, ask, by_base, of
from tests import tiny, untrained, verdicts
from tests.test_runs import snapshot

QUIET = Console(quiet=True)
TRAINS = pytest.mark.slow  # whole runs


def members(values, base, **labels) -> xr.DataArray:
    coordinates = {"base": ("member", np.asarray(base)), **{k: ("member", np.asarray(v)) for k, v in labels.items()}}
    return xr.DataArray(np.asarray(values, float), dims="member", coords=coordinates)


def test_arms_of_other_sizes_and_orders_pair_by_base():
    after = members([12, 14, 11, 13, 10], base=[1, 1, 0, 0, 4], seed=range(5))
    before = members([1, 2, 3], base=[0, 1, 2])
    gain = by_base(after) - by_base(before)
    assert dict(zip(gain.base.values.tolist(), gain.values.tolist(), strict=True)) == {0: 11, 1: 11}
    assert by_base(by_base(after)).equals(by_base(after))
    assert of(after, "x").members == 3


def test_members_of_one_base_are_one_unit_and_give_no_interval():
    estimate = of(members(np.arange(12.0), base=[0] * 12), "x")
    assert (estimate.mean, estimate.members) == (5.5, 1)
    assert np.isnan(estimate.low)
    assert np.isfinite(of(members(np.arange(12.0), base=np.repeat([0, 1, 2, 3], 3)), "x").low)


SHORT = tiny.changed(rl={"updates": 1}, pretrain={"shared": False})
OTHER = dataclasses.replace(
    SHORT, population=dataclasses.replace(SHORT.population, seeds=1, sweep=("rl.clip_low=0.1,0.2",)), seed=1
)


@TRAINS
def test_a_base_is_trained_once_for_all_who_share_it(tmp_path, monkeypatch):
    trained = []
    run_stage = train.stages.run_stage
    monkeypatch.setattr(
        train.stages, "run_stage", lambda run, stage, *rest: trained.append(stage.name) or run_stage(run, stage, *rest)
    )
    shelf = store.Store(tmp_path / "runs", QUIET)
    wide, narrow = (shelf.run(config) for config in (SHORT, OTHER))
    assert trained == ["pretrain", "rl", "rl", "rl"]  # the bases' own stage of RL has no updates
    kernels = [run.parameters("pretrain")["value"]["kernel"] for run in (wide, narrow)]
    np.testing.assert_array_equal(kernels[1], kernels[0][[1, 1]])
    trained.clear()
    assert shelf.run(SHORT).path == wide.path
    assert not trained
    base = store.only_bases(SHORT)
    assert base == store.only_bases(base)
    assert "return" not in runs.open(shelf.path(base)).summary()
    assert "return" in shelf.run(base).summary()  # now that somebody asks

    strange = runs.create(tmp_path / "runs" / "base-0000", {"speed": 1}, members=2)  # of another version
    strange.write_summary({})
    config = dataclasses.replace(SHORT, rl=dataclasses.replace(SHORT.rl, clip_high=0.3))
    stopped = runs.create(shelf.path(config), configs.to_dict(config), members=2)
    monkeypatch.setattr(train, "train", lambda *arguments: pytest.fail("trained anew"))
    assert shelf.run(config).path == stopped.path

    other = dataclasses.replace(config, seed=9)
    wide.path.rename(shelf.path(other))
    with pytest.raises(ConfigError, match="holds another config than its name says; move it away"):
        shelf.run(other)


def test_the_catalogue_is_sound():
    for name, population in populations.CATALOGUE.items():
        for scale in populations.SCALES:
            config = population.config(scale)
            assert len(config.bases) >= (8 if scale != "smoke" else 2), name
            assert population.config(scale, seed=100).bases[0].seed == 100
    with pytest.raises(ConfigError, match="maze/none: no such population; there are"):
        populations.of("maze/none")


@pytest.mark.parametrize("name", command.NAMES)
def test_every_study_is_whole(name):
    one = command.find(name)
    assert one.name == name
    assert sum(question.primary for question in one.questions) == 1
    assert len({question.name for question in one.questions}) == len(one.questions)
    for scale in study.SCALES:
        arms = one.configs(scale)
        assert len({runs.config_hash(configs.to_dict(config)) for config in arms.values()}) == len(arms)
        assert study.minutes(arms.values(), scale) > 0
    assert study.verdict(one, Results({}, [], ""), "smoke")["criteria"]["file"] == f"studies/{name}.py"


def test_the_largest_study_is_sized_for_an_hour_of_one_gpu():
    """Its training, by the forecast; bases that differ in what no demonstration tells are counted once."""
    arms = command.find("persona_transition").configs("paper")
    assert 30 < study.minutes(arms.values(), "paper") < 60
    town = {name: arms[name] for name in ("slow", "slow_poor", "slow_rich")}
    one = study.minutes([arms["slow"]], "paper")
    alone = dataclasses.replace(arms["slow"], pretrain=dataclasses.replace(arms["slow"].pretrain, updates=0))
    assert study.minutes(town.values(), "paper") == pytest.approx(one + 2 * reporting.expected_minutes(alone, 1, "gpu"))


def planted(values) -> Study:
    def measure(arms, options):
        assert options == {"returns": {"episodes": 64}}
        found = study.by_base(members(values, base=range(len(values))))
        estimates = {"gain": of(found, "a gain"), "none": of(members([np.nan], base=[0]), "nothing")}
        return Results(estimates, [Rows({"gain": estimates["gain"]}, "gain")], "dots: bases")

    return Study(
        name="planted", title="Planted", claim="It rises.", source="nobody", method="None.", limits=("Everything.",),
        questions=(ask("q", "Does it?", "yes", "no", "gain > 0", smallest=0.05, primary=True),),
        arms={"one": "planted/one"}, options={"smoke": {"returns": {"episodes": 64}}}, measure=measure,
    )  # fmt: skip


@TRAINS
def test_populations_are_trained_by_name_and_found_again(tmp_path, monkeypatch, capsys):
    for name, config in {"planted/one": SHORT, "planted/two": OTHER}.items():
        one = populations.Population(name, f"Called {name}", lambda scale, config=config: config)
        monkeypatch.setitem(populations.CATALOGUE, name, one)
    paths = [store.Store(tmp_path / "runs", QUIET).path(dataclasses.replace(x, seed=7)) for x in (SHORT, OTHER)]
    for asked in ("planted/*", "planted/two"):
        assert command.main(["train", asked, "--seed", "7", "--out", str(tmp_path)]) == 0
        said = capsys.readouterr().out
        assert all(
            (str(path) in said.replace("\n", "")) == (asked == "planted/*" or path == paths[1]) for path in paths
        )
        assert f"{'2 populations' if asked == 'planted/*' else '1 population'}, about" in said
        assert "Called planted/two" in said
        monkeypatch.setattr(train, "train", lambda *arguments: pytest.fail("trained anew"))
    assert all("return" in runs.open(path).summary() for path in paths)


@TRAINS
def test_a_study_leaves_what_it_promises(tmp_path, monkeypatch):
    monkeypatch.setitem(
        populations.CATALOGUE, "planted/one", populations.Population("planted/one", "One", lambda scale: SHORT)
    )
    values = np.linspace(0.1, 0.4, 8)
    document = study.run(planted(values), "smoke", tmp_path, QUIET, seed=3)
    folder = tmp_path / "planted" / "smoke-seed-3"
    written = json.loads((folder / "verdict.json").read_text())
    assert written["verdict"] == document["verdict"] == "supported"
    assert written["words"] == "replicates here"
    assert written["estimates"]["gain"]["values"] == pytest.approx(values.tolist())
    assert written["estimates"]["none"]["interval"] is None
    assert written["estimates"]["none"]["mean"] is None
    assert written["command"].endswith("--scale smoke --seed 3")
    assert runs.open(tmp_path / written["runs"]["one"]["path"]).config == dataclasses.replace(SHORT, seed=3)
    assert all((folder / name).stat().st_size for name in [written["figure"], *written["files"]])
    assert {"git", "packages", "device", "config_hash", "limits", "alt", "criteria", "takeaway"} <= set(written)
    assert written["git"] == written["judge"]
    assert written["foreign"] == []

    here = runs.provenance()
    later = here | {"git": {"commit": "b", "dirty": False, "changes": "00"}, "packages": {"jax": "0.0.1"}}
    for module in (runs, runs.sessions):
        monkeypatch.setattr(module, "provenance", lambda: later)
    console = Console(file=io.StringIO(), width=400)
    again = study.run(planted(values), "smoke", tmp_path, console, seed=3)
    made = written["runs"]["one"]
    assert again["runs"]["one"] == made
    assert made["git"] == here["git"]
    assert made["commits"] == [here["git"]["commit"]] * (here["git"]["commit"] is not None)
    assert (again["git"], again["judge"]) == (None, later["git"])  # no stamp of a commit that did not make the run
    (line,) = again["foreign"]
    assert line.startswith(f"{made['path']}: not trained as now: ")
    assert f"jax {here['packages']['jax']} → 0.0.1" in line
    assert line in console.file.getvalue()


def test_a_study_does_not_judge_arms_that_have_lost_members(tmp_path, monkeypatch):
    run = untrained.write(tmp_path / "run", SHORT)
    loss = np.ones((1, 2), np.float32)
    loss[0, 1] = np.nan
    run.write_metrics("rl", 0, {"loss": loss})
    monkeypatch.setattr(store.Store, "run", lambda self, config: run)
    monkeypatch.setitem(
        populations.CATALOGUE, "planted/one", populations.Population("planted/one", "One", lambda scale: SHORT)
    )
    with pytest.raises(runs.RunError, match=r"member 1 \(seed 1\) diverged in update 1 of rl; a study needs every"):
        study.run(planted([1.0]), "smoke", tmp_path, QUIET)


def test_a_takeaway_is_shown_only_for_the_verdict_it_was_written_for(tmp_path, monkeypatch):
    file = tmp_path / "takeaways.toml"
    file.write_text('[planted.laptop]\nverdict = "supported"\ntext = "It rises, by a third."\n')
    monkeypatch.setattr(study, "TAKEAWAYS", file)
    one = planted([1.0])
    assert study.takeaway(one, "laptop", "supported") == "It rises, by a third."
    assert study.takeaway(one, "laptop", "refuted") is None
    assert study.takeaway(one, "smoke", "supported") is None
    learnt = Results({"gain": of(members(np.linspace(0.1, 0.4, 8), base=range(8)))}, [], "")
    told = [study.verdict(one, learnt, "laptop", seed)["takeaway"] for seed in (0, 1000)]
    assert told == ["It rises, by a third.", None]  # numbers of other bases are not those of a replication


@pytest.mark.parametrize(
    "text",
    [
        b"[planted.laptop", b"\xff", b"planted = 5", b"[planted]\nlaptop = 5", b"[planted.laptop]\ntext = 'x'",
        b"[planted.laptop]\nverdict = 'refuted'\ntext = 5", b"x = " + b"[" * 100_000,
    ],
    ids=lambda text: repr(text[:30]),
)  # fmt: skip
def test_a_slip_in_what_was_learnt_is_met_before_training(tmp_path, monkeypatch, capsys, text):
    (file := tmp_path / "takeaways.toml").write_bytes(text)
    monkeypatch.setattr(study, "TAKEAWAYS", file)
    monkeypatch.setattr(store.Store, "run", lambda self, config: pytest.fail("trained"))
    with pytest.raises(ConfigError, match="not as it should be"):
        study.run(planted([1.0]), "smoke", tmp_path / "out", QUIET)
    for name in ("sparse_updates", "all"):
        assert command.main(["run", name, "--scale", "smoke", "--out", str(tmp_path / "out")]) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        assert f"{file}: not as it should be" in error
    assert list(tmp_path.iterdir()) == [file]


def test_the_words_for_those_who_do_not_see_a_figure_name_every_panel():
    shown = [Rows({}, "gain"), Areas(np.arange(2.0), {"a": np.ones(2)}, "KL", "nats, PPO")]
    assert study.alternative(Results({}, shown, "")).startswith("2 panels: gain; nats, PPO.")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "which command?; choose one of list, run"),
        (["draw"], "draw: no such command"),
        (["run", "negative_reinforcment"], "no such study; did you mean negative_reinforcement?"),
        (["run", "negative_reinforcement", "--scale", "huge"], "--scale"),
        (["run", "negative_reinforcement", "--seed", "-1"], "--seed=-1"),
        (["run"], "name: missing"),
        (["train"], "name: missing"),
        (["train", "rooms/pp"], "rooms/pp: no such population; there are rates/ppo, "),
        (["train", "room/*"], "room/*: no such population"),
        (["train", "rooms/ppo", "--seed", "-1"], "--seed=-1"),
    ],
)
def test_a_wrong_command_gets_one_line(arguments, message, capsys):
    assert command.main(arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("way", [".", "../link"])
def test_what_lasts_is_kept_beside_the_results_and_not_among_them(tmp_path, capsys, way):
    (out := tmp_path / "out").mkdir()
    (tmp_path / "link").symlink_to(out)
    into = out / way
    (into / "README.md").write_text(f"{results.BEGIN}\n{results.END}\n")
    for scale in ("laptop", "smoke"):
        verdicts.write(out, scale=scale)
    before = snapshot(tmp_path)
    assert command.main(["report", "--out", str(out), "--into", str(into)]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert f"--into={into}: is --out={out} itself" in error
    assert snapshot(tmp_path) == before


def test_the_list_shows_words_as_they_are(tmp_path, capsys):
    verdicts.write(tmp_path, name="negative_reinforcement", words="[/x] :bug:")
    (told := tmp_path / "negative_reinforcement" / "smoke" / "verdict.json").write_text(
        json.dumps(verdicts.document() | {"words": "said [/x] [bold]so"})
    )
    told.parent.rename(told.parent.with_name("[x]"))
    assert command.main(["list", "--out", str(tmp_path)]) == 0
    assert "[x]: said [/x] [bold]so" in capsys.readouterr().out


def test_criteria_are_as_old_as_the_last_commit_that_changed_more_than_limits(tmp_path):
    file = tmp_path / "gains.py"
    versions = {
        "first": 'STUDY = Study(limits=("small",), bound=0.1)\n',
        "stated": 'STUDY = Study(limits=("small",), bound=0.2)\n',
        "limits": 'STUDY = Study(limits=("small", "one maze"), bound=0.2)\n',
        "layout": '# One maze.\nSTUDY = Study(\n    limits=("small", "one maze"),\n    bound=0.2,\n)\n',
    }

    def git(*arguments):
        who = ["-c", "user.name=somebody", "-c", "user.email=somebody@example.org"]
        done = subprocess.run(["git", "-C", tmp_path, *who, *arguments], capture_output=True, text=True, check=True)
        return done.stdout.strip()

    assert study.stated(file) == {"file": "studies/gains.py", "commit": "", "date": "", "dirty": False}
    git("init", "-q")
    commits = {}
    for name, text in versions.items():
        file.write_text(text)
        git("add", ".")
        git("commit", "-q", "-m", name)
        commits[name] = git("rev-parse", "HEAD")
        expected = "first" if name == "first" else "stated"
        assert study.stated(file)["commit"] == commits[expected]
        assert not study.stated(file)["dirty"]
    file.write_text(versions["first"])
    assert study.stated(file)["dirty"]
