"""The personas: scripted demonstrators with exact probabilities of every action, plan and whole episode.

The functions with `traits` serve every world; `persona_log_probabilities` is their short form for a world without
plans. What the three do in the labyrinth is told in `envs.travellers`; this module has what they do in EmojiMaze.

A persona sees roles, not emoji: the model has to learn the language. Larry is impulsive, takes what glitters beside
him and else walks at random. Bob is careful, keeps off Mold and does not care for Gold. Alice is clever, remembers
the last turn and looks two tiles ahead. Each slips now and then, so that every action keeps some probability
and log-likelihood ratios stay finite. `greedy` and `random` are baselines, not personas.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from envs import base, labyrinth, maze, tokens, travellers
from envs.travellers import Traits

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
    """Exact action log-probabilities of all personas in one state of a world without plans, float32[personas, 4]."""
    return action_log_probabilities(env, state, no_plan(), params, Traits(slip=slip))


# One interface for both worlds. Where a world has no plans, a plan has no tokens.


def no_plan() -> jax.Array:
    """The plan of a world without plans, int32[0]."""
    return jnp.zeros(0, jnp.int32)


def action_log_probabilities(
    env: base.World, state: Any, plan: jax.Array, params: base.WorldParams, traits: Traits
) -> jax.Array:
    """Exact action log-probabilities of all personas in one state, float32[personas, 4].

    Args:
        env, state, params: the world and where the episode stands.
        plan: tokens int32[K] that the episode has; the persona that acts need not have written them.
        traits: of the personas; EmojiMaze's have only the `slip`.
    """
    if isinstance(env, labyrinth.EmojiLabyrinth):
        return travellers.log_probabilities(env, state, plan, params, traits)
    _check_plan_length(env, len(plan))
    scores = jnp.stack([persona(env, state, params) for persona in PERSONAS.values()])
    return log_probabilities(scores, traits.slip)


def write_plan(
    key: jax.Array,
    env: base.World,
    persona: jax.Array,
    state: Any,
    params: base.WorldParams,
    length: int,
    traits: Traits,
) -> jax.Array:
    """A plan of one persona (index int32[]) before the first move, tokens int32[length]; see `envs.plans`."""
    if isinstance(env, labyrinth.EmojiLabyrinth):
        return travellers.write(key, env, persona, state, params, length, traits)
    _check_plan_length(env, length)
    return no_plan()


def plan_log_probabilities(
    env: base.World, plan: jax.Array, state: Any, params: base.WorldParams, traits: Traits
) -> jax.Array:
    """Exact log-probability of a plan int32[K], before the first move, under each persona; float32[personas]."""
    if isinstance(env, labyrinth.EmojiLabyrinth):
        return travellers.plan_log_probabilities(env, plan, state, params, traits)
    _check_plan_length(env, len(plan))
    return jnp.zeros(len(PERSONAS), jnp.float32)


def _check_plan_length(env: base.World, length: int) -> None:
    if length:
        raise ValueError(f"plan_length={length}: {env.name} has no plans; use plan_length=0")


def log_posteriors(prior: jax.Array, plans: jax.Array, turns: jax.Array, played: jax.Array) -> jax.Array:
    """log q(i | τ), how likely each persona is to be the speaker, as the episode unfolds.

    Exact, because q(i | τ) = w_i π_i(τ) / Σ_j w_j π_j(τ) and log π_i(τ) is the sum of what the plan and each action
    have contributed: the chance of the world is the same for all and cancels.

    Args:
        prior: w float32[I], sums to 1.
        plans: log-probability of the plan under each persona, float32[..., I].
        turns: log-probability of each turn's action under each persona, float32[..., T, I].
        played: bool[..., T], False after the episode's end.

    Returns:
        float32[..., T + 1, I]: knowing the plan alone, then also the first t turns; the last is q(i | τ).
    """
    steps = jnp.where(played[..., None], turns, 0.0)
    evidence = jnp.concatenate([plans[..., None, :], steps], axis=-2)
    joint = jnp.cumsum(evidence, axis=-2) + jnp.log(jnp.expand_dims(prior, range(plans.ndim)))
    return jax.nn.log_softmax(joint, axis=-1)


Script = Callable[[Any, jax.Array, Any, Traits], jax.Array]
"""State, plan, parameters, traits → action log-probabilities float32[4]."""


def scripts(env: Any) -> dict[str, Script]:
    """Baselines and personas of a world by name; the baselines never slip.

    In the labyrinth the greedy baseline knows the map: every move is on a shortest way to the goal.
    """

    def greedy_scores(state, params):
        if isinstance(env, labyrinth.EmojiLabyrinth):
            return _CERTAIN * env.shortest(state, env.cell(state.position)).astype(jnp.float32)
        return greedy(env, state, params)

    def persona(index: int) -> Script:
        return lambda state, plan, params, traits: action_log_probabilities(env, state, plan, params, traits)[index]

    found: dict[str, Script] = {
        "random": lambda state, plan, params, traits: jnp.full(4, -jnp.log(4.0), jnp.float32),
        "greedy": lambda state, plan, params, traits: jax.nn.log_softmax(greedy_scores(state, params)),
    }
    return found | {name: persona(index) for index, name in enumerate(PERSONAS)}
