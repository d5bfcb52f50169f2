"""The command `updates` on a tiny run: its numbers against a few lines of NumPy on the same checkpoints."""

import io
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from agents import runs
from agents.learning import learner
from agents.runs import config as configs
from agents.runs.config import ConfigError
from analysis import __main__ as cli
from analysis import masks, subject
from analysis.commands import updates as command
from envs import tokens
from tests import tiny

BF16 = jnp.bfloat16.dtype
PPO = {"updates": 4, "epochs": 2, "minibatches": 2}
SWEPT = tiny.changed(
    rl=PPO,
    pretrain={"updates": 2, "chunk": 2},
    population={"seeds": 4, "sweep": ("rl.learning_rate=1e-4,1e-2",)},
)


def planted(directory, config, dtype=np.float32, scales=(0.0, 3e-4, 1e-3)):
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
        run.write_metrics(stage, 0, {"learning_rate": rates})
    return run


def analyse(run, **options):
    """Run the command; its document and what it told."""
    console = Console(width=100, record=True, file=io.StringIO())
    command.run(command.Command(run.path, **options), console)
    return json.loads((run.path / "analysis" / "updates.json").read_text()), console.export_text()


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    return planted(tmp_path_factory.mktemp("runs") / "swept", SWEPT)


@pytest.fixture(scope="module")
def analysed(swept):
    return analyse(swept)


def leaves(run, name):
    """Every parameter of each member, [M, n]."""
    return np.concatenate(
        [np.asarray(x).reshape(run.members, -1) for x in jax.tree.leaves(run.parameters(name))], axis=1
    )


def test_fractions_are_those_of_a_few_lines_of_numpy(swept, analysed):
    document, _ = analysed
    before, after = leaves(swept, "pretrain"), leaves(swept, "rl")
    rough = [x.astype(BF16).astype(np.float32) for x in (before, after)]
    found = document["fractions"]["all"]
    assert document["parameters"]["all"] == before.shape[1]
    np.testing.assert_allclose(found["changed_bf16"], (rough[0] != rough[1]).mean(axis=1), rtol=1e-12)
    np.testing.assert_allclose(
        found["paper"], (np.abs(rough[1] - rough[0]) > np.float32(1e-5)).mean(axis=1), rtol=1e-12
    )
    limit = np.float32(1e-3) * np.maximum(np.abs(before), np.abs(after))
    np.testing.assert_allclose(found["relative"], (np.abs(after - before) > limit).mean(axis=1), rtol=1e-12)
    squares = np.sort(np.square(after.astype(np.float64) - before), axis=1)[:, ::-1].cumsum(axis=1)
    held = [(row < 0.9 * row[-1]).sum() + 1 for row in squares]
    np.testing.assert_allclose(found["holding_90"], np.array(held) / before.shape[1], rtol=1e-12)
    ends = document["fractions_intervals"]["all"]["changed_bf16"]
    assert ends["low"] < ends["mean"] < ends["high"]
    assert ends["mean"] == pytest.approx(np.mean(found["changed_bf16"]))


def test_kinds_and_the_use_of_tokens(swept, analysed):
    document, _ = analysed
    used = [tokens.VOCABULARY.index(emoji) for emoji in document["used_tokens"]]
    assert set(tokens.MOVES) | set(tokens.TILE_MAP[:3]) | {tokens.NULL_BADGE, tokens.CALM} <= set(used)
    assert not {*tokens.BADGES[1:], *tokens.UNSEEN_TILES, tokens.EXPLOIT} & set(used)
    width = SWEPT.policy.width
    assert document["parameters"]["embedding_used"] == len(used) * width
    assert document["parameters"]["embedding_unused"] == (tokens.SIZE - len(used)) * width
    rows = [np.asarray(swept.parameters(name)["embedding"]["embedding"])[:, used] for name in ("pretrain", "rl")]
    changed = np.mean(rows[0].astype(BF16) != rows[1].astype(BF16), axis=(1, 2))
    np.testing.assert_allclose(document["fractions"]["embedding_used"]["changed_bf16"], changed, rtol=1e-12)


def test_a_swept_population_is_told_point_by_point(analysed):
    document, text = analysed
    assert [group["members"] for group in document["groups"]] == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert [group["label"] for group in document["groups"]] == ["rl.learning_rate=0.0001", "rl.learning_rate=0.01"]
    for group in document["groups"]:
        assert group["label"] in text
        values = np.array(document["fractions"]["kernel"]["relative"])[group["members"]]
        assert group["fractions"]["kernel"]["relative"]["mean"] == pytest.approx(values.mean())
        # Four updates of two passes over two minibatches, from the metrics.
        rate = float(group["label"].partition("=")[2])
        assert group["learning_rate_sum"] == pytest.approx(16 * rate)
        assert len(group["overlaps"]["changed_bf16"]["all"]["pairs"]) == 6


def test_overlaps_are_those_of_the_masks(swept, analysed):
    document, _ = analysed
    before, after = leaves(swept, "pretrain"), leaves(swept, "rl")
    mask = before.astype(BF16) != after.astype(BF16)
    pairs = [(mask[i] & mask[j]).sum() / (mask[i] | mask[j]).sum() for i in range(4) for j in range(i + 1, 4)]
    found = document["groups"][0]["overlaps"]["changed_bf16"]["all"]
    np.testing.assert_allclose(found["pairs"], pairs, rtol=1e-12)
    assert found["seen"]["jaccard"]["mean"] == pytest.approx(np.mean(pairs))
    # The planted updates share half of the parameters and nothing of the sizes of matrices or weights.
    assert found["seen"]["jaccard"]["mean"] > found["within_matrix"]["jaccard"] + 0.1
    assert found["excess"]["low"] > 0


def test_the_time_course_ends_where_the_fractions_do(analysed):
    document, _ = analysed
    course = document["time_course"]
    assert course["checkpoints"] == ["pretrain", "rl-000002", "rl"]
    for view, name in (("stored", "changed_stored"), ("bf16", "changed_bf16")):
        states = course[view]["all"]
        np.testing.assert_allclose(states["changed"][-1], document["fractions"]["all"][name], rtol=1e-12)
        np.testing.assert_allclose(np.sum([*states.values()], axis=0), 1.0)
        assert states["never_touched"][0] == [1.0] * 8


def test_stages_the_table_and_the_figures(swept, analysed):
    document, text = analysed
    assert [(stage["before"], stage["after"]) for stage in document["stages"]] == [
        ("init", "pretrain"),
        ("pretrain", "rl"),
    ]
    assert document["stages"][1]["fractions"] == document["fractions"]
    assert set(document["stages"][0]["fractions"]["all"]["changed_stored"]) == {1.0}  # everything moved by 0.1
    (between,) = document["between_stages"]
    assert len(between["overlaps"]["farthest_10_percent"]["all"]["pairs"]) == 8
    table = pq.read_table(swept.path / "analysis" / "updates.parquet")
    assert table.num_rows == 8 * 10  # the embedding in two, six in the block, the last norm, the value head
    assert table.group_by(["member", "matrix"]).aggregate([]).num_rows == table.num_rows
    counts = np.array(table["parameters"]) * np.array(table["changed_bf16"])
    total = [counts[np.array(table["member"]) == member].sum() for member in range(8)]
    expected = np.array(document["fractions"]["all"]["changed_bf16"]) * document["parameters"]["all"]
    np.testing.assert_allclose(total, expected, rtol=1e-9)
    for name in ("fraction", "matrices", "overlap", "course"):
        for ending in (".png", ".pdf"):
            assert (swept.path / "figures" / f"updates_{name}{ending}").stat().st_size > 5000
    assert "Jaccard" in text
    assert "embedded, unused" in text


@pytest.fixture(scope="module")
def low(tmp_path_factory):
    """Two members stored in bfloat16, of which RL moved few parameters."""
    config = tiny.changed(rl=PPO, pretrain={"updates": 2, "chunk": 2}, policy={"parameter_dtype": "bfloat16"})
    return planted(tmp_path_factory.mktemp("runs") / "low", config, BF16, (0.0, 0.0, 1e-4))


def test_a_run_stored_in_bfloat16_between_chosen_checkpoints_against_itself(low):
    document, text = analyse(low, before="rl-000002", after="rl", against=low.path)
    found = document["fractions"]["all"]
    assert document["learning_rate_sum"] == pytest.approx([2 * 4 * low.config["rl"]["learning_rate"]] * 2)
    assert document["time_course"]["checkpoints"] == ["rl-000002", "rl"]
    assert document["stored_dtype"] == "bfloat16"
    assert found["changed_stored"] == found["changed_bf16"] == found["relative"]
    np.testing.assert_allclose(found["changed_stored"], (leaves(low, "rl") != leaves(low, "rl-000002")).mean(axis=1))
    assert max(found["changed_bf16"]) < 0.1
    # Fewer moved than a tenth: nothing that stood still may count as having moved far.
    overlap = document["groups"][0]["overlaps"]
    assert overlap["farthest_10_percent"]["all"]["pairs"] == overlap["changed_bf16"]["all"]["pairs"]
    assert overlap["changed_bf16"]["all"]["seen"]["jaccard"]["low"] is None  # two members have no interval
    against = document["against"]["overlaps"]["changed_bf16"]["all"]["pairs"]
    np.testing.assert_allclose([against[0], against[3]], 1.0)  # a member against itself
    assert against[1] == against[2] == overlap["changed_bf16"]["all"]["pairs"][0]
    assert f"against {low.path}" in text


def test_the_scheduled_learning_rate_is_that_of_the_optimiser(tmp_path):
    config = tiny.changed(rl=PPO)
    run = planted(tmp_path / "run", config)
    total = PPO["updates"] * PPO["epochs"] * PPO["minibatches"]
    factors = np.array([learner.cosine(jnp.int32(step), total, 0.1) for step in range(total)], np.float64)
    per_update = factors.reshape(PPO["updates"], -1).mean(axis=1, keepdims=True) * 1e-3
    run.write_metrics("rl", 0, {"learning_rate": np.broadcast_to(per_update, (PPO["updates"], 2))})
    opened = subject.open(run.path)
    np.testing.assert_allclose(command.learning_rate(opened, ("pretrain", "rl")), 1e-3 * factors.sum(), rtol=1e-6)
    np.testing.assert_allclose(command.learning_rate(opened, ("pretrain", "rl-000002")), 1e-3 * factors[:8].sum())
    shutil.rmtree(run.path / "metrics")
    assert np.isnan(command.learning_rate(opened, ("pretrain", "rl"))).all()


def refused(capsys, *arguments) -> str:
    assert cli.main(["updates", *map(str, arguments)]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    return said


def test_wrong_requests_end_in_one_line(low, swept, tmp_path, capsys):
    assert "no checkpoint 'sft'; there are init, pretrain" in refused(capsys, low.path, "--after", "sft")
    assert "--after init" in refused(capsys, low.path, "--before", "rl", "--after", "init")
    assert "--after rl" in refused(capsys, low.path, "--before", "rl")
    assert "no such run directory" in refused(capsys, tmp_path / "none")
    assert "no such run directory" in refused(capsys, low.path, "--against", tmp_path / "none")
    wide = planted(tmp_path / "wide", tiny.changed(rl=PPO, policy={"width": 32}))
    assert f"--against {wide.path}: its policy has another shape" in refused(capsys, swept.path, "--against", wide.path)


def test_a_missing_stage_nan_and_a_foreign_checkpoint_are_refused(low, tmp_path, capsys):
    def copy(name):
        shutil.copytree(low.path, tmp_path / name, ignore=shutil.ignore_patterns("analysis", "figures"))
        return runs.open(tmp_path / name)

    run = copy("unfinished")
    shutil.rmtree(run.path / "checkpoints" / "rl")
    assert "no checkpoint 'rl'; there are init, pretrain, rl-000002" in refused(capsys, run.path)
    run = copy("broken")
    tree = jax.tree.map(np.array, run.parameters("rl"))
    tree["norm"]["scale"][1, 3] = np.nan
    run.save_parameters("rl", tree)
    assert "of member 1 is not finite" in refused(capsys, run.path)
    tree["norm"]["scale"] = tree["norm"]["scale"][:, :5]
    run.save_parameters("rl", tree)
    assert "has shape [5] where the run's policy has [16]" in refused(capsys, run.path)
    assert not (run.path / "analysis").exists()


def test_the_command_reads_like_the_others(low):
    with pytest.raises(ConfigError, match="bfore"):
        cli.options.read(command.Command, [str(low.path), "--bfore", "init"])
    assert masks.TOLERANCE == 1e-5
