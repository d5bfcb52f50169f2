"""The logit lens: what a policy would choose if its residual stream were read after each block."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr

from agents.policies import Parameters, Policy
from agents.runs import Run
from analysis import estimates, inside
from analysis.figures.panels import Curve, Curves, Panel
from analysis.measure import each, measure, variable
from envs import base

TOLD = ("kl", "agreement", "probability")


def panels(arms: Mapping[str, xr.Dataset]) -> list[Panel]:
    """How far the lens is from the policy, and how often it would choose the same, by entry of the stream."""
    parts, shown = estimates.columns(arms), list[Panel]()
    for place in inside.PLACES:
        there = {label: part.sel(place=place) for label, part in parts.items() if place in part["place"].values}
        for name in TOLD[:2] if there else ():
            curves = {
                label: Curve(part["entry"].values, part[name].transpose("entry", "member").values, part["unit"].values)
                for label, part in there.items()
            }
            words = f"{place}: {next(iter(arms.values()))[name].attrs['long_name']}"
            units = " (nats)" if name == "kl" else " (%)"
            shown.append(Curves(curves, "read after block", words + units, percent=name != "kl"))
    return shown


@measure(panels=panels)
def lens(run: Run, checkpoint: str, *, episodes: int = 256) -> xr.Dataset:
    """What a policy would choose if its residual stream were read after each block: the logit lens.

    The stream there is taken for the last block's: the last norm and the tied embedding make logits of it, among which
    those of what may be said count. At the last block it is the policy itself.

    Args:
        episodes: of each member, the same held-out mazes for all; a multiple of 64 if more.

    Returns:
        Means over a member's choices, by `place` and by `entry`, 0 the embedding, l the output of block l; float32
        [member, place, entry]: `kl`, nats from the policy to the lens; `agreement`, how often both like the same best;
        `probability`, what the lens gives to what the policy likes best. Nothing is fitted; a lens that is (arXiv
        2303.08112) can read more of what is there.
    """
    inside.check(run, episodes)
    places = inside.PLACES if run.world.opening_length else inside.PLACES[1:]
    told = each(_told, run, checkpoint, episodes=episodes)[:, -len(places) :]
    dims = "member place entry"
    return xr.Dataset(
        {
            "kl": variable(dims, told[:, :, 0], "KL from the policy to the lens", "nats"),
            "agreement": variable(dims, told[:, :, 1], "choices that the lens makes alike", "share"),
            "probability": variable(dims, told[:, :, 2], "the lens' probability of the policy's choice", "share"),
        },
        {"place": list(places), "entry": np.arange(run.policy.config.layers + 1)},
    )


def compared(stream: jax.Array, parameters: Parameters, allowed: jax.Array) -> jax.Array:
    """`TOLD` of the stream at one choice, float32[3, L + 1].

    Args:
        stream: float32[L + 1, width].
        parameters: of the member.
        allowed: bool[V], what may be said.
    """
    logits, _ = inside.predictions(parameters, stream)
    read = jax.nn.log_softmax(jnp.where(allowed[None], logits, -1e9))
    policy = read[-1]
    best = jnp.argmax(policy)
    kl = jnp.sum(jnp.exp(policy)[None] * (policy[None] - read), axis=-1, where=allowed[None])
    return jnp.stack([kl, (jnp.argmax(read, axis=-1) == best).astype(jnp.float32), jnp.exp(read[:, best])])


def _told(
    policy: Policy, world: base.World, parameters: Parameters, params: base.WorldParams, episodes: int
) -> jax.Array:
    """float32[2, 3, L + 1]; NaN where no such choice is made."""
    decisions, allowed = world.decision_positions() - 1, jnp.asarray(inside.choices(policy, world))

    def episode(sequence, weight):
        stream = inside.read(policy, parameters, sequence, names=("stream",))["stream"][:, decisions]
        told = jax.vmap(lambda x, may: compared(x, parameters, may))(jnp.moveaxis(stream, 1, 0), allowed)
        return inside.product("dtl,pd->ptl", told, weight)

    return inside.by_place(episode, policy, parameters, world, params, episodes)
