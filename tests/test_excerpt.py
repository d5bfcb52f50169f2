"""A run of one member: it is that member, and says so."""

import shutil

import jax
import numpy as np
import pytest

import train
from agents import runs
from agents.runs import config as configs
from agents.runs import excerpt
from analysis import __main__ as command
from analysis import measures
from ground.files import RunError
from ground.terminal import ConfigError
from tests import tiny, untrained

SWEPT = tiny.changed(
    pretrain={"shared": False}, population={"seeds": 2, "sweep": ("rl.learning_rate=1e-4,1e-3",)}, seed=5
)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return untrained.write(tmp_path_factory.mktemp("runs") / "run", tiny.changed(pretrain={"shared": False}))


@pytest.fixture(scope="module")
def own(run, tmp_path_factory):
    return runs.open(excerpt.write(run, 1, "rl", tmp_path_factory.mktemp("own") / "one").path)


def test_parameters_are_the_members_to_the_bit(run, own):
    theirs, its = run.kept_parameters("rl"), own.kept_parameters("rl")
    assert jax.tree.structure(theirs) == jax.tree.structure(its)
    for whole, one in zip(jax.tree.leaves(theirs), jax.tree.leaves(its), strict=True):
        np.testing.assert_array_equal(one, whole[1:])
        assert not np.array_equal(one, whole[:1]) or not np.ptp(whole)
    assert own.checkpoints() == ["rl"]


def test_it_knows_who_it_is(run, own):
    assert own.members == 1
    assert own.labels["seed"].tolist() == [1]
    assert own.labels["base"].tolist() == [1]
    assert own.config.bases[0] == run.config.base(run.config.members[1])
    assert own.config.pretraining == run.config.pretraining
    assert own.sessions() == run.sessions()


def test_what_it_earned_and_its_metrics(run, own):
    told, its = run.summary()["return"], own.summary()["return"]
    assert its == {
        "random": told["random"], "personas": told["personas"], "greedy": told["greedy"],
        "before_rl": [told["before_rl"][1]], "after_rl": [told["after_rl"][1]],
    }  # fmt: skip
    assert own.summary()["config_hash"] == own.config_hash != run.config_hash
    np.testing.assert_array_equal(own.metric("rl", "learning_rate"), run.metric("rl", "learning_rate")[:, 1:])
    assert own.diverged() == {}


def test_a_point_of_a_grid_becomes_the_config():
    config = excerpt.alone(SWEPT, 3)
    assert config == tiny.changed(
        pretrain={"shared": False}, population={"seeds": 1}, seed=6, rl={"learning_rate": 1e-3}
    )
    assert configs.from_dict(configs.to_dict(config)) == config


def test_permuted_emoji_are_refused():
    config = tiny.changed(population={"tile_maps": "permuted"}, pretrain={"tile_maps": "balanced"})
    assert excerpt.alone(config, 0).members[0].seed == 0
    with pytest.raises(ConfigError, match="emoji are permuted"):
        excerpt.alone(config, 1)


def test_what_is_not_there_is_refused(run, own, tmp_path):
    with pytest.raises(ConfigError, match="--member=2: the run has 0, 1"):
        excerpt.write(run, 2, "rl", tmp_path / "new")
    with pytest.raises(RunError, match="no checkpoint 'sft'"):
        excerpt.write(run, 0, "sft", tmp_path / "new")
    with pytest.raises(RunError, match="exists"):
        excerpt.write(run, 0, "rl", own.path)
    assert not (tmp_path / "new").exists()
    with pytest.raises(RunError, match="one member of another run has nothing to go on with"):
        train.resume(own.path)


def test_a_run_without_a_summary_gives_one_that_is_not_resumed_either(run, tmp_path):
    shutil.copytree(run.path, tmp_path / "run")
    (tmp_path / "run" / "summary.json").unlink()
    (tmp_path / "one").mkdir()
    (tmp_path / "link").symlink_to("one")
    its = excerpt.write(runs.open(tmp_path / "run"), 1, "rl", tmp_path / "link")
    assert "return" not in its.summary()
    with pytest.raises(RunError, match="one member of another run has nothing to go on with"):
        train.resume(tmp_path / "one")


def test_an_export_that_fails_leaves_nothing(run, tmp_path, monkeypatch):
    monkeypatch.setattr(runs.Run, "sessions", lambda run: object())
    with pytest.raises(RunError, match="sessions"):
        excerpt.write(run, 1, "rl", tmp_path / "one")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "text"),
    [
        *(("sessions.json", text) for text in ("{}", '{"sessions": 5}', '{"sessions": [5]}')),
        ("sessions.json", '{"sessions": [{"git": 5}]}'),
        ("sessions.json", '{"sessions": [{"seconds": {"rl": "x"}}]}'),
        *(("summary.json", text) for text in ("{}", "[", '{"schema": 1, "return": 5}', '{"schema": 1, "return": {}}')),
        ("summary.json", '{"schema": 1, "return": {"before_rl": [], "after_rl": []}}'),
    ],
)
def test_damaged_documents_are_one_line_and_a_resume_writes_the_summary_anew(run, tmp_path, monkeypatch, name, text):
    shutil.copytree(run.path, tmp_path / "run")
    (tmp_path / "run" / "checkpoints" / "state").mkdir()
    (tmp_path / "run" / name).write_text(text)

    def resume() -> None:
        train.resume(tmp_path / "run", evaluate=False)

    def export() -> None:
        excerpt.write(runs.open(tmp_path / "run"), 1, "rl", tmp_path / "one")

    for refuses in [export, resume] if name == "sessions.json" else [export]:
        with pytest.raises(RunError, match=rf"{name}: [^\n]*; restore it") as caught:
            refuses()
        assert "\n" not in str(caught.value)
    assert (tmp_path / "run" / name).read_text() == text
    assert not (tmp_path / "one").exists()
    if name == "summary.json":
        monkeypatch.setattr(train, "_run_stages", lambda *arguments: None)
        resume()
        export()


def test_one_member_whose_summary_is_damaged_is_not_trained_over(own, tmp_path):
    shutil.copytree(own.path, tmp_path / "one")
    (tmp_path / "one" / "summary.json").write_text("[")
    with pytest.raises(RunError, match=r"summary\.json: .*; restore it, or train again"):
        train.resume(tmp_path / "one")


def test_the_command(run, tmp_path, capsys):
    into = tmp_path / "models" / "maze"
    assert command.main(["export", str(run.path), "--to", "run", "--member", "1", "--into", str(into)]) == 0
    assert str(into) in capsys.readouterr().out.replace("\n", "")
    assert runs.open(into).labels["seed"].tolist() == [1]


@pytest.mark.slow
def test_it_is_measured_like_any_run(run, own):
    whole = measures.returns(run, ["rl"], episodes=256)["return"].isel(checkpoint=0)
    alone = measures.returns(own, ["rl"], episodes=256)["return"].isel(checkpoint=0)
    assert whole[1] != whole[0]
    np.testing.assert_allclose(alone[0], whole[1], rtol=1e-6)
