"""The contract holds for both worlds, and is noticed when it is broken."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest

import envs
from envs import base, contract, labyrinth


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("EmojiMaze-v0", {"size": 7, "turns": 3, "shuffle": True, "wind_probability": 0.5, "narration": True}),
        pytest.param(
            "EmojiLabyrinth-v0",
            {"size": 2, "turns": 5, "view": "compass", "distance_range": (1, 1)},
            marks=pytest.mark.slow,
        ),
        pytest.param(
            "EmojiLabyrinth-v0", {"size": 3, "turns": 6, "view": "signpost", "plan_length": 2}, marks=pytest.mark.slow
        ),
        pytest.param(
            "EmojiMaze-v0",
            {"board": "MMMMM/M..$M/M$S.M/M.M.M/MMMMM", "turns": 4, "wind_probability": 0.5},
            marks=pytest.mark.slow,
        ),
        ("EmojiLabyrinth-v0", {"board": "#####/#S$.#/#.#.#/#..G#/#####", "turns": 5}),
        ("EmojiLabyrinth-v0", {"board": "#####/#S$.#/#.#.#/#..G#/#####", "turns": 5, "max_steps_in_episode": 3}),
        ("EmojiLabyrinth-v0", {"size": 3, "turns": 4, "view": "bump", "mold": 0.5, "exploits": 2, "narration": True}),
    ],
)
def test_the_worlds_keep_the_contract(name, options, key):
    envs.api_test(*envs.make(name, **options), key)


class Broken(labyrinth.EmojiLabyrinth):
    """Breaks the contract in one way; `options` leaves it out, so that it is made by the subclass."""


class Paying(Broken):
    """Pays after the end."""

    def step_env(self, key, state, action, params):
        obs, after, reward, terminated, info = super().step_env(key, state, action, params)
        return obs, after, reward + jnp.where(terminated, 1.0, 0.0), terminated, info


class Drifting(Broken):
    """Its prompt tells where the agent is now."""

    def prompt(self, state, params):
        return super().prompt(dataclasses.replace(state, start=state.position), params)


class Deaf(Broken):
    """Every key gives the same labyrinth."""

    def reset_env(self, key, params):
        return super().reset_env(jax.random.key(0), params)


class Widening(Broken):
    """A step changes a dtype of the state."""

    def step_env(self, key, state, action, params):
        obs, after, *rest = super().step_env(key, state, action, params)
        return obs, dataclasses.replace(after, met=after.met.astype(jnp.int32)), *rest


class Babbling(Broken):
    """Says tokens that are no emoji."""

    def observe(self, key, state, action, params):
        return super().observe(key, state, action, params) + 40


class Sure(Broken):
    """Its personas never do anything but go North."""

    def persona_log_probabilities(self, state, plan, params, traits):
        return jnp.log(jnp.zeros((3, 4)).at[:, 0].set(1.0))


class Speechless(Broken):
    """It has plans, and nobody who writes them."""

    write_plan, plan_log_probabilities = base.World.write_plan, base.World.plan_log_probabilities


class Lost(Broken):
    """Its replay shows the agent elsewhere."""

    def replay(self, states, **fields):
        return super().replay(dataclasses.replace(states, position=states.position[::-1]), **fields)


@pytest.mark.parametrize(
    ("world", "message"),
    [
        (Paying, "reward: a turn after the end pays"),
        (Drifting, "prompt by turn"),
        (Deaf, "other keys give the same episodes"),
        (Widening, "carry|changes a shape or dtype"),
        (Babbling, "token ids outside the vocabulary"),
        (Sure, "script_log_probabilities: a choice has probability 0"),
        (Speechless, r"write_plan: shape \(0,\) instead of \(2,\)"),
        (Lost, "replay: positions"),
    ],
)
def test_breaches_are_noticed(world, message, key):
    env = world(size=2, turns=5, view="bump", plan_length=2)
    with pytest.raises((contract.ContractError, TypeError), match=message):
        envs.api_test(env, env.default_params, key, scripted=world in (Sure, Speechless))
