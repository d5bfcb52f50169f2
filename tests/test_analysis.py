"""Concepts, tracking and steering of runs whose policies are drawn at random: what they say, print and refuse."""

import dataclasses
import json

import jax
import numpy as np
import pytest
import xarray as xr

from agents import runs
from agents.runs import config as configs
from analysis import __main__ as command
from analysis import extraction, measures
from analysis.figures.panels import Curves, Rows
from analysis.measure import REGISTRY, once
from analysis.measures.concepts import course
from envs import tokens
from envs.labyrinth import LabyrinthOptions
from ground import checkpoints
from ground.terminal import ConfigError
from tests import tiny

SMALL = {"episodes": 120, "permutations": 19}
STEERED = {"extraction_episodes": 120, "episodes": 4, "play_episodes": 4, "strengths": (2.0, -1.0, 0.0)}
CONFIG = tiny.changed(
    population={"tile_maps": "permuted", "seeds": 3}, pretrain={"tile_maps": "balanced", "narration": 0.5}
)


def make(folder, config=CONFIG, names=("rl-000001", "rl-000002", "rl")):
    """A run of no training: a base that all share, and members of their own at every other checkpoint."""
    run = runs.create(folder, configs.to_dict(config), members=len(config.members))
    init = jax.jit(config.make_policy().init)
    for name in ("init", "pretrain"):
        run.save_parameters(name, jax.tree.map(lambda x: 2 * x[None], init(jax.random.key(len(name)))))
    for step, name in enumerate(names):
        members = [init(jax.random.key(10 * step + index)) for index in range(run.members)]
        run.save_parameters(name, jax.tree.map(lambda *leaves: 2 * np.stack(leaves), *members))
    return run


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return make(tmp_path_factory.mktemp("runs") / "drawn")


@pytest.fixture(scope="module")
def found(run):
    return measures.concepts(run, "all", **SMALL)


def cosine(x, y):
    return np.sum(x * y, axis=-1) / np.linalg.norm(x, axis=-1) / np.linalg.norm(y, axis=-1)


def test_concepts_are_the_vectors_and_what_follows_from_them(run, found):
    again = measures.concepts(run, "all", **SMALL)
    assert list(again.data_vars) == list(found.data_vars)
    xr.testing.assert_equal(again, found)
    assert found["checkpoint"].values.tolist() == ["init", "pretrain", "rl-000001", "rl-000002", "rl"]
    assert found["vectors"].dtype == np.float32
    assert found["vectors"].dims == ("checkpoint", "member", "concept", "layer", "width")
    path, gold, mold = (found["vectors"].sel(concept=name).values for name in ("Path", "Gold", "Mold"))
    np.testing.assert_allclose(path + gold + mold, 0, atol=1e-5)
    by_rest, by_path = (found["cosine_by_layer"].sel(reference=name).values for name in ("other classes", "Path"))
    np.testing.assert_allclose(by_rest, cosine(gold, mold), atol=1e-5)
    np.testing.assert_allclose(by_path, cosine(gold - path, mold - path), atol=1e-4)
    for name in ("cosine", "auroc", "d", "overlap"):
        layer = found["rule_layer"] if name == "cosine" else found["concept_layer"]
        np.testing.assert_array_equal(
            found[name], found[f"{name}_by_layer"].sel(layer=layer).transpose(*found[name].dims)
        )
    axis = (gold - mold)[-1, :, 0]
    others = [np.mean([cosine(axis[m], axis[n]) for n in range(3) if n != m]) for m in range(3)]
    np.testing.assert_allclose(found["agreement"].sel(checkpoint="rl", tiles="others"), others, atol=1e-5)
    assert found["p"].min() >= 1 / 20
    less = (found["permuted"] <= found["cosine"]).sum("draw")
    np.testing.assert_allclose(found["p"], ((1 + less) / 20).transpose(*found["p"].dims))
    readout = run.parameters("rl")["embedding"]["embedding"][0] * run.parameters("rl")["norm"]["scale"][0]
    said = found["lens"].sel(checkpoint="rl", member=0, token=tokens.VOCABULARY[5])
    np.testing.assert_allclose(said, (gold - mold)[-1, 0, -1] @ readout[5], rtol=1e-4)
    share = np.sum((path - (gold + mold) / 2) * (gold - mold), axis=-1) * 2 / np.sum((gold - mold) ** 2, axis=-1)
    np.testing.assert_allclose(found["path_place"], share[..., 0], atol=1e-4)


def test_the_course_of_the_axis_is_seen_from_its_end(found):
    turned = course(found)
    assert turned["update"].values.tolist() == [0, 1, 2, 4]
    vectors = found["vectors"].values[1:, :, :, 0]
    axis = vectors[:, :, 1] - vectors[:, :, 2]
    np.testing.assert_allclose(turned["with_end"], cosine(axis, axis[-1:]), atol=1e-5)
    np.testing.assert_allclose(turned["norm"], np.linalg.norm(axis, axis=-1), rtol=1e-5)
    np.testing.assert_allclose(turned["opposition"], cosine(vectors[:, :, 1], vectors[:, :, 2]), atol=1e-5)


def test_twins_are_measured_once_and_count_once(tmp_path):
    config = dataclasses.replace(CONFIG, population=dataclasses.replace(CONFIG.population, tile_maps="same"))
    run = make(tmp_path / "twins", config, ["rl"])
    for name, first, copies in (("init", [0], [0, 0, 0]), ("pretrain", [0], [0, 0, 0]), ("rl", [0, 1, 2], [0, 1, 2])):
        np.testing.assert_array_equal(once(run, name)[0], first)
        np.testing.assert_array_equal(once(run, name)[1], copies)
    found = measures.concepts(run, **SMALL)
    for name in ("init", "pretrain"):
        part = found.sel(checkpoint=name)
        assert part["unit"].values.tolist() == [0, 0, 0]
        assert np.ptp(part["vectors"].values, axis=0).max() == 0
        assert np.isnan(part["agreement"]).all()
    after = found.sel(checkpoint="rl")
    assert after["unit"].values.tolist() == [0, 1, 2]
    assert np.ptp(after["vectors"].values, axis=0).max() > 0
    assert np.isfinite(after["agreement"].sel(tiles="the same")).all()


def test_a_diverged_member_is_left_out_and_the_others_keep_their_numbers(run, found, tmp_path):
    config = dataclasses.replace(CONFIG, population=dataclasses.replace(CONFIG.population, seeds=4))
    gone = make(tmp_path / "gone", config)
    gone.write_metrics("rl", 0, {"loss": np.array([[1.0, np.nan, 1.0, 1.0]])})
    part = measures.concepts(gone, ["pretrain", "rl"], **SMALL)
    assert part["member"].values.tolist() == [0, 2, 3]
    whole = found.sel(checkpoint=["pretrain", "rl"], member=[0, 2])
    for name in ("vectors", "cosine", "auroc_by_layer", "permuted", "narrator"):
        here = part[name].sel(member=[0, 2])
        np.testing.assert_allclose(here, whole[name], rtol=1e-3, atol=1e-5, err_msg=name)


def test_tracking_takes_its_directions_from_the_concepts(run, found):
    options = {"episodes": SMALL["episodes"], "play_episodes": 32}
    read = measures.tracking(run, ["pretrain", "rl"], **options)
    assert read["d"].dims == ("checkpoint", "member", "direction", "site", "outcome")
    np.testing.assert_array_equal(read["axis"], read["d"].sel(direction="axis"))
    np.testing.assert_array_equal(read["d"], read["d_by_layer"].sel(layer=1))
    own, before = (read["d"].sel(direction=name) for name in ("axis", "axis before"))
    np.testing.assert_array_equal(own.sel(checkpoint="pretrain"), before.sel(checkpoint="pretrain"))
    assert np.nanmax(np.abs(own - before).sel(checkpoint="rl")) > 1e-3
    np.testing.assert_allclose(read["landed"].sum("concept"), 1, rtol=1e-5)
    sizes = np.sort(np.abs(read["control_d"].sel(control="random", site="move", outcome="rest")), axis=-1)
    limit = read["limit"].sel(control="random", site="move", outcome="rest").values
    assert ((sizes > limit[..., None]).sum(axis=-1) == 4).all()  # 2.5 % of 128
    kept = {path.name.partition("-")[0] for path in (run.path / "analysis").iterdir()}
    assert kept == {"concepts", "tracking"}


@pytest.mark.slow
def test_steering_by_nothing_is_nothing(run):
    read = measures.steering(run, **STEERED)
    assert REGISTRY["steer"] is REGISTRY["steering"]
    assert read["strength"].values.tolist() == [-1, 0, 2]
    assert read["checkpoint"].values.tolist() == ["pretrain", "rl"]
    none = read["steered"].sel(strength=0)
    np.testing.assert_allclose(none, read["plain"].broadcast_like(none), rtol=1e-4, atol=1e-4)
    swing = read["steered"].sel(strength=2) - read["steered"].sel(strength=-1)
    np.testing.assert_allclose(read["swing"], swing, atol=1e-6)
    np.testing.assert_array_equal(read["axis"], read["swing"].sel(direction="axis"))
    drawn = read["random_swing"]
    assert drawn.sel(effect="return").notnull().sum("draw").values.tolist() == np.full((2, 3, 2), 16).tolist()
    np.testing.assert_allclose(drawn.mean("draw"), read["swing"].sel(direction="random"), atol=1e-4)
    np.testing.assert_allclose(np.abs(drawn).quantile(0.975, "draw"), read["limit"], rtol=1e-5)
    assert np.abs(read["plain"].sel(emoji="own") - read["plain"].sel(emoji="unseen")).max() > 1e-3
    panels = REGISTRY["steering"].panels
    assert panels is not None
    assert [list(panel.curves) for panel in panels({"x": read})] == [["axis", "path", "random"]] * 4
    units = read["unit"].isel(checkpoint=-1).values.tolist()
    drawn = [curve for panel in panels({"x": read}) for curve in panel.curves.values()]
    assert all(curve.units.tolist() == units for curve in drawn)  # members of one base are no interval
    swept = read.assign_coords(point=("member", ["a", "a", "b"]))
    names = [f"{point}, {name}" for point in ("a", "b") for name in ("axis", "path", "random")]
    assert [list(panel.curves) for panel in panels({"x": swept})] == [names] * 4


def test_panels_show_every_arm_checkpoint_and_course(run, found):
    for name in ("concepts", "tracking"):
        panels = REGISTRY[name].panels
        measured = found if name == "concepts" else measures.tracking(run, ["rl"], episodes=120, play_episodes=32)
        assert panels is not None
        shown = panels({"one": measured, "other": measured})
        assert all(isinstance(panel, (Rows, Curves)) for panel in shown)
        rows = shown[0]
        assert isinstance(rows, Rows)
        assert list(rows.estimates) == [
            f"{arm}, {at}" for arm in ("one", "other") for at in measured["checkpoint"].values
        ]
        if name == "concepts":
            assert [list(panel.curves) for panel in shown if isinstance(panel, Curves)] == [["one", "other"]] * 2
            swept = panels({"one": measured.assign_coords(point=("member", ["a", "a", "b"]))})
            assert [list(panel.curves) for panel in swept if isinstance(panel, Curves)] == [["a", "b"]] * 2
            first = next(iter(rows.estimates.values()))
            np.testing.assert_allclose(first.mean, measured["cosine"].isel(checkpoint=0).values[:, 0].mean(), rtol=1e-5)


def test_the_command_prints_and_writes_what_python_says(run, found, tmp_path, capsys):
    options = ["--episodes", "120", "--permutations", "19", "--checkpoints", "pretrain,rl", "--no-figures"]
    assert command.main(["concepts", str(run.path), *options, "--json", str(tmp_path / "numbers.json")]) == 0
    said = capsys.readouterr().out
    assert "cosine of Gold and Mold" in said
    assert "other classes" in said
    assert "vector" not in said
    document = json.loads((tmp_path / "numbers.json").read_text())["runs"]["drawn"]
    told = document["data_vars"]["cosine"]
    np.testing.assert_allclose(told["data"], found["cosine"].sel(checkpoint=["pretrain", "rl"]), rtol=1e-6)
    assert command.main(["tracking", str(run.path), "--episodes", "120", "--play-episodes", "32", "--no-figures"]) == 0
    said = capsys.readouterr().out
    assert "d of the axis (pooled standard deviations)" in " ".join(said.split())
    assert "move, next_same_move" in said


def test_the_extraction_set_speaks_each_members_emoji(run):
    sets = extraction.sets(run, 120, seed=0)
    assert extraction.sets(run, 120, seed=0) is sets
    for params in (jax.tree.map(lambda x, m=m: x[m], run.params) for m in range(2)):
        told = np.asarray(extraction.retile(sets.training.tokens, sets.written, params.tile_map))
        training = sets.training
        for row, last, direction, role in zip(told, training.last, training.directions, training.classes, strict=True):
            assert row[last - 4 + direction] == params.tile_map[role]


def refused(capsys, arguments, *words):
    assert command.main([str(argument) for argument in arguments]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1, lines
    for word in words:
        assert word in lines[0]


def test_wrong_input_is_one_line_and_status_2(run, tmp_path, capsys):
    for name in ("concepts", "tracking", "steer"):
        refused(capsys, [name, tmp_path / "none"], "no such run directory")
    refused(capsys, ["concepts", run.path, "--episodes", 100], "--episodes=100", "multiple of 12")
    refused(capsys, ["concepts", run.path, "--permutations", 0], "--permutations=0")
    refused(capsys, ["tracking", run.path, "--play-episodes", 1], "--play-episodes=1")
    with pytest.raises(ConfigError, match="--player=nobody: use itself, base"):
        measures.tracking(run, player="nobody")
    refused(capsys, ["steer", run.path, "--extraction-episodes", 100], "--extraction-episodes=100", "multiple of 12")
    refused(capsys, ["steer", run.path, "--strengths", 1, 2, 3], "--strengths", "0 among them")
    refused(capsys, ["steer", run.path, "--play-episodes", 0], "--play-episodes=0")


@pytest.mark.slow
def test_a_run_that_cannot_be_looked_at_is_named(tmp_path, capsys):
    unfinished = make(tmp_path / "unfinished", names=["rl-000001"])
    refused(capsys, ["concepts", unfinished.path], "no checkpoint 'rl'", "pretrain")

    broken = make(tmp_path / "broken", names=["rl"])
    tree = jax.tree.map(np.array, broken.parameters("rl"))
    tree["embedding"]["embedding"][1, 3, 3] = np.nan
    checkpoints.save(broken.path / "checkpoints" / "rl", tree)
    at = ["--checkpoints", "rl"]
    refused(capsys, ["concepts", broken.path, *at], "['embedding']['embedding']", "member 1", "not finite")
    tree["embedding"]["embedding"][1, 3, 3] = 0
    tree["value"]["kernel"] = tree["value"]["kernel"][:, :-1]
    checkpoints.save(broken.path / "checkpoints" / "rl", tree)
    refused(capsys, ["concepts", broken.path, *at], "['value']['kernel']", "shape [15, 1]", "[16, 1]")

    world = LabyrinthOptions(size=2, turns=3, view="bump")
    other = make(tmp_path / "labyrinth", tiny.changed(world=world), ["rl"])
    refused(capsys, ["concepts", other.path], "EmojiMaze-v0 alone")
    bare = make(tmp_path / "bare", tiny.changed(world={"gold_ratio": 0.0}), ["rl"])
    refused(capsys, ["concepts", bare.path, "--episodes", 120], "class Gold", "gold_ratio=0")
