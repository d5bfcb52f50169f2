"""How far training has taken a policy from its base: KL in nats per episode, the dose of every dose-response curve.

Beside it how open the policy still is: the entropy of a decision. Both by channel: the name that a policy gives itself,
its thought, its moves.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr

from agents.learning import objectives, population, rl, rollout
from agents.policies import Parameters, Policy
from agents.runs import Run
from analysis import accounts
from analysis.accounts import CHANNELS
from analysis.measure import AT_ONCE, check_episodes, end, measure, variable
from envs import base
from ground import seeds


@measure(checkpoints=end)
def divergence(run: Run, checkpoint: str, *, episodes: int = 512) -> xr.Dataset:
    """How far a policy is from its pretrained base.

    Args:
        episodes: that each member plays, the same mazes for all; a multiple of 64 if more.

    Returns:
        `kl` float64[member], KL(π ‖ base) of whole episodes in nats, and `error`, its standard error over episodes;
        `kl_by_channel` float64[member, channel], which adds up to it; and `entropy` float64[member, channel], nats
        per decision of π. Of `CHANNELS` those that the world has.
    """
    check_episodes(episodes)
    after, before = (run.kept_parameters(name) for name in (checkpoint, "pretrain"))

    def some(after, before, params):
        return by_channel(run.policy, after, before, run.world, params, episodes)

    told = population.in_turn(some, after, before, run.params)
    nats, entropy, decisions = (np.asarray(x, np.float64) for x in told)
    total, units = nats.sum(axis=-1), "nats per episode"
    there = np.flatnonzero([run.world.spoken, run.world.plan_length, run.world.turns])
    made = entropy.sum(axis=1)[:, there] / decisions.sum(axis=1)[:, there]
    return xr.Dataset(
        {
            "kl": variable("member", total.mean(axis=1), "KL from the base", units),
            "error": variable("member", total.std(axis=1, ddof=1) / np.sqrt(episodes), "its error", units),
            "kl_by_channel": variable("member channel", nats.mean(axis=1)[:, there], "KL by channel", units),
            "entropy": variable("member channel", made, "entropy of a decision", "nats"),
        },
        {"channel": [CHANNELS[index] for index in there]},
    )


@functools.partial(jax.jit, static_argnames=("policy", "world", "episodes"), compiler_options=population.OPTIMISED)
def by_channel(
    policy: Policy,
    parameters: Parameters,
    reference: Parameters,
    world: base.World,
    params: base.WorldParams,
    episodes: int = 512,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """KL(π ‖ π_0) of whole episodes, summed over the decisions of each channel, each in closed form.

    Its mean over episodes of π is the KL of episodes by the chain rule, with less noise than a difference of
    log-likelihoods (Rao and Blackwell). The world's chance is the same for both and cancels.

    Args:
        policy: of both.
        parameters: π; axis 0 is the member.
        reference: π_0; axis 0 is the member.
        world, params: where π plays; axis 0 of every leaf of `params` is the member.
        episodes: of each member, the same mazes for all; a multiple of 64 if more.

    Returns:
        Nats per episode, and entropies of π summed over the decisions, float32[M, episodes, 3]; and how many
        decisions there were, int32 of that shape.
    """
    key = seeds.held_out("divergence")

    def member(parameters, reference, params):
        def part(key):
            played = rollout.policy_episodes(policy, parameters, world, params, key, min(episodes, AT_ONCE))

            def read(parameters):
                return rl.read_decisions(policy, parameters, world, played.tokens)

            now, then = accounts.of_both(read, parameters, reference)
            entropy = accounts.summed(world, played, *map(objectives.entropy, (now.openings, now.actions)))
            ones = jnp.ones_like(played.written, jnp.int32), jnp.ones_like(played.actions)
            made = accounts.summed(world, played, *ones)
            return accounts.by_channel(world, now, then, played), entropy, made

        parts = jax.lax.map(part, jax.random.split(key, max(episodes // AT_ONCE, 1)))
        return jax.tree.map(lambda x: x.reshape(-1, len(CHANNELS)), parts)

    members = len(jax.tree.leaves(parameters)[0])
    return population.over_members(member, population.mesh(members, 1))(parameters, reference, params)
