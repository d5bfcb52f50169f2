"""The personas in the labyrinth: what they write before the first move, and how they walk.

Larry points at the goal as the crow flies and walks that way, into walls too; after a bump he goes anywhere. Bob
writes down the open ways around him and walks with his right hand on the wall; he turns back only in a dead end and
keeps off Mold where he can. Alice writes a shortest way and follows it; where the plan says nothing, or she does not
heed it, she finds the shortest way with some skill and otherwise takes any open way but back. Where there are signposts
(view `signpost`), finding the way is heeding them: she goes as they say with that chance. The others ignore them.

All that they look at is in the prompt, the plan and the observations so far. Nobody ever wants a Gold wall. Each
slips now and then, so that every action and every plan keeps some probability.
"""

from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

from envs import corridors, plans, tokens
from envs.personas import ALICE, BOB, LARRY, Traits, slipping, uniform

if TYPE_CHECKING:
    from envs.labyrinth import EmojiLabyrinth, LabyrinthState


def _crow(state: "LabyrinthState", env: "EmojiLabyrinth", cell: jax.Array) -> jax.Array:
    """Directions straight at the goal along the greater distance, bool[4]; two if they are equal, none at the goal."""
    row, column = corridors.bearing(env.cell(state.goal) - cell)
    return jnp.stack([row < 0, column > 0, row > 0, column < 0])


def action_probabilities(env: "EmojiLabyrinth", state: "LabyrinthState", plan: jax.Array, params, traits: Traits):
    """Probabilities float32[3, 4] of the actions of Larry, Bob and Alice before they slip; see `log_probabilities`."""
    around = env.neighbours(state, params)
    safe = around != tokens.GOLD
    anywhere = uniform(safe, jnp.full(4, 0.25))
    passable = safe & (around != tokens.WALL)
    action = jnp.arange(4)
    ahead = (state.heading >= 0) & (action != (state.heading + 2) % 4)
    fresh = jnp.where(state.heading < 0, passable, passable & ahead)
    fresh = jnp.where(fresh.any(), fresh, passable)
    says = plans.advice(plan, env.cell(state.start), env.cell(state.position))
    following = jnp.asarray(traits.following, jnp.float32)

    def heed(persona: int, own: jax.Array, allowed: jax.Array) -> jax.Array:
        rate = following[persona] * jnp.sum(jnp.where(allowed, says, 0.0))
        return rate * says + (1 - rate) * own

    straight = uniform(_crow(state, env, env.cell(state.position)) & safe, anywhere)
    larry = jnp.where(state.met == tokens.WALL, anywhere, heed(LARRY, straight, safe))

    clean = passable & (around != tokens.MOLD)
    clean = jnp.where(clean.any(), clean, passable)
    onward = jnp.where((clean & fresh).any(), clean & fresh, clean)
    # Right, straight on, left, back, seen from the last move.
    turn = jnp.where(state.heading < 0, 0, (state.heading + 1 - action) % 4)
    rank = jnp.where(onward, turn, 4)
    hand = uniform(onward & (rank == rank.min()), anywhere)
    wander = uniform(onward, anywhere)
    own = traits.steadiness * hand + (1 - traits.steadiness) * wander
    bob = jnp.where(state.time == 0, heed(BOB, own, onward), own)

    ways = env.signpost(state) if env.view == "signpost" else env.shortest(state, env.cell(state.position))
    clever = uniform(ways, anywhere)
    alice = heed(ALICE, traits.skill * clever + (1 - traits.skill) * uniform(fresh, anywhere), passable)
    return jnp.stack([larry, bob, alice])


def log_probabilities(
    env: "EmojiLabyrinth", state: "LabyrinthState", plan: jax.Array, params, traits: Traits
) -> jax.Array:
    """Exact action log-probabilities of the three, float32[3, 4], in one state.

    A persona that heeds its plan does what the plan says of the cell it stands on (`plans.advice`): Larry whatever
    it says, unless he has just bumped; Bob before the first move alone, and only along a way he would take; Alice
    where no wall blocks it.
    """
    wanted = action_probabilities(env, state, plan, params, traits)
    return slipping(wanted, env.neighbours(state, params) == tokens.GOLD, traits.slip)


def _saying_probabilities(
    env: "EmojiLabyrinth",
    state: "LabyrinthState",
    params,
    traits: Traits,
    cell: jax.Array,
    slot: jax.Array,
    first: jax.Array,
    last: jax.Array,
) -> jax.Array:
    """Probabilities float32[3, 5] of what Larry, Bob and Alice say in a slot of their plans.

    Args:
        env, state, params, traits: the episode before its first move.
        cell: int32[2], where the plan has come to.
        slot: int32[], tokens before.
        first, last: int32[], the first and the last of them, 0 to 3.
    """
    end = jnp.array([0.0, 0.0, 0.0, 0.0, 1.0])

    def say(choices):
        return uniform(jnp.append(choices, False), end)

    around = env.neighbours(state, params)
    opened = (around != tokens.WALL) & (around != tokens.GOLD)
    turn = (jnp.arange(4) - first) % 4
    later = jnp.where(opened & (turn > (last - first) % 4), turn, 4)
    bob = jnp.where(slot == 0, opened, (later == later.min()) & (later < 4))
    wanted = jnp.stack([say(_crow(state, env, cell)), say(bob), say(env.shortest(state, cell))])
    return (1 - traits.plan_slip) * wanted + traits.plan_slip / 5


def write(
    key: jax.Array,
    env: "EmojiLabyrinth",
    persona: jax.Array,
    state: "LabyrinthState",
    params,
    length: int,
    traits: Traits,
) -> jax.Array:
    """A plan of `persona` (int32[], 0 to 2) for an episode before its first move, tokens int32[length].

    Larry's: towards the goal, always along the greater distance, then the end. Bob's: one of the open ways around
    him, then the others clockwise, then the end. Alice's: a shortest way, then the end; where two begin equally
    well, one of them. After a slip Larry and Alice go on from where the plan has come to.
    """

    def say(carry, slot_key):
        cell, slot, first, last, ended = carry
        chances = _saying_probabilities(env, state, params, traits, cell, slot, first, last)[persona]
        said = jax.random.categorical(slot_key, jnp.log(chances)).astype(jnp.int32)
        ended = ended | (said == plans.END)
        said = jnp.where(ended, plans.END, said)
        cell = cell + jnp.array([*tokens.STEPS, (0, 0)], jnp.int32)[said]
        first = jnp.where(slot == 0, said, first)
        return (cell, slot + 1, first, said, ended), said

    if length == 0:  # a scan of nothing needs a compiler
        return jnp.zeros(0, jnp.int32)
    start = (env.cell(state.start), jnp.int32(0), jnp.int32(0), jnp.int32(0), jnp.array(False))
    _, said = jax.lax.scan(say, start, jax.random.split(key, length))
    return jnp.array(plans.SAYINGS, jnp.int32)[said]


def plan_log_probabilities(
    env: "EmojiLabyrinth", plan: jax.Array, state: "LabyrinthState", params, traits: Traits
) -> jax.Array:
    """Exact log-probability of a plan, tokens int32[K], under each of the three, float32[3]."""
    if plan.shape[0] == 0:
        return jnp.zeros(3, jnp.float32)
    said = plans.indices(plan)
    cells = plans.way(plan, env.cell(state.start))
    slots = jnp.arange(len(plan))
    chances = jax.vmap(
        lambda cell, slot, last: _saying_probabilities(env, state, params, traits, cell, slot, said[0], last)
    )(cells, slots, jnp.roll(said, 1))
    chosen = jnp.sum(jnp.where((said[:, None] == jnp.arange(5)[None])[:, None], jnp.log(chances), 0.0), axis=-1)
    return jnp.sum(jnp.where(plans.open_slots(plan)[:, None], chosen, 0.0), axis=0)
