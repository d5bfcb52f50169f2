"""How far training has taken a policy from its base: KL in nats per episode, the dose of every dose-response curve."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr

from agents.learning import population, rl, rollout
from agents.policies import Parameters, Policy
from agents.runs import Run
from analysis.measure import end, measure
from envs import base
from ground import seeds
from ground.terminal import ConfigError

_AT_ONCE = 64
"""Episodes that are played and read at the same time."""


@measure(checkpoints=end)
def divergence(run: Run, checkpoint: str, *, episodes: int = 512) -> xr.Dataset:
    """How far a policy is from its pretrained base.

    Args:
        episodes: that each member plays, the same mazes for all; a multiple of 64 if more.

    Returns:
        `kl` float32[member], KL(π ‖ base) of whole episodes in nats, and `error`, its standard error over episodes.
    """
    if episodes < 2 or (episodes > _AT_ONCE and episodes % _AT_ONCE):
        raise ConfigError(f"--episodes={episodes}: use 2 to {_AT_ONCE}, or a multiple of {_AT_ONCE}")
    after, before = (jax.tree.map(jnp.asarray, run.kept_parameters(name)) for name in (checkpoint, "pretrain"))
    nats = np.asarray(per_episode(run.policy, after, before, run.world, run.params, episodes), np.float64)
    units = {"units": "nats per episode"}
    return xr.Dataset(
        {
            "kl": ("member", nats.mean(axis=1), {"long_name": "KL from the base", **units}),
            "error": ("member", nats.std(axis=1, ddof=1) / np.sqrt(episodes), {"long_name": "its error", **units}),
        }
    )


@functools.partial(jax.jit, static_argnames=("policy", "world", "episodes"), compiler_options=population.OPTIMISED)
def per_episode(
    policy: Policy,
    parameters: Parameters,
    reference: Parameters,
    world: base.World,
    params: base.WorldParams,
    episodes: int = 512,
) -> jax.Array:
    """KL(π ‖ π_0) of whole episodes, summed over the decisions of a plan and of the turns, each in closed form.

    Its mean over episodes of π is the KL of episodes by the chain rule, with less noise than a difference of
    log-likelihoods (Rao and Blackwell). The world's chance is the same for both and cancels.

    Args:
        policy: of both.
        parameters: π; axis 0 is the member.
        reference: π_0; axis 0 is the member.
        world, params: where π plays; axis 0 of every leaf of `params` is the member.
        episodes: of each member, the same mazes for all; a multiple of 64 if more.

    Returns:
        Nats per episode, float32[M, episodes].
    """
    key = seeds.held_out("divergence")

    def member(parameters, reference, params):
        def part(key):
            played = rollout.policy_episodes(policy, parameters, world, params, key, min(episodes, _AT_ONCE))
            now, then = (rl.read_decisions(policy, x, world, played.tokens) for x in (parameters, reference))

            def total(log_now, log_then, chosen):
                each = jnp.sum(jnp.exp(log_now) * (log_now - log_then), axis=-1)
                return jnp.sum(each, axis=-1, where=chosen)

            return total(now.openings, then.openings, played.written) + total(now.actions, then.actions, played.played)

        return jax.lax.map(part, jax.random.split(key, max(episodes // _AT_ONCE, 1))).reshape(-1)

    members = len(jax.tree.leaves(parameters)[0])
    return population.over_members(member, population.mesh(members, 1))(parameters, reference, params)
