"""What attention heads attend to: kinds of tokens, and tokens that stand in a telling relation to the query."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr

from agents.learning import rollout
from agents.policies import Parameters, Policy
from agents.runs import Run
from analysis import estimates, inside
from analysis.figures.panels import Map, Panel, Rows
from analysis.measure import each, measure, variable
from envs import base, tokens
from ground.precise import product

GROUPS = {
    "name": (*tokens.BADGES, *tokens.HEADS[1:]),
    "move": tokens.MOVES,
    "wind or door": (tokens.CALM, *tokens.GUSTS),
    "feeling": (tokens.SILENT, tokens.GOOD, tokens.NEUTRAL, tokens.BAD),
    "tile": (*tokens.TILE_MAP, *tokens.UNSEEN_TILES, tokens.EXPLOIT),
    "end": (tokens.PLAN_END,),
    "agent": (tokens.AGENT,),
    "room": tokens.ROOMS,
}
"""Kinds of words: who speaks or where, moves, wind or doors, feelings, tiles, a plan's end, the agent, rooms."""
SEGMENTS = ("prompt", "opening", "turn")
RELATIONS = ("itself", "previous", "first", "same token", "after same token", "after same pair")
"""How a key stands to the query that attends to it: it is the query, the token before it, the first of all; it says the
same; it follows a token that says the same as the query, as induction heads look for (arXiv 2209.11895); it follows two
that say the same as the query and the token before it."""
LONGEST = 64
"""Tokens before the first move up to which the figure shows one episode."""


def panels(arms: Mapping[str, xr.Dataset]) -> list[Panel]:
    """Where choices are made: each head of the first member by relation and by kind, one episode, all members' best."""
    parts = estimates.columns(arms)
    shown = list[Panel]()
    label, part = list(parts.items())[-1]
    one, who = part.isel(member=0), f"{label}, member {int(part['member'].values[0])}"
    heads = tuple(one["head"].values.tolist())
    at_choices, kinds = one["at_choices"], one["to_kind"]
    shown.append(Map(at_choices.values, heads, RELATIONS, f"{who}: attention where it chooses, by relation"))
    met = kinds["kind"].values[kinds.max("head").values > 0.005].tolist()
    shown.append(Map(kinds.sel(kind=met).values, heads, tuple(met), f"{who}: the same, by kind of token"))
    if one.sizes["key"] <= LONGEST:
        seeker = int(np.nanargmax(np.nan_to_num(at_choices.sel(relation="after same token").values)))
        words = [_word(token) for token in one["said"].values]
        rows = np.flatnonzero(one["query_chooses"].values)
        pattern = one["after"].isel(head=seeker).values[rows]
        keys = np.flatnonzero(pattern.max(axis=0) >= min(0.2, pattern.max()))
        pairs = tuple(" ".join(words[max(key - 1, 0) : key + 1]) for key in keys)
        about = f"{who}: up to the first move, {heads[seeker]}, query by key after the token before it"
        shown.append(Map(pattern[:, keys], tuple(words[row] for row in rows), pairs, about))
    for relation in RELATIONS[3:]:
        rows = {name: estimates.of(one["strongest"].sel(relation=relation)) for name, one in parts.items()}
        chance = {name: estimates.of(one["uniform"].sel(relation=relation)).mean for name, one in parts.items()}
        marks = estimates.floors(chance, "uniform")
        shown.append(Rows(rows, f"{relation}: the strongest head's attention", marks))
    return shown


@measure(panels=panels)
def attention(run: Run, checkpoint: str, *, episodes: int = 256) -> xr.Dataset:
    """What attention heads attend to, by kind of token and by how it stands to the query.

    Every member reads its own episodes. Heads have no order: those of two members with one number have nothing in
    common, so that means over members are of `strongest` alone.

    Args:
        episodes: of each member, the same held-out mazes for all; a multiple of 64 if more.

    Returns:
        `head` is a head of a block, `kind` and `from` kinds of tokens, segment and group. float32 shares of attention:
        `pattern` [member, head, from, kind], mean over queries of a kind, NaN where there are none. Over queries before
        a choice alone: `to_kind` [member, head, kind], and `at_choices` [member, head, relation], over those of them
        that have such a key, see `RELATIONS`; NaN where none has; `uniform` [member, relation], what attention that is
        the same for every token so far has; `strongest` [member, relation], the head that has most. Of one episode
        `said` int32[member, key] up to the first move, `after` [member, head, query, key] and `query_chooses`
        bool[member, query].
    """
    inside.check(run, episodes)
    told = each(_shares, run, checkpoint, episodes=episodes)
    kinds = [f"{segment} {group}" for segment in SEGMENTS for group in GROUPS]
    rows, relation = "member head", "member relation"
    return xr.Dataset(
        {
            "strongest": variable(relation, told["at_choices"].max(axis=1), "the strongest head's attention", "share"),
            "uniform": variable(relation, told["uniform"], "uniform attention", "share"),
            "at_choices": variable(f"{rows} relation", told["at_choices"], "attention", "share", table=0),
            "to_kind": variable(f"{rows} kind", told["to_kind"], "attention", "share", table=0),
            "pattern": variable(f"{rows} from kind", told["pattern"], "attention", "share", table=0),
            "said": variable("member key", told["said"], "tokens", table=0),
            "after": variable(f"{rows} query key", told["after"], "attention in one episode", "share", table=0),
            "query_chooses": variable("member query", told["query_chooses"], "before a choice", table=0),
        },
        {"head": inside.heads_of(run), "relation": list(RELATIONS), "kind": kinds, "from": kinds},
    )


def kind_of(world: base.World, sequence: jax.Array) -> jax.Array:
    """The kind of every token int32[S] of an episode: groups times its segment's place, plus that of its group."""
    group = np.full(tokens.SIZE, -1, np.int32)
    for place, members in enumerate(GROUPS.values()):
        group[list(members)] = place
    assert (group >= 0).all()
    position = np.arange(len(sequence))
    spoken = world.prompt_length + world.opening_length
    segment = (position >= world.prompt_length).astype(np.int32) + (position >= spoken)
    return jnp.asarray(segment * len(GROUPS)) + jnp.asarray(group)[sequence]


def relations(sequence: jax.Array) -> jax.Array:
    """Which keys stand in each of `RELATIONS` to each query of tokens int32[S]; bool[R, S, S], query before key."""
    place = jnp.arange(len(sequence))
    query, key = place[:, None], place[None]
    same = sequence[:, None] == sequence[None]
    earlier = key < query
    follows = earlier & (key >= 1) & jnp.roll(same, 1, axis=1)  # same[q, k - 1]
    pair = follows & (key >= 2) & (query >= 1) & jnp.roll(same, (1, 2), axis=(0, 1))  # same[q - 1, k - 2]
    return jnp.stack([key == query, key == query - 1, (key == 0) & earlier, same & earlier, follows, pair])


def _shares(
    policy: Policy, world: base.World, parameters: Parameters, params: base.WorldParams, episodes: int
) -> dict[str, jax.Array]:
    decisions = world.decision_positions() - 1
    opened = int(world.action_positions()[0])
    count = len(SEGMENTS) * len(GROUPS)
    seen = inside.played(policy, parameters, world, params, episodes)
    chosen, told = rollout.spoken(world, seen)
    # The last token is never read: nothing follows it.
    said, lasted = seen.tokens[:, :-1], (chosen | told)[:, :-1]
    choosing = jnp.zeros(said.shape, bool).at[:, decisions].set(seen.decided)

    def episode(sequence, lasted, choosing):
        pattern = inside.read(policy, parameters, sequence, names=("pattern",))["pattern"]
        pattern = pattern.reshape(-1, *pattern.shape[2:])
        kind = jax.nn.one_hot(kind_of(world, sequence), count, dtype=jnp.float32)
        to_kind = product("hqk,kb->hqb", pattern, kind)
        weight = lasted.astype(jnp.float32)
        related = relations(sequence)
        there = (related.any(axis=-1) & choosing[None]).astype(jnp.float32)
        share = 1 / jnp.arange(1, len(sequence) + 1, dtype=jnp.float32)
        return {
            "pattern": product("hqb,qa->hab", to_kind, kind * weight[:, None]),
            "met": jnp.sum(kind * weight[:, None], axis=0),
            "to_kind": product("hqb,q->hb", to_kind, choosing.astype(jnp.float32)),
            "choices": jnp.sum(choosing, dtype=jnp.float32),
            "at_choices": product("hqk,rqk,rq->hr", pattern, related.astype(jnp.float32), there),
            "uniform": product("rqk,rq->r", related.astype(jnp.float32), there * share[None]),
            "there": jnp.sum(there, axis=1),
        }

    total = inside.summed(episode, said, lasted, choosing)
    there = jnp.where(total["there"] > 0, total["there"], jnp.nan)
    one = inside.read(policy, parameters, said[0, :opened], names=("pattern",))["pattern"]
    return {
        "pattern": total["pattern"] / jnp.where(total["met"] > 0, total["met"], jnp.nan)[None, :, None],
        "to_kind": total["to_kind"] / total["choices"],
        "at_choices": total["at_choices"] / there[None],
        "uniform": total["uniform"] / there,
        "said": said[0, :opened],
        "after": one.reshape(-1, opened, opened),
        "query_chooses": choosing[0, :opened],
    }


def _word(token: int) -> str:
    """A token in a short word."""
    for directions in (tokens.MOVES, tokens.GUSTS):
        if token in directions:
            return tokens.DIRECTIONS[directions.index(token)]
    return tokens.word(token) if token in tokens.ROOMS else next(name for name, own in GROUPS.items() if token in own)
