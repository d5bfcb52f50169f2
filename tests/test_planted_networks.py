"""What is written into networks by hand is found again: runs on disk, every measurement, estimates, answers.

Each study is tried on runs whose checkpoints hold the effect that it asks about, and on runs that hold the opposite.
"""

import dataclasses

import jax
import numpy as np
import pytest

from analysis import measures
from envs import tokens
from studies import __main__ as command
from studies import functional_welfare, negative_reinforcement, populations, questions
from tests import untrained
from tests.test_study_contract import OPTIONS, small

pytestmark = pytest.mark.slow  # every measurement of three studies


def planted(study, folder, plants, seed=0):
    """A run for each arm; `plants` of an arm: checkpoint → a function from the run's bases, and its run, to it."""
    trained = {}
    for arm, plan in plants.items():
        config = dataclasses.replace(small(populations.of(study.arms[arm]).config("smoke")), seed=seed)
        trained[arm] = run = untrained.write(folder / arm, config)
        bases = run.parameters("pretrain")
        for name, make in plan.items():
            run.save_parameters(name, make(bases, run))
    return trained


def answers(study, trained, only=None):
    """The estimates, and the answer to each question by its name."""
    used = only or study.options["smoke"]
    results = study.measure(trained, {name: OPTIONS[name] for name in used})
    judged = questions.judge(study.questions, results.estimates)["questions"]
    return results.estimates, {answer["name"]: answer["verdict"] for answer in judged}


# How many parameters change


def moved(share, by, seed=0):
    """The bases with exactly this share of each member's parameters moved; `share` of each point, or one for all."""

    def make(bases, run):
        leaves, structure = jax.tree.flatten(bases)
        flat = np.concatenate([leaf.reshape(run.members, -1) for leaf in leaves], axis=1)
        points = [member.values.get("rl.learning_rate", 0.0) for member in run.population]
        generator = np.random.default_rng(seed)
        order = generator.permutation(flat.shape[1])
        for member, point in enumerate(points):
            count = round((share if isinstance(share, float) else share[point]) * flat.shape[1])
            flat[member, order[:count]] += by * generator.choice([-1, 1], count)
        parts = np.split(flat, np.cumsum([leaf[0].size for leaf in leaves])[:-1], axis=1)
        shaped = [part.reshape(leaf.shape).astype(leaf.dtype) for part, leaf in zip(parts, leaves, strict=True)]
        return jax.tree.unflatten(structure, shaped)

    return make


@pytest.mark.parametrize(
    ("high", "low", "expected"),
    [
        (0.2, 0.1, {"band": "supported", "fewer_than_sft": "supported", "rate": "refuted", "overlap": "supported"}),
        (0.95, 0.7, {"band": "refuted", "fewer_than_sft": "refuted", "rate": "supported"}),
    ],
)
def test_changed_parameters_are_counted(tmp_path, high, low, expected):
    study = command.find("sparse_updates")
    share = dict(zip(populations.RATES["smoke"], (high, low), strict=True))
    trained = planted(study, tmp_path, {
        "ppo": {"rl-000001": moved(share, 0.01), "rl": moved(share, 0.5)},
        "sft": {"sft": moved(1.0, 0.03)},
    })  # fmt: skip
    estimates, found = answers(study, trained)
    assert estimates["changed, PPO where it learns least"].mean == pytest.approx(low, abs=1e-3)
    assert estimates["changed, by rate"].mean == pytest.approx(high - low, abs=2e-3)
    assert estimates["SFT on Alice less PPO at the same KL from the base"].mean == pytest.approx(
        1 - (high + low) / 2, abs=2e-3
    )
    assert {name: found[name] for name in expected} == expected


# What is solved in many attempts


def unchanged(bases, run):
    return bases


def sure(bases, run):
    """The bases, so sure of their first choice that they try nothing else."""
    return {**bases, "norm": {"scale": bases["norm"]["scale"] * np.float32(1000)}}


def stubborn(bases, run):
    """Networks that go North, three times in four, whatever they have read."""
    tree = jax.tree.map(np.zeros_like, bases) | {"norm": bases["norm"]}
    tree["embedding"]["embedding"][:, :, 0] = 1.0
    tree["embedding"]["embedding"][:, tokens.MOVES[0], 0] = 1.5
    return tree


@pytest.mark.parametrize("narrow", ["psr", "nsr"])
def test_a_policy_that_tries_one_way_solves_less_in_many_attempts(tmp_path, narrow):
    study = command.find("negative_reinforcement")
    before = {"pretrain": stubborn, "rl-000001": stubborn}
    plants = {arm: before | {"rl": sure if arm == narrow else unchanged} for arm in ("psr", "nsr")}
    plants["ppo"] = {"rl": sure}
    estimates, _ = answers(study, planted(study, tmp_path, plants))
    more = estimates[negative_reinforcement.APART].mean
    assert more > 0.03 if narrow == "psr" else more < -0.03
    gained = {name: estimates[negative_reinforcement.GAINED.format(name)].mean for name in ("PSR", "NSR", "PPO")}
    assert min(gained, key=lambda name: gained[name]) == "PPO"
    assert (gained["NSR"] > gained["PSR"]) == (narrow == "psr")


@pytest.mark.parametrize(("narrow", "expected"), [("psr", "supported"), ("nsr", "refuted")])
def test_what_punishment_keeps_and_what_it_loses_is_told(tmp_path, narrow, expected):
    study = command.find("negative_reinforcement")
    plants = {arm: {"rl": sure if arm in (narrow, "ppo") else unchanged} for arm in ("ppo", "psr", "nsr")}
    estimates, _ = answers(study, planted(study, tmp_path, plants))
    (keeps,) = (question for question in study.questions if question.name == "nsr_keeps")
    everywhere = f"{negative_reinforcement.GAINED.format('NSR')}, all mazes"
    assert keeps.varied(everywhere).verdict(estimates) == expected
    if narrow == "nsr":
        assert estimates[everywhere].high < -0.1
    else:
        assert estimates[everywhere].mean == 0


def test_where_nothing_was_learnt_nothing_is_said_of_what_it_cost(tmp_path):
    study = command.find("negative_reinforcement")
    plants = {arm: {"rl-000001": unchanged, "rl": unchanged} for arm in ("psr", "nsr")} | {"ppo": {"rl": sure}}
    estimates, answered = answers(study, planted(study, tmp_path, plants))
    assert estimates[negative_reinforcement.GAINED.format("NSR")].mean == 0 == estimates["success, NSR less PSR"].mean
    assert set(answered.values()) == {"inconclusive"}
    assert estimates[negative_reinforcement.GAINED.format("PPO")].mean < -0.03


# Whether Gold and Mold lie at two ends of an axis


def sees(gold, mold, speaks=1):
    """Networks that add up Gold and Mold tiles along one direction, with these signs, and speak 😀 and 😞 along it."""

    def make(bases, run):
        tree = jax.tree.map(np.array, bases)
        embedding, blocks = tree["embedding"]["embedding"], tree["blocks"]
        width = embedding.shape[-1]
        along = np.random.default_rng(3).normal(size=(run.members, width)).astype(np.float32)
        along /= np.linalg.norm(along, axis=1, keepdims=True)
        embedding -= (embedding @ along[..., None]) * along[:, None]
        tile_maps = np.asarray(run.params.tile_map)
        for member, direction in enumerate(along):
            roles = {tokens.GOLD: gold, tokens.MOLD: mold, tokens.PATH: 0}
            signs = {int(tile_maps[member, role]): sign for role, sign in roles.items()}
            for token, sign in (signs | {tokens.GOOD: speaks, tokens.BAD: -speaks}).items():
                embedding[member, token] = sign * direction
        for layers in (
            blocks["attention"]["qkv"]["kernel"],
            blocks["attention"]["out"]["kernel"],
            blocks["down"]["kernel"],
        ):
            layers[:] = 0
        # The first block looks everywhere alike, and writes what it sees along the direction.
        blocks["attention"]["qkv"]["kernel"][:, 0, :, 2 * width :] = along[:, :, None] * along[:, None]
        blocks["attention"]["out"]["kernel"][:, 0] = 30 * along[:, :, None] * along[:, None]
        return tree

    return make


@pytest.mark.parametrize(("gold", "expected"), [(1, "supported"), pytest.param(-1, "refuted", marks=pytest.mark.long)])
def test_a_base_that_speaks_along_the_axis_is_moved_by_it_and_a_mute_one_is_not(tmp_path, gold, expected):
    study = command.find("functional_welfare")
    after = sees(gold, -gold)
    trained = planted(study, tmp_path, {
        "ppo": {"pretrain": sees(1, -1), "rl-000001": sees(1, -1), "rl": after},
        "unnarrated": {"pretrain": sees(1, -1, speaks=0), "rl-000001": after, "rl": after},
    })  # fmt: skip
    estimates, answered = answers(study, trained)
    asked = {question.name: question.verdict(estimates) for question in study.questions}
    assert (asked["moves"], asked["narration"], asked["opposed"]) == (expected, expected, "supported")
    mute = estimates[functional_welfare.PUSH.format("PPO, base without narrator: axis")]
    assert mute.mean == pytest.approx(0, abs=1e-3)
    assert estimates["cosine, PPO"].mean == pytest.approx(-1, abs=0.05)
    assert answered["moves"] == "inconclusive"  # nothing was learnt, so the gate is closed
    measured = measures.concepts(trained["ppo"], "rl", **OPTIONS["concepts"]).isel(checkpoint=0)
    if gold > 0:
        # Along the axis the narrator's logits move apart, and nobody else's.
        lens = measured["lens"] / abs(measured["lens"]).max("token")
        good, bad = (tokens.VOCABULARY[token] for token in (tokens.GOOD, tokens.BAD))
        assert float(measured["narrator"].sel(way="said").min()) > 0.95
        assert float((lens.sel(token=good) - lens.sel(token=bad)).min()) > 1.9
        assert float(abs(lens.sel(token=tokens.VOCABULARY[tokens.MOVES[0]])).max()) < 0.2


def test_gold_and_mold_on_one_side_of_path_are_not_opposed(tmp_path):
    study = command.find("functional_welfare")
    alike = sees(1, 1)
    trained = planted(study, tmp_path, {"ppo": {"pretrain": alike, "rl-000001": alike, "rl": alike}})
    estimates, _ = answers(study, trained)
    assert estimates["cosine, PPO"].mean == pytest.approx(1, abs=0.05)
    (opposed,) = (question for question in study.questions if question.name == "opposed")
    assert opposed.verdict(estimates) == "refuted"
