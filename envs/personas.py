"""The personas: scripted demonstrators with exact action probabilities.

A persona sees roles, not emoji: the model has to learn the language. Larry is impulsive, takes what glitters beside
him and else walks at random. Bob is careful, keeps off Mold and does not care for Gold. Alice is clever, remembers
the last turn and looks two tiles ahead. Each slips now and then, so that every action keeps some probability
and log-likelihood ratios stay finite. `greedy` and `random` are baselines, not personas.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from envs import base, maze, tokens

SLIP = 0.05
"""Chance that a persona's action is drawn uniformly from the four directions instead."""

ALICE_TEMPERATURE = 0.5
"""Differences in expected reward below this leave Alice undecided; a Gold tile is worth 20."""

ALICE_MEMORY = 1
"""Turns that Alice looks back."""

_CERTAIN = 100.0

Policy = Callable[[Any, Any, Any], jax.Array]
"""World, state, parameters → scores of the actions, float32[4]; actions are drawn from the scores' softmax."""


def larry(env: maze.EmojiMaze, state: maze.MazeState, params: maze.MazeParams) -> jax.Array:
    """Impulsive: Gold if one is beside him, else anywhere."""
    return jnp.where(env.neighbours(state, params) == tokens.GOLD, _CERTAIN, 0.0)


def bob(env: maze.EmojiMaze, state: maze.MazeState, params: maze.MazeParams) -> jax.Array:
    """Careful: anywhere but Mold."""
    return jnp.where(env.neighbours(state, params) != tokens.MOLD, _CERTAIN, 0.0)


def alice(env: maze.EmojiMaze, state: maze.MazeState, params: maze.MazeParams) -> jax.Array:
    """Clever: what the next tile pays, plus the best that the tile after it is expected to pay.

    For the tile after next she uses what she sees now and saw a turn ago; any other tile may be Gold or Mold with
    the shares of the average maze. The tile she stands on is worth what it will be by then: Mold.
    """
    steps = jnp.array(tokens.STEPS, jnp.int32)
    near = state.position[None] + steps
    far = near[:, None] + steps[None]
    seen = env.seen(state, far, ALICE_MEMORY)
    known = env.roles(state, far, params)
    back = jnp.all(far == state.position[None, None], axis=-1)

    mold = params.mold_range.mean()
    gold = mold * params.gold_ratio
    is_gold = jnp.where(back, 0.0, jnp.where(seen, (known == tokens.GOLD).astype(jnp.float32), gold))
    is_mold = jnp.where(back, 1.0, jnp.where(seen, (known == tokens.MOLD).astype(jnp.float32), mold))
    some_gold = 1 - jnp.prod(1 - is_gold, axis=-1)
    all_mold = jnp.prod(is_mold, axis=-1)

    def pays(role: int) -> jax.Array:
        return params.rewards[role] - params.rewards[tokens.PATH]

    later = some_gold * pays(tokens.GOLD) + all_mold * pays(tokens.MOLD)
    return (params.rewards[env.neighbours(state, params)] + later) / ALICE_TEMPERATURE


def greedy(env: maze.EmojiMaze, state: maze.MazeState, params: maze.MazeParams) -> jax.Array:
    """The one-step planner: the tile that pays best."""
    return _CERTAIN * params.rewards[env.neighbours(state, params)]


def random(env: maze.EmojiMaze, state: maze.MazeState, params: maze.MazeParams) -> jax.Array:
    """Anywhere."""
    return jnp.zeros(4, jnp.float32)


PERSONAS: dict[str, Policy] = {"Larry": larry, "Bob": bob, "Alice": alice}
"""The personas by name; `tokens.BADGES[1 + i]` is the badge of the i-th."""

BASELINES: dict[str, Policy] = {"random": random, "greedy": greedy}
"""Policies to compare with."""


def log_probabilities(scores: jax.Array, slip: float | jax.Array) -> jax.Array:
    """Log-probabilities float32[..., 4]: the scores' softmax with 1 - slip, any direction with slip."""
    return jnp.log((1 - slip) * jax.nn.softmax(scores, axis=-1) + slip / 4)


def persona_log_probabilities(
    env: base.World, state: base.WorldState, params: base.WorldParams, slip: float | jax.Array = SLIP
) -> jax.Array:
    """Exact action log-probabilities of all personas in one state, float32[personas, 4]."""
    scores = jnp.stack([persona(env, state, params) for persona in PERSONAS.values()])
    return log_probabilities(scores, slip)
