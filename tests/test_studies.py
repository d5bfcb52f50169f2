"""Studies: verdicts follow from bounds alone, runs are shared by what they are, and the command says what is wrong."""

import dataclasses
import json
from types import SimpleNamespace

import numpy as np
import pytest
from rich.console import Console

from agents import runs
from agents.runs import config as configs
from agents.runs.config import ConfigError
from studies import __main__ as command
from studies import claims, negative_reinforcement, store, study
from studies.claims import Criterion, Estimate, Question
from studies.study import Findings
from tests import tiny

QUIET = Console(quiet=True)


def estimate(low: float, high: float, members: int = 8) -> Estimate:
    return Estimate((low + high) / 2, low, high, members, "a number")


@pytest.mark.parametrize(
    ("side", "low", "high", "verdict"),
    [
        ("above", 0.6, 0.9, "supported"),
        ("above", 0.1, 0.4, "refuted"),
        ("above", 0.4, 0.6, "inconclusive"),
        ("below", 0.6, 0.9, "refuted"),
        ("below", 0.1, 0.4, "supported"),
        ("below", 0.5, 0.6, "inconclusive"),
        ("above", np.nan, np.nan, "inconclusive"),
    ],
)
def test_an_interval_on_one_side_of_the_bound_decides(side, low, high, verdict):
    assert Criterion("x", side, 0.5).verdict({"x": estimate(low, high)}) == verdict


def test_too_few_members_and_missing_estimates_decide_nothing():
    criterion = Criterion("x", "above", 0.5)
    assert criterion.verdict({"x": estimate(0.8, 0.9, members=claims.MEMBERS - 1)}) == "inconclusive"
    assert criterion.verdict({"y": estimate(0.8, 0.9)}) == "inconclusive"


def test_verdicts_come_together():
    assert claims.together([]) == "inconclusive"
    assert claims.together(["supported", "supported"]) == "supported"
    assert claims.together(["supported", "inconclusive"]) == "inconclusive"
    assert claims.together(["inconclusive", "refuted", "supported"]) == "refuted"


def test_only_leading_questions_decide_the_study():
    def question(name, bound, leading):
        return Question(name, "?", "", "", (Criterion("x", "above", bound),), leading)

    found = {"x": estimate(0.4, 0.6)}
    judged = claims.judge([question("first", 0.1, True), question("second", 0.9, False)], found)
    assert judged["verdict"] == "supported"
    assert [each["verdict"] for each in judged["questions"]] == ["supported", "refuted"]
    assert claims.judge([question("first", 0.1, True), question("second", 0.9, True)], found)["verdict"] == "refuted"
    json.dumps(judged)


def test_an_estimate_leaves_out_what_is_not_a_number():
    found = Estimate.of([1.0, 2.0, np.nan, 3.0], "a number")
    assert (found.mean, found.members, len(found.values)) == (2.0, 3, 4)
    assert 1.0 <= found.low < 2.0 < found.high <= 3.0
    alone = Estimate.of([1.0], "a number")
    assert alone.mean == 1.0
    assert np.isnan(alone.low)
    assert Estimate.of([np.nan], "a number").members == 0


TRAINS = pytest.mark.slow  # whole runs


@pytest.fixture(scope="module")
def shelf(tmp_path_factory):
    return store.Store(tmp_path_factory.mktemp("store") / "runs", QUIET)


SHORT = tiny.changed(rl={"updates": 1})
OTHER = tiny.changed(rl={"updates": 1, "clip_low": 0.1})


@TRAINS
def test_a_base_is_trained_once_for_all_who_share_it(shelf, monkeypatch):
    trained = []
    run_stage = store.train.stages.run_stage
    monkeypatch.setattr(
        store.train.stages,
        "run_stage",
        lambda run, stage, *rest: trained.append(stage.name) or run_stage(run, stage, *rest),
    )
    assert store.base_of(SHORT) == store.base_of(OTHER) == store.base_of(store.base_of(SHORT))
    assert store.base_of(SHORT).pretraining == SHORT.pretraining
    runs_made = [shelf.run(config) for config in (SHORT, OTHER)]
    assert trained == ["pretrain", "rl", "rl", "rl"]  # the base's own stage of RL has no updates
    assert len({run.path for run in runs_made}) == 2
    trained.clear()
    again = shelf.run(SHORT)
    assert not trained
    assert again.path == runs_made[0].path
    assert again.config == SHORT
    base = store.base_of(SHORT)
    assert "return" not in runs.open(shelf.path(base)).summary()
    assert "return" in shelf.run(base).summary()  # now that somebody asks


@TRAINS
def test_a_run_that_was_stopped_goes_on(shelf, monkeypatch):
    config = tiny.changed(rl={"updates": 1}, seed=5)
    path = shelf.path(config)
    base = shelf.run(store.base_of(config))
    stopped = runs.create(path, configs.to_dict(config), members=2)
    monkeypatch.setattr(store.train, "train", lambda *arguments: pytest.fail("trained anew"))
    finished = shelf.run(config)
    assert finished.path == stopped.path == path
    kernel = finished.parameters("pretrain")["value"]["kernel"]
    np.testing.assert_array_equal(kernel[0], base.parameters("pretrain")["value"]["kernel"][0])


@TRAINS
def test_a_run_under_a_wrong_name_is_refused(shelf):
    config = tiny.changed(rl={"updates": 1}, seed=9)
    shelf.run(SHORT).path.rename(shelf.path(config))
    with pytest.raises(ConfigError, match="holds another config than its name says; move it away"):
        shelf.run(config)


def test_members_with_bases_of_their_own_share_a_base_run_with_the_same_members():
    own = tiny.changed(pretrain={"shared": False})
    assert store.base_of(own).population.seeds == own.population.seeds
    assert store.base_of(own) != store.base_of(dataclasses.replace(own, seed=1))


def passes_like(gain: float, spread: float = 0.01, members: int = 8) -> dict[str, Estimate]:
    """Estimates as if NSR gained `gain` at many attempts and ended as far above PSR."""
    rng = np.random.default_rng(0)
    values = gain + spread * rng.standard_normal((members, 32))
    made = negative_reinforcement._over_both(values, "gain")
    less = negative_reinforcement._over_both(-values, "less")
    return {"many_attempts_gained_by_nsr": made, "many_attempts_psr_less_nsr": less}


@pytest.mark.parametrize(
    ("gain", "spread", "members", "verdict"),
    [
        (0.1, 0.01, 8, "supported"),
        (-0.1, 0.01, 8, "refuted"),
        (0.0, 0.9, 8, "inconclusive"),
        (0.1, 0.01, 2, "inconclusive"),
    ],
)
def test_a_planted_effect_of_punishment_is_found(gain, spread, members, verdict):
    found = passes_like(gain, spread, members)
    assert claims.judge(negative_reinforcement.STUDY.questions, found)["verdict"] == verdict


@pytest.mark.parametrize("name", command.NAMES)
def test_every_study_is_whole(name):
    found = command.find(name)
    assert found.name == name
    assert any(question.leading for question in found.questions)
    assert len({question.name for question in found.questions}) == len(found.questions)
    for scale in study.SCALES:
        arms = found.arms(scale)
        for config in arms.values():
            configs.check(config)
        assert len({runs.config_hash(configs.to_dict(config)) for config in arms.values()}) == len(arms)
    assert all(len(config.members) >= 8 for config in found.arms("laptop").values())


@TRAINS
def test_a_study_leaves_what_it_promises(tmp_path, monkeypatch):
    values = np.linspace(0.1, 0.4, 8)

    def draw(findings, headline, stem, footer):
        stem.with_suffix(".png").write_bytes(b"picture")
        assert headline == "Planted: supported"
        return [stem.with_suffix(".png")]

    planted = study.Study(
        "planted", "Planted", "It rises.", "nobody", "None.", ("Everything.",),
        (Question("q", "Does it?", "yes", "no", (Criterion("gain", "above", 0.0),), leading=True),),
        lambda scale: {"one": SHORT},
        lambda shelf, made, scale: Findings(
            {"gain": Estimate.of(values, "gain"), "none": Estimate.of([np.nan], "nothing")},
            {"points": {"x": [1, 2], "y": [0.5, np.nan]}}, "a picture",
        ),
        draw,
    )  # fmt: skip
    document = study.run(planted, "smoke", tmp_path, QUIET)
    written = json.loads((tmp_path / "planted" / "smoke" / "verdict.json").read_text())
    assert written["verdict"] == document["verdict"] == "supported"
    assert written["estimates"]["gain"]["values"] == pytest.approx(values.tolist())
    assert written["estimates"]["none"] == {
        "mean": None, "members": 0, "meaning": "nothing", "values": [None], "control": "", "interval": None,
    }  # fmt: skip
    assert (tmp_path / written["runs"]["one"]["path"] / "summary.json").exists()
    assert (tmp_path / "planted" / "smoke" / "data" / "points.csv").read_text() == "x,y\n1,0.5\n2,nan\n"
    assert {"git", "packages", "device", "config_hash", "limits", "alt", "command"} <= set(written)


def test_a_study_does_not_judge_arms_that_have_lost_members(tmp_path, monkeypatch):
    lost = SimpleNamespace(path=tmp_path, summary=lambda: {"diverged": {"member 3 (seed 3)": "update 9 of rl"}})
    monkeypatch.setattr(store.Store, "run", lambda self, config: lost)
    with pytest.raises(runs.RunError, match=r"member 3 \(seed 3\) diverged in update 9 of rl; a study needs every"):
        study.run(negative_reinforcement.STUDY, "smoke", tmp_path, QUIET)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "which command?; choose one of list, run"),
        (["draw"], "draw: no such command"),
        (["run", "negative_reinforcment"], "no such study; did you mean negative_reinforcement?"),
        (["run", "negative_reinforcement", "--scale", "huge"], "--scale"),
        (["run"], "NAME"),
    ],
)
def test_a_wrong_command_gets_one_line(arguments, message, capsys):
    assert command.main(arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_the_list_tells_the_last_verdict(tmp_path, capsys):
    folder = tmp_path / "negative_reinforcement" / "laptop"
    folder.mkdir(parents=True)
    (folder / "verdict.json").write_text('{"verdict": "refuted"}')
    assert command.main(["list", "--out", str(tmp_path)]) == 0
    assert "last verdict: laptop refuted" in " ".join(capsys.readouterr().out.split())
