"""The personas in rooms with one-way doors: what they think before the first move, and which doors they take.

Larry thinks nothing, or of how one comes to where he is, and takes any open door; where he sees the goal behind one,
that one. Bob writes down the doors around him and explores: a door that he has not tried yet, away from
Mold where he can, and back when there is none. Alice writes the chain from the goal back to the start and takes the
door that it names for the room she stands in; where she has no thought, or does not heed it, she finds the right door
with some skill and otherwise does as Larry does. All thoughts are true, and only hers are of use.

All that they look at is in the prompt, the thought and the observations so far. Nobody ever wants a door of Gold. Each
slips now and then, so that every action and every thought keeps some probability.
"""

from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

from envs import personas, tokens
from envs.personas import ALICE, Traits

if TYPE_CHECKING:
    from envs.rooms import EmojiRooms, RoomsState

ROOMS, DOORS, END = 0, len(tokens.ROOMS), len(tokens.ROOMS) + len(tokens.DOORS)
"""Where the names, the doors and the end begin among what a thought can say, `EmojiRooms.plan_sayings`."""

STOPS = 0.25
"""Chance that Larry breaks off before each of his doors."""


def advice(plan: jax.Array, name: jax.Array) -> jax.Array:
    """The door that a thought int32[K] names for a room: one-hot float32[4], zeros where it says nothing.

    In a chain each room but the goal follows the door out of it. If it names a room several times, the last.
    """
    pairs = plan[1 : (len(plan) + 1) // 2 * 2 - 1].reshape(-1, 2)
    open = jnp.cumsum((pairs == tokens.PLAN_END).any(axis=1).astype(jnp.int32)) == 0
    door = pairs[:, 0] - tokens.DOORS[0]
    here = open & (pairs[:, 1] == name) & (door >= 0) & (door < len(tokens.DOORS))
    last = here & (jnp.cumsum(here[::-1].astype(jnp.int32))[::-1] == 1)
    return jnp.sum(last[:, None] & (door[:, None] == jnp.arange(4)[None]), axis=0).astype(jnp.float32)


def log_probabilities(env: "EmojiRooms", state: "RoomsState", plan: jax.Array, params, traits: Traits) -> jax.Array:
    """Exact action log-probabilities of the three, float32[3, 4], in one state."""
    met, doors, back = env.neighbours(state, params), env.doors(state), env.back(state)
    anywhere = personas.uniform(met != tokens.GOLD, jnp.full(4, 0.25))
    goal = doors & (met == tokens.GOAL)
    larry = personas.uniform(jnp.where(goal.any(), goal, doors), anywhere)

    untried = doors & ~back & ~state.tried[state.position[1]]
    clean = untried & (met != tokens.MOLD)
    untried = jnp.where(clean.any(), clean, untried)
    bob = personas.uniform(jnp.where(untried.any(), untried, back), personas.uniform(doors, anywhere))

    clever = personas.uniform(env.shortest(state), anywhere)
    own = traits.skill * clever + (1 - traits.skill) * larry
    says = advice(plan, state.names[state.position[1]])
    rate = jnp.asarray(traits.following, jnp.float32)[ALICE] * jnp.sum(jnp.where(doors, says, 0.0))
    alice = rate * says + (1 - rate) * own
    return personas.slipping(jnp.stack([larry, bob, alice]), met == tokens.GOLD, traits.slip)


def _saying_probabilities(
    env: "EmojiRooms", state: "RoomsState", traits: Traits, slot: jax.Array, room: jax.Array
) -> jax.Array:
    """Probabilities float32[3, C] of what Larry, Bob and Alice say in a slot of their thoughts.

    Args:
        env, state, traits: the episode before its first move.
        slot: int32[], tokens before.
        room: int32[], the room named last; the goal before any is.
    """
    place = jnp.arange(END + 1)
    names, door = place - ROOMS, place - DOORS
    end = (place == END).astype(jnp.float32)

    def name(room):
        return (names == state.names[room] - tokens.ROOMS[0]).astype(jnp.float32)

    entry = jnp.where(state.parents[room] < 0, end, (door == state.entries[room]).astype(jnp.float32))
    parent = jnp.where(state.parents[room] < 0, end, name(jnp.maximum(state.parents[room], 0)))

    tired = STOPS * end + (1 - STOPS) * entry
    larry = jnp.where(slot % 2 == 0, parent, tired)
    larry = jnp.where(slot == 0, name(state.start), larry)

    around = jnp.zeros(len(place), bool).at[DOORS:END].set(state.children[state.start] >= 0)
    bob = jnp.stack([personas.uniform(around, end), name(state.start), end])[jnp.minimum(slot, 2)]

    alice = jnp.where(slot % 2 == 0, parent, jnp.where(room == state.start, end, entry))
    alice = jnp.where(slot == 0, name(state.goal), alice)

    said = jnp.stack([larry, bob, alice])
    thinks = jnp.asarray(traits.thinking, jnp.float32)[:, None]
    wanted = jnp.where(slot == 0, thinks * said + (1 - thinks) * end[None], said)
    return (1 - traits.plan_slip) * wanted + traits.plan_slip / len(place)


def _named(state: "RoomsState", room: jax.Array, said: jax.Array) -> jax.Array:
    """The room named last, after something was said."""
    heard = (said < DOORS) & (state.names == said + tokens.ROOMS[0])
    return jnp.where(heard.any(), jnp.argmax(heard).astype(jnp.int32), room)


def write(key: jax.Array, env: "EmojiRooms", persona: jax.Array, state: "RoomsState", traits: Traits) -> jax.Array:
    """A thought of `persona` (int32[], 0 to 2) for an episode before its first move, tokens int32[plan_length].

    Larry's: nothing, or a chain that begins at the start and breaks off somewhere. Bob's: one of the doors that lead
    on from the start, and the start. Alice's: the chain from the goal to the start. All go on from the room that was
    named last, even by a slip, and finish with the end, if it has a place.
    """

    def say(carry, slot_key):
        slot, room, ended = carry
        chances = _saying_probabilities(env, state, traits, slot, room)[persona]
        said = jax.random.categorical(slot_key, jnp.log(chances)).astype(jnp.int32)
        ended = ended | (said == END)
        said = jnp.where(ended, END, said)
        return (slot + 1, _named(state, room, said), ended), said

    if not env.plan_length:
        return jnp.zeros(0, jnp.int32)
    start = (jnp.int32(0), state.goal, jnp.array(False))
    _, said = jax.lax.scan(say, start, jax.random.split(key, env.plan_length))
    return jnp.array(env.plan_sayings, jnp.int32)[said]


def plan_log_probabilities(env: "EmojiRooms", plan: jax.Array, state: "RoomsState", traits: Traits) -> jax.Array:
    """Exact log-probability of a thought, tokens int32[plan_length], under each of the three, float32[3]."""
    if not env.plan_length:
        return jnp.zeros(len(personas.PERSONAS), jnp.float32)

    def read(carry, said):
        slot, room, open = carry
        chances = _saying_probabilities(env, state, traits, slot, room)
        told = jnp.where(open, jnp.log(jnp.sum(jnp.where(jnp.arange(END + 1) == said, chances, 0.0), axis=1)), 0.0)
        return (slot + 1, _named(state, room, said), open & (said != END)), told

    known = plan[:, None] == jnp.array(env.plan_sayings, jnp.int32)[None]
    said = jnp.where(known.any(axis=1), jnp.argmax(known, axis=1), END).astype(jnp.int32)
    start = (jnp.int32(0), state.goal, jnp.array(True))
    return jax.lax.scan(read, start, said)[1].sum(axis=0)
