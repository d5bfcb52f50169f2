"""The subnetwork alone: masks respected and the run repeated to the bit, planted agreement, the whole command."""

import dataclasses
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import train
from agents import runs
from agents.runs import config as configs
from agents.runs import stages
from analysis import __main__ as command
from analysis import estimates, masks, measures, subnetworks, weights
from analysis.figures.panels import Rows
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
    (whole, part), first = subnetworks.train(CONFIG, start, [everything(before), some])
    assert_same_bits(whole, full)
    moved = 0
    for name, x in weights.split(part).items():
        np.testing.assert_array_equal(x[~some[name]].view(np.uint32), before[name][~some[name]].view(np.uint32))
        moved += (x[some[name]] != before[name][some[name]]).sum()
    assert moved > 0.9 * sum(x.sum() for x in some.values())
    recorded = run.metrics("rl")["return"].to_numpy().reshape(-1, 4)[0]
    np.testing.assert_array_equal(first, [recorded.astype(np.float32)] * 2)


def test_another_seed_begins_with_other_returns(run, ends):
    other = dataclasses.replace(CONFIG, seed=1)
    _, first = subnetworks.train(other, ends[0], [everything(weights.split(ends[0]))])
    assert (np.abs(first[0] - run.metric("rl", "return")[0]) > 0).any()


def test_a_retraining_that_diverges_is_no_result(run, ends):
    start = ends[0]
    endless = dataclasses.replace(CONFIG.rl, value_weight=1e38)
    config = dataclasses.replace(CONFIG, rl=endless)
    mask = everything(weights.split(start))
    (result,), _ = subnetworks.train(config, start, [mask])
    assert all(np.isnan(x).all() for x in jax.tree.leaves(result))
    assert np.isnan(subnetworks.returns(config, [start, result], 1024)).tolist() == [[False] * 4, [True] * 4]
    near = subnetworks.agreement(mask, weights.split(start), weights.split(ends[1]), weights.split(result))
    assert all(np.isnan(x).all() for x in near.values())


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
    before, point = np.array([0.0, 1.0, 2.0, 3.0]), np.zeros(4)
    full, reached = before + np.array([7.0, 10.0, 10.0, 10.0]), before + np.array([3.5, 5.0, 5.0, 5.0])
    np.testing.assert_allclose(subnetworks.share_of_gain(before, full, reached, point), 0.5)
    few = before + np.array([0.0, 10.0, 0.0, 10.0])
    assert subnetworks.share_of_gain(before, full, few, point).mean() == pytest.approx(20 / 37)
    two = subnetworks.share_of_gain(before, full, few, np.array([0, 0, 1, 1]))
    np.testing.assert_allclose([two[:2].mean(), two[2:].mean()], [10 / 17, 0.5])
    lost = np.array([0.0, np.nan, 0.0, 0.0])  # one whose retraining has diverged
    rest = subnetworks.share_of_gain(before, full, few + lost, point)
    assert np.isnan(rest).tolist() == [False, True, False, False]
    assert np.nanmean(rest) == pytest.approx(10 / 27)
    uncertain = before + np.array([1.0, -1.0, 2.0, -1.5])  # a run that gained nothing has no share to give
    assert np.isnan(subnetworks.share_of_gain(before, uncertain, reached, point)).all()


def test_the_error_of_the_share_of_the_gain_is_that_of_other_members():
    generator = np.random.default_rng(0)
    full = generator.uniform(5, 15, (2000, 12))
    reached = full * 0.6 + generator.normal(size=full.shape)
    zeros, point = np.zeros(12), np.zeros(12)
    shares = [
        estimates.Estimate.of(subnetworks.share_of_gain(zeros, *x, point)) for x in zip(full, reached, strict=True)
    ]
    spread = np.std([share.mean for share in shares])
    assert np.mean([share.error for share in shares]) == pytest.approx(spread, rel=0.1)


def test_returns_are_those_of_the_summary_and_of_diverged_members_nan(run, ends):
    start, full = ends
    broken = jax.tree.map(np.array, full)
    broken["norm"]["scale"][2, 0] = np.nan
    found = subnetworks.returns(CONFIG, [start, full, broken], 1024)
    summary = run.summary()["return"]
    np.testing.assert_allclose(found[:2], [summary["before_rl"], summary["after_rl"]], atol=0.02)
    np.testing.assert_array_equal(np.isnan(found[2]), [False, False, True, False])


# The measurement


@pytest.fixture(scope="module")
def measured(run):
    return measures.subnetwork(run, members=3, density=0.2, draws=3)


def test_every_mask_is_trained_and_those_left_out_are_nan(run, measured):
    assert measured["member"].values.tolist() == [0, 1, 2, 3]
    assert measured["rl.learning_rate"].values.tolist() == [1e-3, 1e-3, 1e-2, 1e-2]
    assert np.isnan(measured["returns"].isel(member=3)).all()
    trained = measured.isel(member=slice(0, 3))
    assert trained["policy"].values.tolist() == ["before RL", "full run", "learned", "random", "complement", "smallest"]
    returns = trained["returns"]
    summary = run.summary()["return"]
    np.testing.assert_allclose(returns.sel(policy="before RL"), summary["before_rl"][:3], atol=0.02)
    np.testing.assert_allclose(returns.sel(policy="full run"), summary["after_rl"][:3], atol=0.02)
    assert trained["random_returns"].shape == (3, 3)
    np.testing.assert_allclose(returns.sel(policy="random"), trained["random_returns"].mean("draw"))
    for mask in ("learned", "random", "complement", "smallest"):
        beyond = returns.sel(policy=mask) - returns.sel(policy="random")
        np.testing.assert_allclose(trained["beyond_random"].sel(mask=mask), beyond)
        share = 0.8 if mask == "complement" else 0.2
        np.testing.assert_allclose(trained["density"].sel(mask=mask), share, atol=1e-3)
    assert np.isfinite(trained["inside_cosine"]).all()
    # The first update is played before anything is trained.
    np.testing.assert_array_equal(trained["first_difference"], 0)
    assert measured.attrs["devices"] == "as in the run"


def test_the_command_shows_what_was_measured_and_its_panels_are_whole(run, measured, capsys):
    options = ["--members", "3", "--density", "0.2", "--draws", "3", "--no-figures"]
    assert command.main(["subnetwork", str(run.path), *options]) == 0
    said = " ".join(capsys.readouterr().out.split()).replace("= ", "=")
    assert "learned" in said
    assert "rl.learning_rate=0.01" in said
    assert measures.subnetwork.panels is not None
    drawn = measures.subnetwork.panels({"run": measured})
    assert len(drawn) == 2 * 2  # points of the grid
    for panel in drawn:
        assert isinstance(panel, Rows)
        assert {len(estimate.values) for estimate in panel.estimates.values()} == {2}
        assert len(panel.marks) == 2


def test_a_member_that_has_diverged_is_left_out_in_its_place(run, measured, tmp_path):
    shutil.copytree(run.path, tmp_path / "run", ignore=shutil.ignore_patterns("analysis"))
    copy = runs.open(tmp_path / "run")
    table = copy.metrics("rl")
    loss = table["loss"].to_numpy().reshape(-1, 4).copy()
    loss[:, 1] = np.nan
    columns = {name: table[name].to_numpy().reshape(-1, 4) for name in ("return", "learning_rate")}
    copy.write_metrics("rl", 0, columns | {"loss": loss})
    found = measures.subnetwork(runs.open(copy.path), members=2, density=0.2, draws=3)
    assert found["member"].values.tolist() == [0, 2, 3]
    for name in ("returns", "inside_cosine", "first_difference"):
        np.testing.assert_array_equal(found[name].sel(member=[0, 2]), measured[name].sel(member=[0, 2]))
    assert np.isnan(found["returns"].sel(member=3)).all()


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
    assert command.main(["subnetwork", str(run.path), *options]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert words in said


def test_a_run_that_changed_nothing_or_lacks_rl_has_no_subnetwork(run, tmp_path, capsys):
    shutil.copytree(run.path, tmp_path / "run")
    copy = runs.open(tmp_path / "run")
    copy.save_parameters("rl", copy.parameters("pretrain"))
    assert command.main(["subnetwork", str(copy.path), "--definition", "bf16"]) == 2
    assert "--definition=bf16: none of the parameters of member 0; use --definition top" in capsys.readouterr().err
    shutil.rmtree(copy.path / "checkpoints" / "rl")
    with pytest.raises(runs.RunError, match="no checkpoint 'rl'"):
        measures.subnetwork(copy)
    quiet = tiny.changed(rl={"updates": 0})
    base = runs.create(tmp_path / "base", configs.to_dict(quiet), members=2)
    with pytest.raises(runs.RunError, match="has no RL to repeat"):
        measures.subnetwork(base)
