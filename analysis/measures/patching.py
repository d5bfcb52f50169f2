"""Activation patching: which part of a policy carries a choice from one episode, or one checkpoint, to another."""

import functools
from collections.abc import Mapping
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr

from agents.learning import population
from agents.policies import Parameters, Policy
from agents.runs import Run
from analysis import estimates, inside
from analysis.figures.panels import Map, Panel
from analysis.measure import ends, measure, once, variable
from envs import base
from ground.terminal import ConfigError

PARTS = ("prompt", "opening", "turns before", "this turn", "last token", "all")
"""Of the sequence up to the choice; `last token` is the one that the choice follows, which the others are without."""
WHERE = ("before", "last token")
"""Positions at which a head or an MLP is replaced: all before the one that the choice follows, and that one."""


def panels(arms: Mapping[str, xr.Dataset]) -> list[Panel]:
    """What of the choice each part carries: the stream by entry and part of the sequence, and what is written."""
    shown = list[Panel]()
    for label, part in estimates.columns(arms).items():
        mean = part["stream"].mean("member").transpose("entry", "part")
        entries = tuple("embedding" if entry == 0 else f"after block {entry}" for entry in mean["entry"].values)
        parts = tuple(mean["part"].values.tolist())
        shown.append(Map(mean.values, entries, parts, f"{label}: share of the choice that the stream carries"))
        one = part["written"].isel(member=0).transpose("component", "where")
        words = f"{label}, member {int(part['member'].values[0])}: share that its heads and MLPs carry"
        shown.append(Map(one.values, tuple(one["component"].values.tolist()), WHERE, words, diverging=True))
    return shown


@measure(panels=panels)
def patching(
    run: Run,
    checkpoint: str,
    *,
    source: Literal["episode", "checkpoint"] = "episode",
    decision: int | None = None,
    episodes: int = 128,
) -> xr.Dataset:
    """Which part of a policy carries a choice over from another episode or checkpoint: activation patching.

    The policy reads an episode while a part of it has the values of the source. The source likes one choice best, the
    policy another: how much of the difference of their two logits goes over? 0: nothing, 1: all of it; what is
    replaced may also do too much, or the contrary (arXiv 2404.15255 on what such shares mean).

    Args:
        source: the policy itself, reading the episode of another maze; or what training set out from, reading the same.
        decision: which choice, counted from 0 over the opening and the moves; by default the first move.
        episodes: of each member, the same held-out mazes for all; a multiple of 64 if more.

    Returns:
        Shares, each the sum of what goes over by the sum of the differences, over pairs that like different choices:
        `stream` float32[member, entry, part], of the residual stream, entry 0 the embedding; `written` float32[member,
        component, where], of what a head or an MLP writes; see `PARTS`, `WHERE`. `pairs` int32[member], how many.
        NaN where there are none.
    """
    inside.check(run, episodes)
    choices = len(run.world.decision_positions())
    decision = run.world.opening_length if decision is None else decision
    if not 0 <= decision < choices:
        raise ConfigError(f"--decision={decision}: an episode has {choices} choices; use 0 to {choices - 1}")
    if source not in ("episode", "checkpoint"):
        raise ConfigError(f"--source={source}: use episode or checkpoint")
    first, again = once(run, checkpoint)
    own, start = (run.kept_parameters(name) for name in (checkpoint, ends(run)[0]))
    own, start, params = jax.tree.map(lambda x: jnp.asarray(x[first]), (own, start, run.params))
    told = _told(run.policy, own, start, run.world, params, decision, source == "episode", episodes)
    stream, written, pairs = (np.asarray(x)[again] for x in told)
    there = np.flatnonzero(parts_of(run.world, decision).any(axis=1))
    layers = run.policy.config.layers
    return xr.Dataset(
        {
            "stream": variable("member entry part", stream, "share that the stream carries"),
            "written": variable("member component where", written, "share that a part carries", table=0),
            "pairs": variable("member", pairs, "pairs that choose differently"),
        },
        {
            "entry": np.arange(layers + 1),
            "part": [PARTS[index] for index in there],
            "component": [*inside.heads_of(run), *(f"block {layer + 1} MLP" for layer in range(layers))],
            "where": list(WHERE),
        },
    )


def parts_of(world: base.World, decision: int) -> np.ndarray:
    """Which positions up to a choice belong to each of `PARTS`, bool[6, S]."""
    last = int(world.decision_positions()[decision]) - 1
    place, opened = np.arange(last + 1), world.prompt_length + world.opening_length
    turn = opened + max(decision - world.opening_length, 0) * (world.observation_length + 1)
    before = place < last
    return np.stack(
        [
            before & (place < world.prompt_length),
            before & (place >= world.prompt_length) & (place < opened),
            before & (place >= opened) & (place < turn),
            before & (place >= opened) & (place >= turn),
            ~before,
            place >= 0,
        ]
    )


def sites(policy: Policy, parts: np.ndarray) -> dict[str, np.ndarray]:
    """Where each of the N replacements replaces, by the names of `inside.Patch`, axis 0 the replacement.

    First the stream, by entry and part, then heads and then MLPs, each before the last position and at it.
    """
    config, length = policy.config, parts.shape[1]
    places = np.stack([np.arange(length) < length - 1, np.arange(length) == length - 1])
    entries, heads, layers = config.layers + 1, config.layers * config.heads, config.layers
    stream = np.einsum("el,ps->epls", np.eye(entries), parts).reshape(-1, entries, length, 1)
    head = np.einsum("hk,ps->hpks", np.eye(heads), places).reshape(-1, layers, config.heads, length, 1)
    mlp = np.einsum("lk,ps->lpks", np.eye(layers), places).reshape(-1, layers, length, 1)
    blocks = {"stream": stream, "heads": head, "mlp": mlp}
    counts = [len(block) for block in blocks.values()]
    where = {name: np.zeros((sum(counts), *block.shape[1:]), bool) for name, block in blocks.items()}
    for start, (name, block) in zip(np.cumsum([0, *counts[:-1]]), blocks.items(), strict=True):
        where[name][start : start + len(block)] = block > 0
    return where


def carried(
    policy: Policy,
    parameters: Parameters,
    sequences: jax.Array,
    given: dict[str, jax.Array],
    wanted: jax.Array,
    where: dict[str, jax.Array],
    allowed: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """What of the sources' choices goes over, float32[N], and the pairs that count, int32[].

    Args:
        policy, parameters: of the member that reads.
        sequences: tokens int32[B, S] that end before the choice.
        given: what the sources of them have inside, as `inside.read` tells it, axis 0 of length B.
        wanted: the logits of the sources, float32[B, V].
        where: from `sites`.
        allowed: bool[V], what may be said.
    """
    allowed = allowed[None]

    def best(logits):
        return jnp.argmax(jnp.where(allowed, logits, -jnp.inf), axis=-1)

    def last(sequence, patch):
        return inside.read(policy, parameters, sequence, patch, names=("logits",))["logits"][-1]

    plain = jax.vmap(last, in_axes=(0, None))(sequences, inside.NOTHING)
    theirs, mine = best(wanted), best(plain)
    counted = (theirs != mine).astype(jnp.float32)

    def difference(logits):
        chosen = [jnp.take_along_axis(logits, index[:, None], axis=1)[:, 0] for index in (theirs, mine)]
        return counted * (chosen[0] - chosen[1])

    base, full = difference(plain), difference(wanted)

    def replaced(site):
        logits = jax.vmap(lambda sequence, values: last(sequence, inside.Patch(values, site)))(sequences, given)
        return jnp.sum(difference(logits) - base)

    gap = jnp.sum(full - base)
    moved = jax.lax.map(replaced, where)
    return moved / jnp.where(gap > 0, gap, jnp.nan), counted.sum(dtype=jnp.int32)


@functools.partial(jax.jit, static_argnames=("policy", "world", "decision", "another", "episodes"))
def _told(policy, parameters, start, world, params, decision, another, episodes):
    """`stream` float32[M, L + 1, P], `written` float32[M, C, 2] and `pairs` int32[M] of `patching`."""
    parts = parts_of(world, decision)
    parts = parts[parts.any(axis=1)]
    where, allowed = sites(policy, parts), jnp.asarray(inside.choices(policy, world)[decision])
    names = (*where, "logits")

    def member(parameters: Parameters, start: Parameters, params: base.WorldParams):
        seen = inside.played(policy, parameters, world, params, episodes)
        sequences = seen.tokens[:, : parts.shape[1]]
        # Where the episode is over, or the opening, there is no choice any more.
        there = seen.decided[:, decision]
        sources = jnp.roll(sequences, 1, axis=0) if another else sequences
        whose = parameters if another else start
        given = jax.vmap(lambda sequence: inside.read(policy, whose, sequence, names=names))(sources)
        wanted = given.pop("logits")[:, -1]
        there &= jnp.roll(there, 1) if another else there
        # A source that likes what the reader likes does not count: so no choice, no difference.
        own = jax.vmap(lambda sequence: inside.read(policy, parameters, sequence, names=("logits",)))(sequences)
        wanted = jnp.where(there[:, None], wanted, own["logits"][:, -1])
        moved, pairs = carried(policy, parameters, sequences, given, wanted, jax.tree.map(jnp.asarray, where), allowed)
        cut = (policy.config.layers + 1) * len(parts)
        return moved[:cut].reshape(-1, len(parts)), moved[cut:].reshape(-1, len(WHERE)), pairs

    mesh = population.mesh(len(params.tile_map), 1)
    return population.over_members(member, mesh)(parameters, start, params)
