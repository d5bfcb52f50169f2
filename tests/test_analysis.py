"""The commands that look inside, on a run of their own: what they write and print, and what they refuse."""

import json
import shutil

import jax
import numpy as np
import pyarrow.parquet as pq
import pytest

import train
from agents import runs
from analysis import __main__ as command
from analysis import extraction, findings, subject
from envs import tokens
from ground import checkpoints, files
from tests import tiny


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    config = tiny.changed(
        population={"tile_maps": "permuted", "seeds": 2},
        pretrain={"tile_maps": "balanced", "narration": 0.5, "updates": 4},
        rl={"updates": 2},
    )
    return train.train(config, tmp_path_factory.mktemp("runs") / "tiny")


def copy(run, tmp_path, name="copy"):
    return shutil.copytree(run.path, tmp_path / name)


def refused(capsys, arguments, *words):
    assert command.main([str(argument) for argument in arguments]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1, lines
    for word in words:
        assert word in lines[0]


@pytest.mark.slow
def test_concepts_writes_its_numbers_its_table_and_its_figures(run, tmp_path, capsys):
    path = copy(run, tmp_path)
    control = copy(run, tmp_path, "control")
    arguments = ["concepts", path, "--episodes", 120, "--play-episodes", 32, "--permutations", 19, "--against", control]
    assert command.main([str(x) for x in arguments]) == 0
    document = json.loads((path / "analysis" / "concepts.json").read_text())
    assert document["schema"] == 1
    assert document["members"] == 2
    whose = runs.open(path).config_hash
    assert document["config_hash"] == whose
    assert set(document["arms"]) == {"after RL", "before RL", "untrained"}
    assert document["controls"]["control"]["after RL"] == document["arms"]["after RL"]  # the same run, the same numbers
    for arm in document["arms"].values():
        cosine = arm["cosine"]["other_classes"]
        assert np.allclose(cosine["minimum_over_layers"]["members"], np.min(cosine["by_layer"], axis=1))
        assert np.allclose(cosine["mean_over_layers"]["mean"], np.mean(cosine["by_layer"]))
        assert -1 <= cosine["at_rule_layer"]["mean"] <= 1
        assert np.isfinite(arm["path_place"]["mean"])
        assert min(cosine["permuted_labels"]["p_members"]) >= cosine["permuted_labels"]["p_floor"] == 1 / 20
        assert set(arm["goal_tracking"]["axis"]) == {
            f"{site}_{outcome}" for site in ("view", "move") for outcome in ("next", "rest", "next_same_move")
        }
    assert document["rotation"]["update"] == [0, 1, 2]
    assert np.allclose(document["rotation"]["cosine_with_end"][-1], 1)
    assert document["layers"] == [1]

    table = pq.read_table(path / "analysis" / "concepts.parquet")
    assert table.schema.metadata[b"config_hash"] == whose.encode()
    rows = table.to_pylist()
    own = [row for row in rows if row["run"] == "" and row["arm"] == "after RL"]
    assert len(own) == 2 * 3 * 1
    for row in own:
        assert np.isclose(np.linalg.norm(row["vector"]), row["norm"], rtol=1e-5)
    gold, mold = (
        np.array(next(row["vector"] for row in own if row["concept"] == name and row["member"] == 0))
        for name in ("gold", "mold")
    )
    cosine = gold @ mold / np.linalg.norm(gold) / np.linalg.norm(mold)
    assert np.isclose(cosine, document["arms"]["after RL"]["cosine"]["other_classes"]["by_layer"][0][0], atol=1e-5)

    names = {f"concepts_{name}" for name in ("axis", "cosine", "tracking", "narrator", "lens", "trace", "rotation")}
    figures = {file.name for file in (path / "figures").iterdir()}
    assert {name + ending for name in names for ending in (".png", ".pdf")} <= figures
    said = capsys.readouterr().out
    assert "before RL" in said
    assert f"copy, config {whose}, 2 members" in said
    assert "−0.50" in said


@pytest.mark.slow
def test_steer_writes_its_numbers_and_its_figures(run, tmp_path, capsys):
    path = copy(run, tmp_path)
    arguments = ["steer", path, "--extraction-episodes", 120, "--episodes", 4, "--play-episodes", 4]
    arguments += ["--strengths", -1, 0, 2]
    assert command.main([str(x) for x in arguments]) == 0
    document = json.loads((path / "analysis" / "steer.json").read_text())
    for setting in document["settings"].values():
        for name, effects in setting["steering"].items():
            for effect, entry in effects.items():
                assert np.isclose(entry["by_strength"][1], setting["unsteered"][effect]["mean"], atol=1e-4), name
                swing = entry["by_strength"][2] - entry["by_strength"][0]
                assert np.isclose(entry["swing"]["mean"], swing, atol=1e-5)
    assert (path / "figures" / "steer_curves.png").exists()
    assert "unsteered" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sft", "arms"),
    [
        (2, ["after SFT", "before SFT", "untrained"]),
        pytest.param(0, ["the base", "untrained"], marks=pytest.mark.long),
    ],
)
def test_a_run_without_rl_is_not_said_to_have_any(tmp_path, capsys, sft, arms):
    config = tiny.changed(sft={"updates": sft, "chunk": 1, "episodes": 16}, rl={"updates": 0})
    path = train.train(config, tmp_path / "quiet").path
    small = ["--episodes", 120, "--play-episodes", 32, "--permutations", 9]
    assert command.main([str(x) for x in ["concepts", path, *small]]) == 0
    document = json.loads((path / "analysis" / "concepts.json").read_text())
    assert list(document["arms"]) == arms
    means = [part["norms"] if "norms" in part else part["cosine"] for part in document["arms"].values()]
    assert len({json.dumps(mean) for mean in means}) == len(arms)
    told = capsys.readouterr().out
    assert all(arm in told for arm in arms)
    assert "RL" not in told.replace("model, without RL", "")
    small = ["--extraction-episodes", 120, "--episodes", 4, "--play-episodes", 4, "--strengths", -1, 0, 2]
    assert command.main([str(x) for x in ["steer", path, *small]]) == 0
    settings = json.loads((path / "analysis" / "steer.json").read_text())["settings"]
    assert list(settings) == [arms[0], f"{arms[0]}, other emoji", *arms[1:-1]]


@pytest.mark.slow
def test_the_extraction_set_speaks_each_members_emoji(run):
    opened = subject.open(run.path)
    sets = findings.draw_sets(opened, 120, seed=0)
    for params in (jax.tree.map(lambda x, m=m: x[m], opened.params) for m in range(2)):
        told = np.asarray(extraction.retile(sets.training.tokens, sets.written, params.tile_map))
        for row, last, direction, role in zip(
            told, sets.training.last, sets.training.directions, sets.training.classes, strict=True
        ):
            assert row[last - 4 + direction] == params.tile_map[role]


def test_agreement_between_members_is_minus_a_fifth_for_what_is_an_emojis_own():
    # A direction of each emoji, and an axis that is Gold's emoji minus Mold's: over all orders of three emoji.
    emoji = np.eye(3)
    orders = np.array([[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]])

    class Arm:
        members = 6
        layer = np.zeros(6, int)
        tile_maps = orders
        axis = (emoji[orders[:, tokens.GOLD]] - emoji[orders[:, tokens.MOLD]])[:, None]

    pairs = findings.agreement(Arm())
    assert pairs is not None
    assert np.isclose(pairs["other_tiles"]["mean"], -1 / 5)


@pytest.mark.slow
def test_wrong_input_is_one_line_and_status_2(run, tmp_path, capsys):
    refused(capsys, [], "which analysis?", "concepts")
    refused(capsys, ["emotions"], "emotions", "concepts")
    for name in ("concepts", "steer"):
        refused(capsys, [name, tmp_path / "none"], "no such run directory")
    refused(capsys, ["concepts", run.path, "--episodes", 100], "--episodes=100", "multiple of 12")
    refused(capsys, ["concepts", run.path, "--permutations", 0], "--permutations=0")
    refused(capsys, ["concepts", run.path, "--play-episodes", 1], "--play-episodes=1")
    refused(capsys, ["steer", run.path, "--strengths", 1, 2, 3], "--strengths", "0 among them")
    assert not (run.path / "analysis").exists()


@pytest.mark.slow
def test_a_run_that_cannot_be_looked_at_is_named_and_left_alone(run, tmp_path, capsys):
    unfinished = copy(run, tmp_path, "unfinished")
    shutil.rmtree(unfinished / "checkpoints" / "rl")
    refused(capsys, ["concepts", unfinished], "no checkpoint 'rl'", "pretrain")

    broken = copy(run, tmp_path, "broken")
    tree = runs.open(broken).parameters("rl")
    tree = jax.tree.map(np.array, tree)
    tree["embedding"]["embedding"][1, 3, 3] = np.nan
    checkpoints.save(broken / "checkpoints" / "rl", tree)
    refused(capsys, ["concepts", broken], "['embedding']['embedding']", "member 1", "not finite")

    other = copy(run, tmp_path, "other")
    tree = jax.tree.map(np.array, runs.open(run.path).parameters("rl"))
    tree["value"]["kernel"] = tree["value"]["kernel"][:, :-1]
    checkpoints.save(other / "checkpoints" / "rl", tree)
    refused(capsys, ["concepts", other], "['value']['kernel']", "shape [15, 1]", "[16, 1]")

    bare = copy(run, tmp_path, "bare")
    document = files.read_json(bare / "config.json")
    document["config"]["world"]["gold_ratio"] = 0.0
    files.write_json(bare / "config.json", document, finite=False)
    refused(capsys, ["concepts", bare, "--episodes", 120], "class Gold", "gold_ratio=0")
    for path in (unfinished, broken, other, bare):
        assert not (path / "analysis").exists()
