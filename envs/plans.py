"""Plans: scratchpad tokens int32[K] written before the first move; they move nothing.

A plan is a string of directions and an end token, after which only end tokens follow. A plan that fills all K
tokens with directions is cut off. It is read as a way on the grid of cells: the cells that somebody would come to
who went from the start as it says and met no wall.
"""

import jax
import jax.numpy as jnp

from envs import tokens

END = 4
"""What a plan can say, as an index: 0 to 3 the directions, 4 the end."""

SAYINGS = (*tokens.MOVES, tokens.PLAN_END)
"""The token of each of the five."""


def indices(plan: jax.Array) -> jax.Array:
    """Indices 0 to 4, int32[K], of plan tokens int32[K]; whatever is no direction counts as the end."""
    action = plan - tokens.MOVES[0]
    return jnp.where((action >= 0) & (action < END), action, END)


def open_slots(plan: jax.Array) -> jax.Array:
    """Whether the plan was still open before each of its tokens, bool[K]: where there was a choice to make."""
    ended = (indices(plan) == END).astype(jnp.int32)
    return jnp.cumsum(ended) - ended == 0


def way(plan: jax.Array, start: jax.Array) -> jax.Array:
    """The cell that the plan has come to before each of its tokens, int32[K, 2]; it may leave the grid."""
    steps = jnp.array([*tokens.STEPS, (0, 0)], jnp.int32)[jnp.where(open_slots(plan), indices(plan), END)]
    return start[None] + jnp.cumsum(steps, axis=0) - steps


def advice(plan: jax.Array, start: jax.Array, cell: jax.Array) -> jax.Array:
    """What the plan says to do at a cell: one-hot float32[4], zeros where it says nothing.

    If the way passes the cell several times, what it says the last time.
    """
    says = open_slots(plan) & (indices(plan) != END)
    here = says & jnp.all(way(plan, start) == cell[None], axis=-1)
    last = here & (jnp.cumsum(here[::-1].astype(jnp.int32))[::-1] == 1)
    return jnp.sum(last[:, None] & (indices(plan)[:, None] == jnp.arange(4)[None]), axis=0).astype(jnp.float32)
