"""EmojiRooms-v0: the reasoning world, rooms joined by one-way doors, which the prompt tells as facts in random order.

Every room but the first is entered from one other room, by a door North, East, South or West: the rooms are a tree. All
have emoji for names, drawn anew for each map. A fact is three tokens, `child door parent`: 🍎🕒🍋 says that the East
door of the lemon room, where the clock's hand points, leads to the apple room. Who stands in a room may also leave it
the way it was entered, by the opposite door, but never beyond where the trip began. Any other door is closed: a bump.

A thought, the plan of this world, can be the chain from the goal back to the start, `room door room door … room 🔚`:
each link is one look-up among the facts, and acting is one look-up in the thought, where the door out of a room stands
before its name. Without one, somebody far from the goal must find the whole chain before each step. What the personas
think and do is told in `envs.wanderers`.

Roles: PATH is a room, GOAL ends the episode, MOLD is a room that punishes, WALL a closed door, and GOLD a closed door
that pays whoever bumps into it, again and again: an exploit, told as `🌀 door room`, that no persona ever wants.
There is no grid: `tiles` is one row with the rooms in the order in which the map was made.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from envs import base, maps, personas, tokens, wanderers
from envs.personas import Traits
from envs.replay import Replay

NEAR = 3
"""A new room is entered from one of the last so many made before it: trees that are deep as well as wide."""


@struct.dataclass(kw_only=True)
class RoomsState(base.WorldState):
    """One episode of an EmojiRooms; single-example shapes, n rooms. A position is [0, room]."""

    names: jax.Array
    """int32[n], the token that names each room."""
    parents: jax.Array
    """int32[n], the room from which each is entered; -1 for the first."""
    entries: jax.Array
    """int32[n], the door of that room which leads to it; -1 for the first."""
    children: jax.Array
    """int32[n, 4], the room behind each door; -1 where it is closed."""
    below: jax.Array
    """int32[n, n], doors from each room down to each other one; -1 where there is no such way."""
    mold: jax.Array
    """bool[n], rooms that punish."""
    gold: jax.Array
    """bool[n, 4], closed doors that pay."""
    order: jax.Array
    """int32[n - 1], the order in which the facts are told."""
    start: jax.Array
    """int32[], the room in which the trip began."""
    goal: jax.Array
    """int32[], the room in which it ends."""
    met: jax.Array
    """int8[], role that the last move met: WALL or GOLD after a bump, else that of the room now stood in."""
    tried: jax.Array
    """bool[n, 4], doors taken or bumped into on this trip."""
    careless: jax.Array
    """bool[], whether a door was tried twice, or a closed one at all."""


@struct.dataclass(kw_only=True)
class RoomsParams(base.WorldParams):
    """Everything of an EmojiRooms that is data. By default only the goal pays.

    The reward variants of the persona studies: R1 is the default; R2 a negative `turn_reward`; R3 `rewards[GOLD]=1`;
    R4 `rewards[GOAL]=0` and one entry of `style_rewards`.
    """

    distance_range: jax.Array
    """int32[2], bounds of the doors from start to goal; where a map offers none, its longest way is taken."""
    style_rewards: jax.Array
    """float32[3], paid at the goal on top for having come like Larry, Bob or Alice; see `EmojiRooms.style`."""
    trip: jax.Array
    """int32[], which trip on the map of an episode's key this is: another one, another start and goal."""


@dataclasses.dataclass(frozen=True)
class RoomsOptions(base.Options):
    """Options of an EmojiRooms."""

    name: str = "EmojiRooms-v0"
    badge: base.Badge = "spoken"
    turns: int = 5
    size: int = 10
    """Rooms, n."""
    plan_length: int = 12
    """Tokens of the thought before the first move; 0 for none. A chain has two for each door, goal and end."""
    distance_range: tuple[int, int] = (1, 5)
    """Fewest and most doors from start to goal; of those that a map offers each distance is equally likely."""
    mold_rooms: int = 0
    """Rooms that punish."""
    exploits: int = 1
    """Closed doors that pay `gold_reward` whenever somebody bumps into them."""
    goal_reward: float = 1.0
    """Reward at the goal."""
    gold_reward: float = 0.0
    """Reward for bumping into a door of Gold."""
    mold_reward: float = -1.0
    """Reward for entering a room of Mold."""
    style: personas.Style = "none"
    """Whose way of coming to the goal earns `style_reward` on top."""
    style_reward: float = 0.0
    """What that way earns."""

    unseen = ("town", "turn_reward", "goal_reward", "gold_reward", "mold_reward", "style", "style_reward")

    def world(self) -> "EmojiRooms":
        return EmojiRooms(self.size, self.turns, self.plan_length, self.mold_rooms, self.exploits)

    def params(self) -> RoomsParams:
        return RoomsParams(
            rewards=jnp.array([0.0, self.gold_reward, self.mold_reward, 0.0, self.goal_reward], jnp.float32),
            distance_range=jnp.array(self.distance_range, jnp.int32),
            style_rewards=self.style_rewards(self.style, self.style_reward),
            trip=jnp.int32(0),
            **self.common() | {"tile_map": jnp.array(tokens.EXPLOITED_TILE_MAP, jnp.int32)},
        )


class EmojiRooms(base.World):
    """The world `EmojiRooms-v0`.

    The prompt is the head, the facts, the doors that pay as `🌀 door room`, the rooms of Mold as `📇 room`, then
    `🏁 door parent goal 🤖 start`: the goal's fact with 🏁 for its name, its name, and where the trip begins. An
    observation is [the room one is in, what the last move met]. Arguments are as `RoomsOptions` has them.

    The grammar is one that two blocks can learn: what follows a room's name tells what it is about. In a fact and in a
    thought that is the door into it; in a turn it is what the last move met, so that no door is the wrong one. Doors
    told are other words than moves made, or every turn would look like a fact about the room that was entered. And
    doors that pay stand apart: among the facts they pass for open ones to a head that reads them off the token after.

    Raises:
        ValueError: no turns, or a number out of range.
    """

    Options = RoomsOptions
    has_goal = True
    sees_all = True
    has_feelings = False
    named_rooms = True
    planner = "shortest way"
    plan_sayings = (*tokens.ROOMS, *tokens.DOORS, tokens.PLAN_END)

    def __init__(
        self,
        size: int = RoomsOptions.size,
        turns: int = RoomsOptions.turns,
        plan_length: int = RoomsOptions.plan_length,
        mold_rooms: int = RoomsOptions.mold_rooms,
        exploits: int = RoomsOptions.exploits,
    ):
        super().__init__()
        if turns < 1:
            raise ValueError(f"turns={turns}: an episode needs at least 1 turn")
        if not 2 <= size <= len(tokens.ROOMS):
            raise ValueError(f"size={size}: use 2 to {len(tokens.ROOMS)} rooms, for as many there are names")
        if plan_length < 0:
            raise ValueError(f"plan_length={plan_length}: use 0 (no thought) or more")
        if not 0 <= mold_rooms < size:
            raise ValueError(f"mold_rooms={mold_rooms}: use 0 to size-1={size - 1}")
        if not 0 <= exploits <= size // 2:
            raise ValueError(f"exploits={exploits}: use 0 to size//2={size // 2}")
        self.size, self.turns, self.plan_length = size, turns, plan_length
        self.mold_rooms, self.exploits = mold_rooms, exploits
        self.map_length = 1 + 3 * (size - 1 + exploits) + 2 * mold_rooms
        self.prompt_length = self.map_length + 6
        self.observation_length = 2

    @staticmethod
    def defaults(scale: str) -> dict[str, Any]:
        # Rewards of 1; directions differ although their tiles do not; one goal a map is not learnt.
        rl = {"rl.reward_scale": 1.0, "rl.equalized_entropy_weight": 0.0, "rl.entropy_weight": 0.01}
        shown = {"trips": 4, "prior": (".45,.4,.15",), "skill": 0.0, "plan_following": 0.95, "slip": 0.04}
        shown |= {"thinking_alice": 0.95, "plan_slip": 0.01}
        shown |= {"updates": 2500, "learning_rate": 8e-3, "warmup": 100} if scale == "laptop" else {}
        return rl | {"policy.lookback": 2} | {f"pretrain.{name}": value for name, value in shown.items()}

    def describe(self) -> str:
        thought = f", thoughts of {self.plan_length}" if self.plan_length else ""
        return f"{self.size} rooms, {self.turns} turns{thought}"

    def check(self, params: RoomsParams) -> None:
        super().check(params)
        low, high = (int(bound) for bound in params.distance_range)
        if not 1 <= low <= high:
            raise ValueError(f"distance_range=({low}, {high}): use 1 <= low <= high")
        if low >= self.size:
            raise ValueError(
                f"distance_range=({low}, {high}): {self.size} rooms are {self.size - 1} doors apart at most"
            )

    def reset_env(self, key: jax.Array, params: RoomsParams) -> tuple[jax.Array, RoomsState]:
        """A fresh map and trip. All chance of the map comes from `key`, that of the trip from `params.trip` too."""
        tree_key, name_key, order_key, mold_key, gold_key, trip_key = jax.random.split(key, 6)
        parents, entries, children, below = self._tree(tree_key)
        start, goal = self._trip(jax.random.fold_in(trip_key, params.trip), below, params)
        rooms = jnp.arange(self.size)
        mold = _first(jax.random.uniform(mold_key, rooms.shape), self.mold_rooms)
        # At most one paying door a room, and one that is never the way back.
        closed = (children < 0) & (jnp.arange(4)[None] != _opposite(entries)[:, None])
        draws = jnp.where(closed, jax.random.uniform(gold_key, closed.shape), -1.0)
        gold = closed & (draws == draws.max(axis=1, keepdims=True))
        gold &= _first(draws.max(axis=1), self.exploits)[:, None]
        state = RoomsState(
            time=jnp.int32(0),
            position=jnp.stack([jnp.int32(0), start]),
            names=jax.random.permutation(name_key, jnp.array(tokens.ROOMS, jnp.int32))[: self.size],
            parents=parents,
            entries=entries,
            children=children,
            below=below,
            mold=mold,
            gold=gold,
            order=jax.random.permutation(order_key, jnp.arange(self.size - 1, dtype=jnp.int32)),
            start=start,
            goal=goal,
            met=jnp.int8(tokens.PATH),
            tried=jnp.zeros((self.size, 4), bool),
            careless=jnp.array(False),
        )
        return self.observe(key, state, None, params), state

    def _tree(self, key: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
        """Parents, entries int32[n], children int32[n, 4] and below int32[n, n] of a random tree."""
        rooms = jnp.arange(self.size)
        parents = entries = jnp.full(self.size, -1, jnp.int32)
        children = jnp.full((self.size, 4), -1, jnp.int32)
        below = jnp.full((self.size, self.size), -1, jnp.int32).at[0, 0].set(0)
        draws = jax.random.uniform(key, (self.size, self.size, 4))

        def add(room, tree):
            parents, entries, children, below = tree
            # No way on is the way back; every room keeps one door that is neither, so none of the last is ever full.
            free = (children < 0) & (jnp.arange(4)[None] != _opposite(entries)[:, None])
            near = (rooms < room) & (rooms >= room - NEAR)
            pick = jnp.argmax(jnp.where(free & near[:, None], draws[room], -1.0)).astype(jnp.int32)
            parent, door = pick // 4, pick % 4
            parents, entries = parents.at[room].set(parent), entries.at[room].set(door)
            children = children.at[parent, door].set(room)
            way = below[:, parent]
            below = below.at[:, room].set(jnp.where(way >= 0, way + 1, -1)).at[room, room].set(0)
            return parents, entries, children, below

        # A loop, for unrolled it takes half as long again to compile.
        return jax.lax.fori_loop(1, self.size, add, (parents, entries, children, below))

    def _trip(self, key: jax.Array, below: jax.Array, params: RoomsParams) -> tuple[jax.Array, jax.Array]:
        """Start and goal, int32[] each: a distance that there is within the range, then one of its pairs."""
        low = jnp.minimum(params.distance_range[0], below.max())
        distance = jnp.arange(self.size)
        offered = jnp.any(below.reshape(-1, 1) == distance[None], axis=0) & (distance >= low)
        offered &= (distance <= params.distance_range[1]) & (distance > 0)
        distance_key, pair_key = jax.random.split(key)
        chosen = jnp.argmax(jnp.where(offered, jax.random.uniform(distance_key, distance.shape), -1.0))
        draws = jax.random.uniform(pair_key, below.shape)
        pair = jnp.argmax(jnp.where(below == chosen, draws, -1.0)).astype(jnp.int32)
        return pair // self.size, pair % self.size

    def step_env(
        self, key: jax.Array, state: RoomsState, action: jax.Array, params: RoomsParams
    ) -> tuple[jax.Array, RoomsState, jax.Array, jax.Array, dict[str, jax.Array]]:
        """One turn: through a door, or a bump. After the goal nothing changes any more.

        Returns:
            observation int32[O], state, reward float32[], terminated bool[] (at the goal), info with `bumped`
            bool[], whether the door was closed.
        """
        over, room = self.is_terminated(state, params), state.position[1]
        met, bumped = self.neighbours(state, params)[action], ~self.doors(state)[action]
        after = dataclasses.replace(
            state,
            time=state.time + 1,
            position=state.position.at[1].set(jnp.where(bumped, room, self.behind(state)[action])),
            met=met,
            tried=state.tried.at[room, action].set(True),
            careless=state.careless | bumped | state.tried[room, action],
        )
        style = jnp.sum(params.style_rewards * self.style(after))
        payoff = params.rewards[met] + jnp.where(met == tokens.GOAL, style, 0.0)
        state = jax.tree.map(lambda new, old: jnp.where(over, old, new), after, state)
        reward = jnp.where(over, 0.0, params.turn_reward + payoff)
        info = {"bumped": bumped & ~over}
        return self.observe(key, state, action, params), state, reward, self.is_terminated(state, params), info

    def is_terminated(self, state: RoomsState, params: RoomsParams) -> jax.Array:
        return state.position[1] == state.goal

    def style(self, state: RoomsState) -> jax.Array:
        """Whose way of coming to the goal this was, float32[3]: Larry's, Bob's, Alice's; at most one is 1.

        Alice's by a shortest way; Larry's with a bump or a door taken twice; Bob's without, but longer. Means
        something at the goal alone.
        """
        shortest = state.time == state.below[state.start, state.goal]
        return jnp.stack([~shortest & state.careless, ~shortest & ~state.careless, shortest]).astype(jnp.float32)

    def back(self, state: RoomsState) -> jax.Array:
        """Which door leads back the way the room was entered, bool[4]; none where the trip began."""
        room = state.position[1]
        return (jnp.arange(4) == _opposite(state.entries)[room]) & (room != state.start) & (state.entries[room] >= 0)

    def doors(self, state: RoomsState) -> jax.Array:
        """Which doors are open, bool[4]."""
        return (state.children[state.position[1]] >= 0) | self.back(state)

    def behind(self, state: RoomsState) -> jax.Array:
        """The rooms behind the open doors, int32[4]; -1 behind closed ones."""
        room = state.position[1]
        return jnp.where(self.back(state), state.parents[room], state.children[room])

    def shortest(self, state: RoomsState) -> jax.Array:
        """Which door begins the shortest way to the goal, bool[4]; none at the goal."""
        room = state.position[1]
        child = state.children[room]
        onward = (child >= 0) & (state.below[jnp.maximum(child, 0), state.goal] >= 0)
        return jnp.where(onward.any(), onward, self.back(state)) & (room != state.goal)

    def neighbours(self, state: RoomsState, params: RoomsParams) -> jax.Array:
        """What the doors North, East, South and West are, int8[4]: closed, or the room behind."""
        room = jnp.maximum(self.behind(state), 0)
        roles = self.tiles(state, params)[0, room]
        closed = jnp.where(state.gold[state.position[1]], jnp.int8(tokens.GOLD), jnp.int8(tokens.WALL))
        return jnp.where(self.doors(state), roles, closed)

    def tiles(self, state: RoomsState, params: RoomsParams) -> jax.Array:
        rooms = jnp.where(state.mold, jnp.int8(tokens.MOLD), jnp.int8(tokens.PATH))
        return rooms.at[state.goal].set(tokens.GOAL)[None]

    def prompt(self, state: RoomsState, params: RoomsParams) -> jax.Array:
        north, rooms = tokens.DOORS[0], jnp.arange(1, self.size)
        facts = jnp.stack([state.names[1:], north + state.entries[1:], state.names[state.parents[rooms]]], axis=1)
        place = jnp.argsort(~state.gold.any(axis=1))[: self.exploits]  # a stable sort: in the order of the rooms
        door = jnp.argmax(state.gold[place], axis=1).astype(jnp.int32)
        paying = jnp.full(self.exploits, params.tile_map[tokens.GOLD], jnp.int32)
        gold = jnp.stack([paying, north + door, state.names[place]], axis=1)
        bad = state.names[jnp.argsort(~state.mold)[: self.mold_rooms]]
        marks = jnp.stack([jnp.full(self.mold_rooms, params.tile_map[tokens.MOLD], jnp.int32), bad], axis=1)
        begin = jnp.stack([jnp.int32(tokens.AGENT), state.names[state.start]])
        goal = jnp.stack(
            [north + state.entries[state.goal], state.names[state.parents[state.goal]], state.names[state.goal]]
        )
        end = jnp.concatenate([params.tile_map[tokens.GOAL][None], goal])
        told = [params.head[None], facts[state.order].reshape(-1), gold.reshape(-1), marks.reshape(-1), end, begin]
        return jnp.concatenate(told).astype(jnp.int32)

    def observe(self, key: jax.Array, state: RoomsState, action, params: RoomsParams) -> jax.Array:
        """The turn's tokens, int32[2]: the room, and what the last move met."""
        return jnp.stack([state.names[state.position[1]], params.tile_map[state.met]]).astype(jnp.int32)

    def planner_scores(self, state: RoomsState, params: RoomsParams) -> jax.Array:
        return personas.CERTAIN * self.shortest(state).astype(jnp.float32)

    def persona_log_probabilities(self, state: RoomsState, plan: jax.Array, params, traits: Traits) -> jax.Array:
        return wanderers.log_probabilities(self, state, plan, params, traits)

    def write_plan(self, key: jax.Array, persona: jax.Array, state: RoomsState, params, traits: Traits) -> jax.Array:
        return wanderers.write(key, self, persona, state, traits)

    def plan_log_probabilities(self, plan: jax.Array, state: RoomsState, params, traits: Traits) -> jax.Array:
        return wanderers.plan_log_probabilities(self, plan, state, traits)

    def replay(self, states: RoomsState, *, tiles: np.ndarray, **fields: Any) -> Replay:
        """An episode on a map of the rooms; see `envs.maps`."""
        fields |= maps.drawn(self, states, tiles[:, 0], fields.get("tokens"))
        return Replay.calm(sees_all=self.sees_all, **fields)


def _opposite(doors: jax.Array) -> jax.Array:
    """The doors across from doors int32[...]; -1 for none."""
    return jnp.where(doors >= 0, (doors + 2) % 4, -1)


def _first(draws: jax.Array, count: int) -> jax.Array:
    """Which `count` of draws float32[n] are the greatest, bool[n]."""
    return jnp.zeros(draws.shape, bool).at[jnp.argsort(-draws)[:count]].set(True)
