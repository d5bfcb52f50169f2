"""Fidelity: what a model knows of the personas it was shown, in the world's own currency and in nats.

A model that is told who it is, by its badge, should earn what that persona earns; told nothing, it should be the
mixture of them, in the proportions in which it met them.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from agents.learning import learner, objectives, rl, rollout
from agents.policies import Parameters, Policy
from agents.runs import scripts
from envs import base, personas, tokens
from envs.personas import Traits

_BATCH = 64
EPISODES = 512
"""Episodes behind what is told in nats."""


def told(
    policy: Policy,
    parameters: Parameters,
    world: base.World,
    params: base.WorldParams,
    traits: Traits,
    prior: np.ndarray,
    outcomes: np.ndarray,
    played: rollout.Episodes,
    exact: jax.Array,
) -> dict[str, Any]:
    """What `summary.json` says of a base and its badges.

    Args:
        policy, parameters: of one member before RL.
        world, params, traits: what it has learnt from.
        prior: chances of the personas where `params` plays, float[3].
        outcomes: mean return and share of successes with each persona's badge, and of its script on the same mazes,
            float[2, 2, 3].
        played, exact: as in `nats_per_token`.

    Returns:
        `badges`, for each persona the model's return and success with its badge beside the script's, and the KL from
        script to model, nats per token that the script chose, its name apart; and `misfit`, KL from the model without
        a badge to the mixture of itself with each, nats per episode.
    """
    nats = np.asarray(nats_per_token(policy, parameters, world, params, traits, played, exact))
    kinds = ("return", "success")[: 1 + world.has_goal]
    badges = {}
    for index, name in enumerate(personas.PERSONAS):
        own, script = outcomes[..., index].tolist()
        badges[name] = {kind: own[row] for row, kind in enumerate(kinds)}
        badges[name] |= {f"script_{kind}": script[row] for row, kind in enumerate(kinds)}
        badges[name]["kl_per_token"] = float(nats[index])
    weights = jnp.asarray(prior, jnp.float32)
    return {"badges": badges, "misfit": float(misfit(policy, parameters, world, params, weights))}


@functools.partial(jax.jit, static_argnames=("policy", "world"))
def nats_per_token(
    policy: Policy,
    parameters: Parameters,
    world: base.World,
    params: base.WorldParams,
    traits: Traits,
    played: rollout.Episodes,
    exact: jax.Array,
) -> jax.Array:
    """KL from each persona to the model with its badge, nats per token that the persona chose; float32[3].

    Of the actions it is exact given the history, of a plan the log-ratio of what was written; the name is left out.

    Args:
        policy, parameters: of one member.
        world, params, traits: as the personas played.
        played, exact: of `scripts.script_episodes`, the personas' own, on the first of the evaluation's mazes.
    """
    keys, _ = scripts.mazes(played.tokens.shape[1])
    _, first = jax.vmap(world.reset_env, in_axes=(0, None))(keys, params)

    def of_persona(arguments):
        persona, played, exact = arguments
        badge = jnp.array(tokens.BADGES, jnp.int32)[persona + 1]

        def part(rows):
            sequence, exact, counts, start, decided = rows
            reading = rl.read_decisions(policy, parameters, world, sequence.at[:, world.badge_position].set(badge))
            nats = jnp.sum(objectives.divergence(exact, reading.actions), where=counts)
            count = counts.sum(dtype=jnp.float32)
            if world.plan_length:
                said, written = world.said(world.opening(sequence)), decided[:, world.spoken : world.opening_length]
                chosen = jnp.take_along_axis(reading.openings, said[..., None], axis=-1)[:, world.spoken :, 0]
                plans = jax.vmap(lambda plan, state: world.plan_log_probabilities(plan, state, params, traits))
                nats += jnp.sum(plans(world.plan(sequence), start)[:, persona]) - jnp.sum(chosen, where=written)
                count += written.sum(dtype=jnp.float32)
            return nats, count

        rows = (played.tokens, exact, played.played, first, played.decided)
        nats, count = jax.lax.map(part, learner.microbatches(rows, _BATCH))
        return nats.sum() / count.sum()

    return jax.lax.map(of_persona, (jnp.arange(len(personas.PERSONAS)), played, exact))


@functools.partial(jax.jit, static_argnames=("policy", "world"))
def misfit(
    policy: Policy, parameters: Parameters, world: base.World, params: base.WorldParams, prior: jax.Array
) -> jax.Array:
    """KL(model ‖ Σ_i w_i model told to be i), nats per episode, float32[], from episodes of the model.

    The weights are `prior`, float32[3]; where the model names itself, its own chances of each name after that prompt,
    so that nothing but rounding is left.
    """
    played = rollout.policy_episodes(policy, parameters, world, params, scripts.mazes(1)[1], EPISODES)

    def part(rows):
        sequence, actions, decided = rows

        def likelihood(sequence):
            reading = rl.read_decisions(policy, parameters, world, sequence)
            name, rest = jnp.split(reading.chosen(world.said(world.opening(sequence)), actions), [world.spoken], axis=1)
            return jnp.sum(rest, axis=1, where=decided[:, world.spoken :]), name

        own, named = likelihood(sequence)
        own += named.sum(axis=1)
        badges = jnp.array(tokens.BADGES[1:], jnp.int32)
        rest, names = jax.lax.map(lambda badge: likelihood(sequence.at[:, world.badge_position].set(badge)), badges)
        if world.spoken:
            said = sequence[:, world.badge_position][None] == badges[:, None]
            joint = jnp.sum(rest + names[..., 0], axis=0, where=said)
        else:
            joint = jax.nn.logsumexp(jnp.log(prior)[:, None] + rest, axis=0)
        return own - joint

    return jnp.mean(jax.lax.map(part, learner.microbatches((played.tokens, played.actions, played.decided), _BATCH)))
