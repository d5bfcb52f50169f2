"""Direct logit attribution: how much the embedding, each head and each MLP speak for what a policy chooses."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr

from agents.policies import Parameters, Policy
from agents.runs import Run
from analysis import estimates, inside
from analysis.figures.panels import Map, Panel
from analysis.measure import each, measure, variable
from envs import base
from ground.precise import product


def panels(arms: Mapping[str, xr.Dataset]) -> list[Panel]:
    """What each part of each member adds to the logit of its choice, a map for each arm, checkpoint and place."""
    shown = list[Panel]()
    for label, part in estimates.columns(arms).items():
        for place in part["place"].values:
            values = part["contribution"].sel(place=place).transpose("component", "member")
            members = tuple(str(number) for number in part["member"].values)
            words = f"{label}, {place}: part of the logit (by member)"
            shown.append(Map(values.values, tuple(part["component"].values.tolist()), members, words, diverging=True))
    return shown


@measure(panels=panels)
def attribution(run: Run, checkpoint: str, *, episodes: int = 256) -> xr.Dataset:
    """How much the embedding, each head and each MLP speak for a policy's choices: direct logit attribution.

    The logit of what the policy likes best, less the mean of all that may be said, is a sum over what is written to the
    stream, each by its own direct way through the last norm, whose scale is taken as it is. What a part does by way of
    later ones is theirs. Heads have no order: those of two members with one number have nothing in common.

    Args:
        episodes: of each member, the same held-out mazes for all; a multiple of 64 if more.

    Returns:
        Means over a member's choices, by `place`: `contribution` float32[member, place, component], logits; they add up
        to `logit` float32[member, place]; `summed` float32[member, place, part], the heads of a block as one; `size`
        float32[member, place, component], the mean of their absolute values.
    """
    inside.check(run, episodes)
    places = inside.PLACES if run.world.opening_length else inside.PLACES[1:]
    contribution, size, logit = (x[:, -len(places) :] for x in each(_told, run, checkpoint, episodes=episodes))
    dims = "member place component"
    layers, heads = run.policy.config.layers, run.policy.config.heads
    of_block = np.split(contribution, np.cumsum([1, *[heads] * layers]), axis=-1)
    summed = np.concatenate([*(x.sum(axis=-1, keepdims=True) for x in of_block[:-1]), of_block[-1]], axis=-1)
    blocks = [f"block {layer + 1}" for layer in range(layers)]
    return xr.Dataset(
        {
            "logit": variable("member place", logit, "logit of the choice above the mean of all"),
            "summed": variable("member place part", summed, "what its parts add to it"),
            "contribution": variable(dims, contribution, "its part", table=0),
            "size": variable(dims, size, "absolute value of its part", table=0),
        },
        {
            "place": list(places),
            "component": ["embedding", *inside.components(run)],
            "part": ["embedding", *(f"{name} heads" for name in blocks), *(f"{name} MLP" for name in blocks)],
        },
    )


def parts(
    policy: Policy, parameters: Parameters, sequence: jax.Array, decisions: np.ndarray, allowed: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Parts float32[D, C] of the logits float32[D] of what is liked best at choices, less the mean of what may be said.

    Args:
        policy, parameters: of one member.
        sequence: tokens int32[S].
        decisions: positions before the choices, int[D].
        allowed: bool[D, V], what may be said.
    """
    names = ("stream", "heads", "mlp", "logits")
    told = inside.read(policy, parameters, sequence, names=names)
    stream, logits = told["stream"][:, decisions], told["logits"][decisions]
    heads = told["heads"][:, :, decisions]
    written = jnp.concatenate([stream[:1], heads.reshape(-1, *heads.shape[2:]), told["mlp"][:, decisions]])
    table = parameters["embedding"]["embedding"].astype(jnp.float32)
    best = jnp.argmax(jnp.where(allowed, logits, -jnp.inf), axis=-1)
    among = allowed.astype(jnp.float32) / allowed.sum(axis=-1, keepdims=True, dtype=jnp.float32)
    direction = table[best] - product("dv,vw->dw", among, table)
    through = direction * parameters["norm"]["scale"].astype(jnp.float32)[None] / inside.root(stream[-1])
    logit = jnp.take_along_axis(logits, best[:, None], axis=1)[:, 0] - jnp.sum(among * logits, axis=-1)
    return product("cdw,dw->dc", written, through), logit


def _told(
    policy: Policy, world: base.World, parameters: Parameters, params: base.WorldParams, episodes: int
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Parts and their sizes float32[2, C], and the logits float32[2]; NaN where no such choice is made."""
    decisions, allowed = world.decision_positions() - 1, jnp.asarray(inside.choices(policy, world))

    def episode(sequence, weight):
        part, logit = parts(policy, parameters, sequence, decisions, allowed)
        return tuple(product("pd,d...->p...", weight, x) for x in (part, jnp.abs(part), logit))

    return inside.by_place(episode, policy, parameters, world, params, episodes)
