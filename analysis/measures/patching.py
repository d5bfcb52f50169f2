"""Activation patching: which part of a policy carries a choice from one episode, or one checkpoint, to another."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr

from agents.policies import Intervention, Parameters, Policy
from agents.runs import Run
from analysis import estimates, inside
from analysis.figures.panels import Map, Panel
from analysis.measure import check_episodes, each, ends, measure, variable
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
        if "written" not in part:
            continue
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
        component, where], of what a head or an MLP of a transformer writes; see `PARTS`, `WHERE`. `pairs`
        int32[member], how many. NaN where there are none.
    """
    check_episodes(episodes)
    choices = len(run.world.decision_positions())
    decision = run.world.opening_length if decision is None else decision
    if not 0 <= decision < choices:
        raise ConfigError(f"--decision={decision}: an episode has {choices} choices; use 0 to {choices - 1}")
    options = {"decision": decision, "another": source == "episode", "episodes": episodes}
    told = each(_told, run, checkpoint, ends(run)[0], **options)
    there = np.flatnonzero(parts_of(run.world, decision).any(axis=1))
    shares = xr.Dataset(
        {
            "stream": variable("member entry part", told["stream"], "share that the stream carries"),
            "pairs": variable("member", told["pairs"], "pairs that choose differently"),
        },
        {"entry": np.arange(run.policy.config.layers + 1), "part": [PARTS[index] for index in there]},
    )
    if "written" not in told:
        return shares
    words = "share that a part carries"
    shares["written"] = variable("member component where", told["written"], words, table=0)
    return shares.assign_coords(component=inside.components(run), where=list(WHERE))


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


def places(policy: Policy, parts: np.ndarray) -> np.ndarray:
    """Where the stream is replaced, bool[entries × parts, 1, S, layers + 1, 1] as `Intervention.where` has it."""
    entries = policy.config.layers + 1
    return np.einsum("el,ps->epsl", np.eye(entries), parts).reshape(-1, 1, parts.shape[1], entries, 1) > 0


def sites(policy: Policy, length: int) -> dict[str, np.ndarray]:
    """Where each of the N replacements of what is written goes, by the names of `inside.Patch`; axis 0 is N.

    First heads, then MLPs, each before the last position and at it.
    """
    config, layers = policy.config, policy.config.layers
    last = np.arange(length) == length - 1
    heads = np.einsum("hk,ps->hpks", np.eye(layers * config.heads), [~last, last])
    heads = heads.reshape(-1, layers, config.heads, length, 1) > 0
    mlps = np.einsum("lk,ps->lpks", np.eye(layers), [~last, last]).reshape(-1, layers, length, 1) > 0
    return {
        "heads": np.concatenate([heads, np.zeros((len(mlps), *heads.shape[1:]), bool)]),
        "mlp": np.concatenate([np.zeros((len(heads), *mlps.shape[1:]), bool), mlps]),
    }


def carried(
    read: Callable[[Any], jax.Array], where: Any, plain: jax.Array, wanted: jax.Array, allowed: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """What of the sources' choices goes over, float32[N], and the pairs that count, int32[].

    Args:
        read: a replacement → logits float32[B, V] of those that read under it.
        where: N replacements, on axis 0 of every array.
        plain: logits without any.
        wanted: the logits of the sources.
        allowed: bool[V], what may be said.
    """
    theirs, mine = (jnp.argmax(jnp.where(allowed[None], x, -jnp.inf), axis=-1) for x in (wanted, plain))
    counted = (theirs != mine).astype(jnp.float32)

    def difference(logits):
        chosen = [jnp.take_along_axis(logits, index[:, None], axis=1)[:, 0] for index in (theirs, mine)]
        return counted * (chosen[0] - chosen[1])

    start = difference(plain)
    gap = jnp.sum(difference(wanted) - start)
    moved = jax.lax.map(lambda site: jnp.sum(difference(read(site)) - start), where)
    return moved / jnp.where(gap > 0, gap, jnp.nan), counted.sum(dtype=jnp.int32)


def _told(
    policy: Policy,
    world: base.World,
    parameters: Parameters,
    start: Parameters,
    params: base.WorldParams,
    decision: int,
    another: bool,
    episodes: int,
) -> dict[str, jax.Array]:
    """Of `patching`: `stream` float32[L + 1, P], `pairs` int32[], of a transformer `written` float32[C, 2]."""
    parts = parts_of(world, decision)
    parts = parts[parts.any(axis=1)]
    length, allowed = parts.shape[1], jnp.asarray(inside.choices(policy, world)[decision])
    reader = dataclasses.replace(policy.config, compute_dtype="float32", matrix_precision="float32")
    reader = dataclasses.replace(policy, config=reader)
    seen = inside.played(policy, parameters, world, params, episodes)
    sequences = seen.tokens[:, :length]
    # Where the episode is over, or the opening, there is no choice any more.
    there = seen.decided[:, decision]
    sources = jnp.roll(sequences, 1, axis=0) if another else sequences
    there &= jnp.roll(there, 1) if another else there

    def read(parameters, sequences, intervention=None, capture=None):
        outputs = reader.forward(
            parameters, sequences, intervention=intervention, capture=capture, at=np.array([length - 1])
        )
        return reader.heads(parameters, outputs.hidden[:, 0])[0], outputs.residual

    whose = parameters if another else start
    wanted, stream = read(whose, sources, capture=np.arange(length))
    plain, _ = read(parameters, sequences)
    # A source that likes what the reader likes does not count: so no choice, no difference.
    wanted = jnp.where(there[:, None], wanted, plain)

    def replaced(where):
        return read(parameters, sequences, Intervention(replacement=stream, where=where))[0]

    moved, pairs = carried(replaced, jnp.asarray(places(policy, parts)), plain, wanted, allowed)
    told = {"stream": moved.reshape(-1, len(parts)), "pairs": pairs}
    if policy.config.family != "transformer":
        return told
    where = jax.tree.map(jnp.asarray, sites(policy, length))
    given = jax.vmap(lambda sequence: inside.read(policy, whose, sequence, names=tuple(where)))(sources)

    def rewritten(where):
        def last(sequence, values):
            patch = inside.Patch(values, where)
            return inside.read(policy, parameters, sequence, patch, names=("logits",))["logits"][-1]

        return jax.vmap(last)(sequences, given)

    moved, _ = carried(rewritten, where, plain, wanted, allowed)
    return told | {"written": moved.reshape(-1, len(WHERE))}
