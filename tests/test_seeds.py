"""Nothing that measures draws a maze that training has drawn."""

import ast
from pathlib import Path

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as some

from agents.learning import rollout
from agents.runs import scripts
from ground import seeds
from tests import tiny

ROOT = Path(__file__).resolve().parent.parent


TRAITS = tiny.CONFIG.pretrain.traits
MAKERS = ("jax.random.key", "jax.random.PRNGKey", "jax.random.wrap_key_data", "np.random.seed")


def bits(keys: jax.Array) -> set[tuple[int, ...]]:
    return {tuple(row) for row in np.asarray(jax.random.key_data(keys)).reshape(-1, 2).tolist()}


def test_only_one_module_makes_keys():
    """But for shapes, which need no chance."""
    found = set()
    for path in [
        ROOT / "train.py",
        *(x for part in ("ground", "agents", "analysis", "studies") for x in (ROOT / part).rglob("*.py")),
    ]:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        shapes = {
            id(inner)
            for call in ast.walk(tree)
            if isinstance(call, ast.Call) and ast.unparse(call.func) == "jax.eval_shape"
            for inner in ast.walk(call)
        }
        for call in ast.walk(tree):
            name = ast.unparse(call) if isinstance(call, ast.Attribute) else ""
            if name in MAKERS and id(call) not in shapes:
                found.add(path.relative_to(ROOT).as_posix())
    assert found == {"ground/seeds.py"}


@given(some.integers(0, 2**31 - 1), some.integers(0, 2**31 - 1), some.sampled_from([*seeds.HELD.values(), 0, 1, 7]))
def test_branches_of_any_seed_are_apart(one, other, salt):
    trained = {bit for name in seeds.TRAINED for bit in bits(seeds.training((one, other), name, salt))}
    assert len(trained) == len(seeds.TRAINED) * len({one, other})
    held = set.union(*(bits(seeds.held_out(name, seed)) for name in seeds.HELD for seed in (one, other)))
    assert len(held) == len(seeds.HELD) * len({one, other})
    assert not trained & held


@pytest.mark.parametrize("default", ["rbg", "unsafe_rbg"])
def test_the_default_generator_changes_no_key(default):
    plain = bits(seeds.training((3, 4), "rl", 5)), bits(seeds.held_out("replay", 7))
    with jax.default_prng_impl(default):
        assert (bits(seeds.training((3, 4), "rl", 5)), bits(seeds.held_out("replay", 7))) == plain


@pytest.mark.slow
def test_training_and_evaluation_do_not_depend_on_the_default_generator(retraced):
    def earned():
        state, metrics = tiny.train_stage(tiny.CONFIG, "rl", chunks=1)
        world, params = tiny.CONFIG.world.make()
        return *jax.tree.leaves((state, metrics)), scripts.script_episodes(world, params, TRAITS, 64)[0].returns

    plain = earned()
    retraced()
    with jax.default_prng_impl("rbg"):
        for one, other in zip(plain, earned(), strict=True):
            np.testing.assert_array_equal(one, other)


def test_keys_of_measurements_stay_what_they_are():
    """Published numbers were measured on these mazes."""
    maze_keys, turn_key = scripts.mazes(4)
    assert bits(maze_keys[:1]) == {(1334543893, 2899026242)}
    assert bits(turn_key) == {(978163761, 208836081)}


@pytest.mark.slow
@pytest.mark.usefixtures("retraced")
@pytest.mark.parametrize("stage", ["pretrain", "rl"])
def test_training_never_draws_a_maze_of_the_evaluation(monkeypatch, stage):
    drawn: set[tuple[int, ...]] = set()
    play = rollout.play

    def watched(world, params, keys, *arguments, **options):
        jax.debug.callback(
            lambda data: drawn.update(map(tuple, data.reshape(-1, 2).tolist())), jax.random.key_data(keys)
        )
        return play(world, params, keys, *arguments, **options)

    monkeypatch.setattr(rollout, "play", watched)
    config = tiny.changed(pretrain={"shared": False})
    tiny.train_stage(config, stage)
    jax.effects_barrier()
    part = getattr(config, stage)
    assert len(drawn) == 2 * part.updates * part.episodes // getattr(part, "group", 1)
    held = bits(scripts.mazes(scripts.EPISODES)[0])
    assert len(held) == scripts.EPISODES
    assert not drawn & held
    for name in seeds.HELD:
        assert not drawn & bits(jax.random.split(seeds.held_out(name), 4096))
