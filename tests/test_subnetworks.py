"""The subnetwork alone: masks respected and the run repeated to the bit, planted agreement, the whole command."""

import dataclasses
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pyarrow.parquet as pq
import pytest
from rich.console import Console

import train
from agents import runs
from agents.runs import stages
from analysis import __main__ as analysis
from analysis import masks, subject, subnetworks, weights
from analysis.commands import subnetwork
from tests import tiny

pytestmark = pytest.mark.slow  # minutes of compiling on two cores

CONFIG = tiny.changed(
    rl={"weight_decay": 0.3}, population={"seeds": 2, "sweep": ("rl.learning_rate=1e-3,1e-2",), "microbatch": 4}
)


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> runs.Run:
    return train.train(CONFIG, tmp_path_factory.mktemp("runs") / "run")


@pytest.fixture(scope="module")
def ends(run):
    return tuple(run.parameters(name) for name in ("pretrain", "rl"))


def everything(matrices):
    return {name: np.ones(x.shape, bool) for name, x in matrices.items()}


def assert_same_bits(one, other):
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a.view(np.uint32), b.view(np.uint32)), one, other)


# Training


def test_a_mask_of_everything_repeats_the_run_and_others_hold_what_is_outside(run, ends):
    start, full = ends
    before = weights.split(start)
    some = masks.random({name: np.arange(x.size).reshape(x.shape) % 3 == 0 for name, x in before.items()}, seed=1)
    reports = []
    (whole, part), first = subnetworks.train(
        CONFIG, start, [everything(before), some], lambda *seen: reports.append(seen)
    )
    assert_same_bits(whole, full)
    moved = 0
    for name, x in weights.split(part).items():
        np.testing.assert_array_equal(x[~some[name]].view(np.uint32), before[name][~some[name]].view(np.uint32))
        moved += (x[some[name]] != before[name][some[name]]).sum()
    assert moved > 0.9 * sum(x.sum() for x in some.values())
    assert [done for done, _, _ in reports] == list(range(1, 9))
    assert reports[0][1]["return"].shape == (4, 1)
    recorded = run.metrics("rl")["return"].to_numpy().reshape(-1, 4)[0]
    np.testing.assert_array_equal(first, [recorded.astype(np.float32)] * 2)


def test_another_seed_is_noticed(run, ends):
    opened = subject.open(run.path)
    other = dataclasses.replace(CONFIG, seed=1)
    _, first = subnetworks.train(other, ends[0], [everything(weights.split(ends[0]))], lambda *_: None)
    assert subnetwork._repeats(opened, first)["first_returns_equal"] is False
    assert subnetwork._repeats(opened, first)["first_returns_difference"] > 0


@pytest.mark.parametrize(
    ("seeds", "members", "shape"), [(4, 3, (1, 1)), (4, 2, (2, 1)), (8, 6, (2, 1)), (1, 1, (1, 4))]
)
def test_fewer_members_are_the_first_and_share_episodes_as_all_did(seeds, members, shape):
    config = tiny.changed(population={"seeds": seeds // 2 or 1, "sweep": CONFIG.population.sweep if seeds > 1 else ()})
    whole, part = (stages.make_stage(config, "rl", members=count) for count in (None, members))
    assert part.members == members
    assert part.tokens_per_update * whole.members == whole.tokens_per_update * members
    assert tuple(part.program.mesh.shape.values()) == shape
    jax.tree.map(lambda x, y: np.testing.assert_array_equal(x[:members], y), whole.arguments, part.arguments)
    states = [stage.initial({"w": np.arange(float(stage.members))}) for stage in (whole, part)]
    jax.tree.map(lambda x, y: np.testing.assert_array_equal(x[:members], y), *states)
    assert len(np.unique(states[0].key, axis=0)) == whole.members // (2 if seeds > 1 else 1)


# Masks


@pytest.mark.parametrize("definition", ["top", "bf16", "paper"])
def test_learned_masks_find_what_was_planted(definition):
    generator = np.random.default_rng(0)
    before = {name: generator.uniform(1, 2, (2, 10, 10)).astype(np.float32) for name in ("a", "b")}
    planted = {name: generator.random((2, 10, 10)) < 0.2 for name in before}
    after = {name: np.where(planted[name], 1.5 * x, x) for name, x in before.items()}
    counts = [sum(int(x[member].sum()) for x in planted.values()) for member in range(2)]
    for member, count in enumerate(counts):
        found = subnetworks.learned(before, after, definition, count / 200)
        for name in before:
            np.testing.assert_array_equal(found[name][member], planted[name][member])


def test_arms_match_the_subnetwork_matrix_by_matrix():
    generator = np.random.default_rng(1)
    start = {"a": generator.normal(size=(3, 40, 5)).astype(np.float32), "b": generator.normal(size=(3, 30))}
    chosen = {"a": generator.random((3, 40, 5)) < 0.1, "b": generator.random((3, 30)) < 0.7}
    arms = subnetworks.arms(start, chosen, draws=3, seed=4)
    assert [name for name, _ in arms] == ["learned", "random", "random", "random", "complement", "smallest"]
    _, *randoms, complement, smallest = [mask for _, mask in arms]
    for name, mask in chosen.items():
        np.testing.assert_array_equal(mask ^ complement[name], True)  # all of them, and none twice
        for other in (*randoms, smallest):
            for member in range(3):
                assert other[name][member].sum() == mask[member].sum()
        for member in range(3):
            sizes, inside = np.abs(start[name][member]), smallest[name][member]
            assert sizes[inside].max() <= sizes[~inside].min()
        assert not np.array_equal(randoms[0][name], randoms[1][name])
    again = subnetworks.arms(start, chosen, draws=3, seed=4)
    np.testing.assert_array_equal(again[2][1]["a"], randoms[1]["a"])
    assert not np.array_equal(subnetworks.arms(start, chosen, 1, seed=5)[1][1]["a"], randoms[0]["a"])


# Measures


def test_agreement_is_counted_parameter_by_parameter():
    generator = np.random.default_rng(2)
    start = {"a": generator.normal(size=(2, 8, 5)).astype(np.float32), "b": generator.normal(size=(2, 60))}
    full = {name: x + generator.normal(scale=1e-4, size=x.shape) for name, x in start.items()}
    mask = {name: generator.random(x.shape) < 0.4 for name, x in start.items()}
    reached = {
        name: np.where(mask[name], full[name] + generator.choice([0, 5e-6, 5e-5, 5e-4], x.shape), x)
        for name, x in start.items()
    }
    found = subnetworks.agreement(mask, start, full, reached)
    for member in range(2):
        rows = [
            [float(x) for x in row]
            for name in start
            for row in zip(*(tree[name][member].ravel() for tree in (mask, start, full, reached)), strict=True)
        ]
        inside = [row for row in rows if row[0]]
        for place, values, column in (("inside", inside, 3), ("start", inside, 1), ("whole", rows, 3)):
            for label, limit in (("1e-5", 1e-5), ("1e-4", 1e-4)):
                expected = sum(abs(row[column] - row[2]) <= limit for row in values) / len(values)
                assert found[f"{place}_{label}"][member] == expected
            same = [float(jnp.bfloat16(row[column])) == float(jnp.bfloat16(row[2])) for row in values]
            assert found[f"{place}_bf16"][member] == np.mean(same)
        for place, values in (("inside", inside), ("whole", rows)):
            mine, theirs = ([row[column] - row[1] for row in values] for column in (3, 2))
            norms = sum(x * x for x in mine) ** 0.5 * sum(x * x for x in theirs) ** 0.5
            expected = sum(x * y for x, y in zip(mine, theirs, strict=True)) / norms
            np.testing.assert_allclose(found[f"{place}_cosine"][member], expected, rtol=1e-9)
        assert found["density"][member] == len(inside) / len(rows)
        assert found["moved"][member] == np.mean([row[3] != row[1] for row in inside])


def test_untrained_parameters_flatter_the_whole_and_not_the_inside():
    start = {"a": np.zeros((1, 100), np.float32)}
    full = {"a": np.full((1, 100), 1e-6, np.float32)}
    full["a"][0, :10] = 1.0
    mask = {"a": np.arange(100)[None] < 10}
    reached = {"a": np.where(mask["a"], np.float32(-1), 0)}  # the very opposite of what the run did
    found = {name: value[0] for name, value in subnetworks.agreement(mask, start, full, reached).items()}
    assert found["whole_1e-5"] == 0.9
    assert found["inside_1e-5"] == found["start_1e-5"] == 0.0
    np.testing.assert_allclose(found["inside_cosine"], -1)
    nothing = subnetworks.agreement({"a": mask["a"] & False}, start, full, start)
    assert all(np.isnan(nothing[name][0]) for name in ("inside_bf16", "inside_cosine", "moved", "whole_cosine"))


def test_the_share_of_the_gain_is_a_ratio_of_sums():
    before, strata = np.array([0.0, 1.0, 2.0, 3.0]), np.zeros(4, int)
    full, reached = before + np.array([1.0, 10.0, 10.0, 10.0]), before + np.array([0.5, 5.0, 5.0, 5.0])
    np.testing.assert_allclose(subnetworks.share_of_gain(before, full, reached, strata), 0.5)
    share, low, high = subnetworks.share_of_gain(before, full, before + np.array([0.0, 10.0, 0.0, 10.0]), strata)
    assert share == 20 / 31
    assert 0 <= low < share < high <= 1
    uncertain = before + np.array([1.0, -1.0, 2.0, -1.5])  # a run that gained nothing has no share to give
    assert np.isnan(subnetworks.share_of_gain(before, uncertain, reached, strata)).all()


def test_returns_are_those_of_the_summary_and_of_diverged_members_nan(run, ends):
    start, full = ends
    broken = jax.tree.map(np.array, full)
    broken["norm"]["scale"][2, 0] = np.nan
    found = subnetworks.returns(CONFIG, [start, full, broken], 1024)
    summary = run.summary()["return"]
    np.testing.assert_allclose(found[:2], [summary["before_rl"], summary["after_rl"]], atol=0.02)
    np.testing.assert_array_equal(np.isnan(found[2]), [False, False, True, False])


# The command


def test_the_command_writes_what_it_found(run, tmp_path, capsys):
    path = tmp_path / "run"
    shutil.copytree(run.path, path)
    assert analysis.main(["subnetwork", str(path), "--members", "3", "--density", "0.2", "--draws", "3"]) == 0
    shown = capsys.readouterr().out
    assert "equal the run's to the bit" in " ".join(shown.split())
    document = json.loads((path / "analysis" / "subnetwork.json").read_text())
    assert document["options"]["members"] == 3
    assert document["repeats"]["first_returns_equal"] is True
    assert document["repeats"]["same_devices"] is True
    assert list(document["returns"]) == ["before RL", "full run", "learned", "random", "complement", "smallest"]
    rows = pq.read_table(path / "analysis" / "subnetwork.parquet").to_pylist()
    assert len(rows) == 3 * (2 + 6)
    for arm, found in document["returns"].items():
        values = np.array([row["return"] for row in rows if row["arm"] == arm]).reshape(-1, 3).mean(axis=0)
        np.testing.assert_allclose(values, found["members"])
        np.testing.assert_allclose(values.mean(), found["mean"])
        assert found["interval"][0] <= found["mean"] <= found["interval"][1]
    assert {row["draw"] for row in rows if row["arm"] == "random"} == {0, 1, 2}
    assert [row["rl.learning_rate"] for row in rows[:3]] == [1e-3, 1e-3, 1e-2]
    assert rows[0]["density"] is None
    for row in rows[6:]:
        assert row["density"] == pytest.approx(0.8 if row["arm"] == "complement" else 0.2, abs=1e-3)
    full = run.summary()["return"]["after_rl"][:3]
    np.testing.assert_allclose(document["returns"]["full run"]["members"], full, atol=0.02)
    for ending in ("png", "pdf"):
        assert (path / "figures" / f"subnetwork.{ending}").stat().st_size > 10_000


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--members", "5"], "--members=5: the run has 4"),
        (["--members", "0"], "--members=0"),
        (["--density", "0"], "--density=0.0: use a share"),
        (["--density", "nan"], "--density=nan"),
        (["--density", "1e-9"], "--density=1e-09: none of the parameters of member 0"),
        (["--density", "0.999999"], "--density=0.999999: all of the parameters"),
        (["--draws", "0"], "--draws=0"),
        (["--seed", "-1"], "--seed=-1"),
        (["--episodes", "1000"], "--episodes=1000: use a multiple of 256, at least 1024"),
        (["--definition", "mine"], "definition"),
    ],
)
def test_bad_options_end_in_one_line(run, capsys, options, words):
    assert analysis.main(["subnetwork", str(run.path), *options]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert words in said
    assert not (run.path / "analysis").exists()


def test_a_run_that_changed_nothing_has_no_subnetwork(run, tmp_path, capsys):
    shutil.copytree(run.path, tmp_path / "run")
    copy = runs.open(tmp_path / "run")
    copy.save_parameters("rl", copy.parameters("pretrain"))
    assert analysis.main(["subnetwork", str(copy.path), "--definition", "bf16"]) == 2
    assert "--definition=bf16: none of the parameters of member 0; use --definition top" in capsys.readouterr().err
    shutil.rmtree(copy.path / "checkpoints" / "rl")
    with pytest.raises(runs.RunError, match="no checkpoint 'rl'"):
        subnetwork.run(subnetwork.Command(copy.path), Console(quiet=True))
