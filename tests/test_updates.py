"""What changed in the parameters of tiny runs with planted updates, against a few lines of NumPy on the same files."""

import dataclasses
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from agents import runs
from agents.learning import learner
from agents.runs import config as configs
from analysis import __main__ as command
from analysis import changes, estimates, masks, measures, stretches
from analysis.figures import panels
from analysis.measures.updates import panels as drawn
from envs import tokens
from ground.files import RunError
from tests import tiny, untrained

BF16 = jnp.bfloat16.dtype
NORMS = ("attention_norm", "mlp_norm")
PPO = {"updates": 4, "epochs": 2, "minibatches": 2}
SWEPT = tiny.changed(
    rl=PPO,
    pretrain={"updates": 2, "chunk": 2},
    population={"seeds": 4, "sweep": ("rl.learning_rate=1e-4,1e-2",)},
)


def planted(directory, config, dtype=np.float32, scales=(0.0, 3e-4, 1e-3), diverged=None):
    """A run directory as training leaves it, but with updates of known sizes: init, pretrain, rl-000002, rl."""
    run = runs.create(directory, configs.to_dict(config), members=len(config.members))
    tree = jax.tree.map(np.asarray, config.make_policy().init(jax.random.key(0)))
    generator = np.random.default_rng(0)
    generate = generator.normal

    def moved(x, scale):
        step = scale * generate(size=(run.members, *x.shape[1:])) * (generator.random(x.shape[1:]) < 0.5)
        return (x.astype(np.float32) + step.astype(np.float32)).astype(dtype)

    tree = jax.tree.map(lambda x: (x[None] + 0.01 * generate(size=(1, *x.shape))).astype(dtype), tree)
    run.save_parameters("init", tree)
    tree = jax.tree.map(lambda x: (x + 0.1).astype(dtype), tree)
    run.save_parameters("pretrain", tree)
    for name, scale in zip(("rl-000002", "rl"), scales[1:], strict=True):
        tree = jax.tree.map(lambda x, scale=scale: moved(x, scale), tree)
        run.save_parameters(name, tree)
    for stage, part in (("pretrain", config.pretrain), ("rl", config.rl)):
        rate = [member.values.get(f"{stage}.learning_rate", part.learning_rate) for member in config.members]
        rates = np.broadcast_to(np.array(rate, np.float32), (part.updates, run.members))
        loss = np.where((np.arange(run.members) == diverged) & (stage == "rl"), np.nan, np.ones_like(rates))
        run.write_metrics(stage, 0, {"learning_rate": rates, "loss": loss.astype(np.float32)})
    return run


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    return planted(tmp_path_factory.mktemp("runs") / "swept", SWEPT)


@pytest.fixture(scope="module")
def updates(swept):
    return measures.updates(swept).isel(checkpoint=0)


def leaves(run, name):
    """Every parameter of each member, [M, n]."""
    return np.concatenate(
        [np.asarray(x).reshape(run.members, -1) for x in jax.tree.leaves(run.parameters(name))], axis=1
    )


def test_fractions_are_those_of_a_few_lines_of_numpy(swept, updates):
    before, after = leaves(swept, "pretrain"), leaves(swept, "rl")
    rough = [x.astype(BF16).astype(np.float32) for x in (before, after)]
    found = updates.sel(kind="all")
    assert found["parameters"] == before.shape[1]
    np.testing.assert_allclose(found["changed_bf16"], (rough[0] != rough[1]).mean(axis=1), rtol=1e-12)
    np.testing.assert_allclose(
        found["paper"], (np.abs(rough[1] - rough[0]) > np.float32(1e-5)).mean(axis=1), rtol=1e-12
    )
    limit = np.float32(1e-3) * np.maximum(np.abs(before), np.abs(after))
    np.testing.assert_allclose(found["relative"], (np.abs(after - before) > limit).mean(axis=1), rtol=1e-12)
    squares = np.sort(np.square(after.astype(np.float64) - before), axis=1)[:, ::-1].cumsum(axis=1)
    held = [(row < 0.9 * row[-1]).sum() + 1 for row in squares]
    np.testing.assert_allclose(found["holding_90"], np.array(held) / before.shape[1], rtol=1e-12)
    curve = found["curve"].sel(view="stored", scale="absolute")
    np.testing.assert_allclose(curve[0], found["changed_stored"])
    np.testing.assert_allclose(curve[-1], (np.abs(after - before) > 1).mean(axis=1), rtol=1e-12)


def test_kinds_and_the_use_of_tokens(swept, updates):
    used = [tokens.VOCABULARY.index(emoji) for emoji in updates.attrs["used_tokens"].split()]
    assert set(tokens.MOVES) | set(tokens.TILE_MAP[:3]) | {tokens.NULL_BADGE, tokens.CALM} <= set(used)
    assert not {*tokens.BADGES[1:], *tokens.UNSEEN_TILES, tokens.EXPLOIT} & set(used)
    width = SWEPT.policy.width
    assert updates["parameters"].sel(kind="embedding_used") == len(used) * width
    assert updates["parameters"].sel(kind="embedding_unused") == (tokens.FIRST - len(used)) * width
    rows = [np.asarray(swept.parameters(name)["embedding"]["embedding"])[:, used] for name in ("pretrain", "rl")]
    changed = np.mean(rows[0].astype(BF16) != rows[1].astype(BF16), axis=(1, 2))
    np.testing.assert_allclose(updates["changed_bf16"].sel(kind="embedding_used"), changed, rtol=1e-12)
    # The kind and the matrix of one name are two things: all scales of norms, and those of the last.
    norms = [
        np.concatenate(
            [np.asarray(x["norm"]["scale"]), *(np.asarray(x["blocks"][n]["scale"])[:, 0] for n in NORMS)], axis=1
        )
        for x in (swept.parameters("pretrain"), swept.parameters("rl"))
    ]
    np.testing.assert_allclose(updates["changed_stored"].sel(kind="norm"), (norms[0] != norms[1]).mean(axis=1))


def test_matrices_add_up_to_all_parameters(swept, updates):
    sizes = changes.sizes(stretches.read(swept, "rl").before)
    assert len(sizes) == 10  # the embedding in two, six in the block, the last norm, the value head
    counts = updates["by_matrix"].sel(measure="changed_bf16").transpose("matrix", "member")
    total = sum(counts.sel(matrix=name).values * size for name, size in sizes.items())
    everything = updates.sel(kind="all")
    np.testing.assert_allclose(total, everything["changed_bf16"] * everything["parameters"], rtol=1e-9)


def test_a_swept_population_is_told_point_by_point(swept, updates):
    columns = estimates.columns({"run": measures.updates(swept)})
    assert list(columns) == ["rl, rl.learning_rate=0.0001", "rl, rl.learning_rate=0.01"]
    for rate, (point, dataset), first in zip((1e-4, 1e-2), columns.items(), (0, 4), strict=True):
        assert dataset["member"].values.tolist() == list(range(first, first + 4)), point
        # Four updates of two passes over two minibatches, from the metrics.
        np.testing.assert_allclose(dataset["learning_rate_sum"], 16 * rate, rtol=1e-6)
        weights = np.median(np.abs(leaves(swept, "pretrain")), axis=1)[first : first + 4]
        ratio = dataset["learning_rate_sum_over_median_weight"].sel(kind="all")
        np.testing.assert_allclose(ratio, 16 * rate / weights, rtol=1e-6)


def test_overlaps_are_those_of_the_masks_of_one_point(swept):
    before, after = leaves(swept, "pretrain"), leaves(swept, "rl")
    mask = before.astype(BF16) != after.astype(BF16)
    pairs = np.array([[(a & b).sum() / (a | b).sum() for a in mask] for b in mask])
    found = measures.overlaps(swept).isel(checkpoint=0).sel(mask="changed_bf16", kind="all")
    np.testing.assert_allclose(found["pairs"], pairs, rtol=1e-12)
    for point in (slice(0, 4), slice(4, 8)):
        above = np.triu_indices(4, 1)
        assert found["seen"][point].mean() == pytest.approx(np.mean(pairs[point, point][above]))
        # The planted updates share half of the parameters and nothing of the sizes of matrices or weights.
        assert found["seen"][point].mean() > found["within_matrix"][point].mean() + 0.1
        excess = estimates.of(found["excess"][point])
        assert 0 < excess.low < excess.mean == pytest.approx((found["seen"] - found["weight_matched"])[point].mean())


@pytest.mark.parametrize(("shared", "orders"), [(True, "same"), (True, "permuted"), (False, "same")])
def test_one_base_is_not_compared_with_itself(shared, orders, tmp_path):
    pretrain = {"shared": shared, "tile_maps": "balanced"}
    config = tiny.changed(pretrain=pretrain, population={"seeds": 8, "tile_maps": orders})
    found = measures.overlaps(untrained.write(tmp_path / "run", config), ["pretrain", "rl"], since="init")
    found = found.sel(kind="all", mask="farthest_10_percent")
    for name in ("seen", "excess", "shares"):
        assert np.isfinite(found[name].sel(checkpoint="rl")).all()
        assert (np.isnan(found[name].sel(checkpoint="pretrain")) == shared).all()
    assert (found["pairs"].sel(checkpoint="pretrain") == 1).all() == shared


def test_a_stretch_walks_through_the_checkpoints_between(swept, updates):
    stretch = stretches.read(swept, "rl")
    assert stretch.since == "pretrain"
    assert len(list(stretch.course())) == 3
    course = updates["course"].sel(kind="all")
    for view, name in (("stored", "changed_stored"), ("bf16", "changed_bf16")):
        np.testing.assert_allclose(course.sel(view=view, state="changed"), updates[name].sel(kind="all"), rtol=1e-12)
        np.testing.assert_allclose(course.sel(view=view).sum("state"), 1.0)
    start, middle, last = (leaves(swept, name) for name in ("pretrain", "rl-000002", "rl"))
    cancelled = ((middle != start) & (last == start)).mean(axis=1)
    np.testing.assert_allclose(course.sel(view="stored", state="touched_and_cancelled"), cancelled)


def test_all_checkpoints_are_measured_by_one_program(swept, tmp_path):
    run = runs.open(shutil.copytree(swept.path, tmp_path / "run", ignore=shutil.ignore_patterns("analysis")))
    measures.updates(run, ["rl"])
    programs = changes._over_members._cache_size()
    found = measures.updates(run, "all")
    assert changes._over_members._cache_size() == programs
    assert found["checkpoint"].values.tolist() == ["init", "pretrain", "rl-000002", "rl"]
    assert found["update"].values.tolist() == [0, 2, 2, 4]
    changed = found["changed_stored"].sel(kind="all")
    assert (changed.sel(checkpoint="pretrain") == 0).all()
    assert (changed.sel(checkpoint="init") == 1).all()  # everything moved by 0.1
    np.testing.assert_array_equal(changed.sel(checkpoint="rl"), measures.updates(run)["changed_stored"][0, -1])
    rates = found["learning_rate_sum"].isel(member=0).values
    np.testing.assert_allclose(rates, [2 * SWEPT.pretrain.learning_rate, 0, 8e-4, 16e-4], rtol=1e-6)
    assert "touched_and_cancelled" in found["state"]
    name = "touched and cancelled"
    shown = [panel for panel in drawn({"run": found}) if isinstance(panel, panels.Curves)]
    followed = [panel.curves[name].x.tolist() for panel in shown if name in panel.curves]
    assert followed == [[0, 2, 4]] * 2


def test_what_pretraining_and_rl_have_in_common_is_asked_member_by_member(swept):
    found = measures.overlaps(swept, against="init..pretrain").isel(checkpoint=0).sel(mask="changed_bf16", kind="all")
    before, after = leaves(swept, "pretrain"), leaves(swept, "rl")
    changed = (before.astype(BF16) != after.astype(BF16)).mean(axis=1)
    np.testing.assert_allclose(found["seen"], changed)  # pretraining has changed everything
    np.testing.assert_allclose(found["shares"].sel(compared="seen", share="o1"), 1)
    np.testing.assert_allclose(found["excess"], 0, atol=1e-12)


@pytest.mark.parametrize("name", ["updates", "overlaps", "spectra"])
def test_the_command_shows_every_point_and_its_panels_are_whole(swept, capsys, name):
    assert command.main([name, str(swept.path), "--no-figures"]) == 0
    said = " ".join(capsys.readouterr().out.split()).replace("= ", "=")
    assert "rl.learning_rate=0.0001" in said
    assert "rl.learning_rate=0.01" in said
    measurement = getattr(measures, name)
    arms = {"one": measurement(swept, ["rl-000002", "rl"]), "two": measurement(swept)}
    for panel in measurement.panels(arms) if measurement.panels else ():
        if isinstance(panel, panels.Rows):
            assert {len(estimate.values) for estimate in panel.estimates.values()} == {4}
        elif isinstance(panel, panels.Curves):
            assert {(len(curve.values), curve.values.shape[1]) for curve in panel.curves.values()} <= {(37, 4), (2, 4)}
        else:
            assert isinstance(panel, panels.Map)
            assert panel.values.shape == (len(panel.rows), len(panel.columns))
            assert np.isfinite(panel.values).sum() == 10


@pytest.fixture(scope="module")
def low(tmp_path_factory):
    """Two members stored in bfloat16, of which RL moved few parameters."""
    config = tiny.changed(rl=PPO, pretrain={"updates": 2, "chunk": 2}, policy={"parameter_dtype": "bfloat16"})
    return planted(tmp_path_factory.mktemp("runs") / "low", config, BF16, (0.0, 0.0, 1e-4))


def test_a_run_stored_in_bfloat16_between_chosen_checkpoints_against_itself(low):
    found = measures.updates(low, since="rl-000002").isel(checkpoint=0)
    everything = found.sel(kind="all")
    np.testing.assert_allclose(found["learning_rate_sum"], 2 * 4 * low.config.rl.learning_rate, rtol=1e-6)
    assert (found.attrs["since"], found.attrs["stored_dtype"]) == ("rl-000002", "bfloat16")
    for name in ("changed_bf16", "relative"):
        np.testing.assert_array_equal(everything[name], everything["changed_stored"])
    np.testing.assert_allclose(
        everything["changed_stored"], (leaves(low, "rl") != leaves(low, "rl-000002")).mean(axis=1)
    )
    assert everything["changed_bf16"].max() < 0.1
    overlap = measures.overlaps(low, since="rl-000002").isel(checkpoint=0).sel(kind="all")
    # Fewer moved than a tenth: nothing that stood still may count as having moved far.
    farthest, changed = (overlap["pairs"].sel(mask=mask).values for mask in masks.MASKS)
    np.testing.assert_array_equal(farthest, changed)
    assert np.isnan(estimates.of(overlap["excess"].sel(mask="changed_bf16")).low)  # two members have no interval
    against = measures.overlaps(low, since="rl-000002", against=str(low.path)).isel(checkpoint=0).sel(kind="all")
    np.testing.assert_allclose(against["pairs"].sel(mask="changed_bf16"), changed)
    np.testing.assert_allclose(np.diagonal(changed), 1.0)  # a member against itself
    np.testing.assert_allclose(against["seen"].sel(mask="changed_bf16"), changed.mean(axis=1))


def test_another_run_in_the_place_of_one_is_compared_anew(low, tmp_path):
    found = []
    for seed in (0, 1):
        config = dataclasses.replace(low.config, seed=seed)
        planted(tmp_path / "other", config, BF16, (0.0, 0.0, 1e-3 * (1 + seed)))
        found.append(measures.overlaps(low, against=str(tmp_path / "other"))["pairs"].sel(mask="changed_bf16"))
        again = measures.overlaps(low, against=str(tmp_path / "other"))["pairs"].sel(mask="changed_bf16")
        np.testing.assert_array_equal(again, found[-1])
        shutil.rmtree(tmp_path / "other")
    assert (found[0] != found[1]).any()


def test_the_scheduled_learning_rate_is_that_of_the_optimiser(tmp_path):
    config = tiny.changed(rl=PPO)
    run = planted(tmp_path / "run", config)
    total = PPO["updates"] * PPO["epochs"] * PPO["minibatches"]
    factors = np.array([learner.cosine(jnp.int32(step), total, 0.1) for step in range(total)], np.float64)
    per_update = factors.reshape(PPO["updates"], -1).mean(axis=1, keepdims=True) * 1e-3
    rates = np.broadcast_to(per_update, (PPO["updates"], 2))
    run.write_metrics("rl", 0, {"loss": np.ones_like(rates), "learning_rate": rates})
    for checkpoint, steps in (("rl", total), ("rl-000002", 8)):
        rate = stretches.read(run, checkpoint, "pretrain", used=[0]).learning_rate()
        np.testing.assert_allclose(rate, 1e-3 * factors[:steps].sum(), rtol=1e-6)
    back = stretches.read(run, "rl-000002", "rl", used=[0]).learning_rate()
    np.testing.assert_allclose(back, 1e-3 * factors[8:].sum(), rtol=1e-6)
    shutil.rmtree(run.path / "metrics")
    with pytest.raises(RunError, match="update 0 of rl is missing"):
        stretches.read(run, "rl", "pretrain", used=[0]).learning_rate()


def test_members_keep_their_numbers_where_one_has_diverged(swept, updates, tmp_path):
    run = planted(tmp_path / "lost", SWEPT, diverged=2)
    found, shape, overlap = (x(run).isel(checkpoint=0) for x in (measures.updates, measures.spectra, measures.overlaps))
    kept = [0, 1, 3, 4, 5, 6, 7]
    for dataset in (found, shape, overlap):
        assert dataset["member"].values.tolist() == kept
        assert dataset["seed"].values.tolist() == [0, 1, 3, 0, 1, 2, 3]
    assert overlap["other"].values.tolist() == kept
    np.testing.assert_array_equal(found["changed_bf16"], updates["changed_bf16"].sel(member=kept))
    pairs = measures.overlaps(swept)["pairs"].isel(checkpoint=0).sel(member=kept)
    np.testing.assert_array_equal(overlap["pairs"].sel(mask="changed_bf16"),
                                  pairs.sel(mask="changed_bf16", other=kept))  # fmt: skip


def refused(capsys, *arguments) -> str:
    assert command.main([str(argument) for argument in arguments]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    return said


def test_wrong_requests_end_in_one_line(low, swept, tmp_path, capsys):
    assert "no checkpoint 'sft'; there are init, pretrain" in refused(capsys, "updates", low.path, "--since", "sft")
    assert "no checkpoint '../rl'" in refused(capsys, "spectra", low.path, "--checkpoints", "../rl")
    assert "--since" in refused(capsys, "updates", low.path, "--sinse", "init")
    assert "no such run directory" in refused(capsys, "updates", tmp_path / "none")
    assert "no such run directory" in refused(capsys, "overlaps", low.path, "--against", tmp_path / "none")
    assert "no checkpoint 'x'" in refused(capsys, "overlaps", low.path, "--against", "x..rl")
    wide = planted(tmp_path / "wide", tiny.changed(rl=PPO, policy={"width": 32}))
    said = refused(capsys, "overlaps", swept.path, "--against", wide.path)
    assert f"--against {wide.path}: its policy has another shape" in said


def test_a_missing_stage_nan_and_a_foreign_checkpoint_are_refused(low, tmp_path, capsys):
    def copy(name):
        shutil.copytree(low.path, tmp_path / name, ignore=shutil.ignore_patterns("analysis", "figures"))
        return runs.open(tmp_path / name)

    run = copy("unfinished")
    shutil.rmtree(run.path / "checkpoints" / "rl")
    assert "no checkpoint 'rl'; there are init, pretrain, rl-000002" in refused(capsys, "updates", run.path)
    run = copy("broken")
    tree = jax.tree.map(np.array, run.parameters("rl"))
    tree["norm"]["scale"][1, 3] = np.nan
    run.save_parameters("rl", tree)
    assert "of member 1 is not finite" in refused(capsys, "updates", run.path)
    tree["norm"]["scale"] = tree["norm"]["scale"][:, :5]
    run.save_parameters("rl", tree)
    assert "has shape [5] where the run's policy has [16]" in refused(capsys, "updates", run.path)
    assert not (run.path / "analysis").exists()
