"""A map of an EmojiRooms for people to look at: its tree on a square of tiles, rooms above those their doors lead to.

Rooms stand in every other row and column, named by their emoji. Between two rows run the corridors: a door is the tile
above the room it leads to, and bears its direction. A closed door that pays is a dead end. All else is wall.
"""

from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from envs import tokens, wanderers

if TYPE_CHECKING:
    from envs.rooms import EmojiRooms, RoomsState


def layout(children: np.ndarray, gold: np.ndarray) -> tuple[np.ndarray, np.ndarray, int]:
    """Where a tree of rooms is drawn: parents above the middle one of their doors, branches side by side.

    Args:
        children: int[n, 4], the room behind each door, -1 for none; the first room is above all others.
        gold: bool[n, 4], doors that are dead ends.

    Returns:
        row and column of the rooms int[n, 2], of the doors int[n, 4, 2] with -1 for none, and the side of the square.
    """
    rooms, doors = np.full((len(children), 2), -1), np.full((*children.shape, 2), -1)
    ends = 0

    def place(room: int, row: int) -> int:
        """Places a room and all below it; its column."""
        nonlocal ends
        ways = np.flatnonzero((children[room] >= 0) | gold[room])
        for door in ways:
            child = int(children[room, door])
            doors[room, door] = row + 1, 2 * ends if child < 0 else place(child, row + 2)
            ends += child < 0
        rooms[room] = row, doors[room, ways[(len(ways) - 1) // 2], 1] if len(ways) else 2 * ends
        ends += not len(ways)
        return int(rooms[room, 1])

    place(0, 0)
    side = int(max(rooms.max(), doors.max())) + 1
    aside = (side - (2 * ends - 1)) // 2
    rooms[:, 1] += aside
    doors[..., 1] += np.where(doors[..., 1] >= 0, aside, 0)
    return rooms, doors, side


def drawn(world: "EmojiRooms", states: "RoomsState", roles: np.ndarray, episode: np.ndarray | None) -> dict[str, Any]:
    """What `Replay` needs of the map.

    Args:
        world: of the episode.
        states: before each turn and at the end, leaves [T + 1, …], NumPy.
        roles: of the rooms, int8[T + 1, n].
        episode: its tokens int[S], for the thought; None for an episode without.
    """
    names, children, gold = (np.asarray(leaf)[0] for leaf in (states.names, states.children, states.gold))
    rooms, doors, side = layout(children, gold)
    tiles = np.full((len(roles), side, side), tokens.WALL, np.int8)
    labels, words = np.full((side, side), -1), np.full((side, side), "", object)
    for room, (row, column) in enumerate(rooms):
        own, name = doors[room][doors[room, :, 0] >= 0], f"{tokens.word(names[room])} room"
        if len(own):
            tiles[:, row + 1, own[:, 1].min() : own[:, 1].max() + 1] = tokens.PATH
        tiles[:, row, column], labels[row, column], words[row, column] = roles[:, room], names[room], name
        for door in np.flatnonzero(doors[room, :, 0] >= 0):
            at = tuple(doors[room, door])
            labels[at], words[at] = tokens.DOORS[door], f"{tokens.DIRECTIONS[door]} door of the {name}"
            if gold[room, door]:
                tiles[:, *at] = tokens.GOLD

    position = np.asarray(states.position)[:, 1]
    thought, advised = np.zeros((side, side), bool), np.full(len(roles), -1)
    if episode is not None:
        plan = world.plan(jnp.asarray(episode))
        told = np.asarray(plan)[np.cumsum(plan == tokens.PLAN_END) == 0]
        says = np.asarray(jax.vmap(wanderers.advice, in_axes=(None, 0))(plan, names))
        named = (doors[..., 0] * side + doors[..., 1])[range(len(says)), says.argmax(axis=1)]
        cells = np.where(says.any(axis=1), np.maximum(named, -1), -1)  # a door that is not there has no tile
        thought = np.isin(labels, told[np.isin(told, tokens.ROOMS)])
        thought.flat[cells[cells >= 0]] = True
        advised = cells[position]
    return {
        "tiles": tiles,
        "positions": rooms[position],
        "labels": labels,
        "words": words,
        "thought": thought,
        "advised": advised,
    }
