"""Fidelity: what a model knows of the personas it was shown, in the world's own currency and in nats.

A model that is told who it is, by its badge, should earn what that persona earns; told nothing, it should be the
mixture of them, in the proportions in which it met them.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from agents.learning import learner, population, rl, rollout
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
    script_outcomes: np.ndarray,
    episodes: int,
) -> dict[str, Any]:
    """What `summary.json` says of a base and its badges.

    Args:
        policy, parameters: of one member before RL.
        world, params, traits: what it has learnt from.
        prior: chances of the personas where `params` plays, float[3].
        script_outcomes: mean return and share of successes of the personas' scripts, float[2, 3], on the same mazes.
        episodes: of the evaluation.

    Returns:
        `badges`, for each persona the model's return and success with its badge beside the script's, and the KL from
        script to model, nats per token that the script chose, its name apart; and `misfit`, KL from the model without
        a badge to the mixture of itself with each, nats per episode. Nothing where no badge is ever told.
    """
    if world.badge == "null":
        return {}
    own = np.asarray(outcomes(policy, parameters, world, params, episodes), np.float64)
    nats = np.asarray(nats_per_token(policy, parameters, world, params, traits))
    badges = {
        name: {
            "return": float(own[0, index]),
            "script_return": float(script_outcomes[0, index]),
            **(
                {"success": float(own[1, index]), "script_success": float(script_outcomes[1, index])}
                if world.has_goal
                else {}
            ),
            "kl_per_token": float(nats[index]),
        }
        for index, name in enumerate(personas.PERSONAS)
    }
    weights = jnp.asarray(prior, jnp.float32)
    return {"badges": badges, "misfit": float(misfit(policy, parameters, world, params, weights))}


@functools.partial(jax.jit, static_argnames=("policy", "world", "episodes"), compiler_options=population.OPTIMISED)
def outcomes(
    policy: Policy, parameters: Parameters, world: base.World, params: base.WorldParams, episodes: int
) -> jax.Array:
    """Mean return and share of successes of a model with each persona's badge, float32[2, 3]."""
    keys, turn_key = scripts.mazes(episodes)

    def with_badge(speaker):
        def part(rows):
            driver = rollout.policy_driver(policy, parameters, world, speaker=speaker)
            noise = rollout.gumbel(episodes, lambda x: x[rows])
            named = rollout.named(world, params, speaker)
            played, _, _ = rollout.play(world, named, keys[rows], turn_key, driver, noise)
            return jnp.stack([played.returns, rollout.succeeded(world, played).astype(jnp.float32)])

        parts = jax.lax.map(part, learner.microbatches(jnp.arange(episodes), _BATCH))
        return parts.mean(axis=(0, 2))

    return jax.lax.map(with_badge, jnp.arange(len(personas.PERSONAS))).T


@functools.partial(jax.jit, static_argnames=("policy", "world"))
def nats_per_token(
    policy: Policy, parameters: Parameters, world: base.World, params: base.WorldParams, traits: Traits
) -> jax.Array:
    """KL from each persona to the model with its badge, nats per token that the persona chose; float32[3].

    Of the actions it is exact given the history, of a plan the log-ratio of what was written; the name is left out.
    """
    keys, turn_key = scripts.mazes(EPISODES)
    _, first = jax.vmap(world.reset_env, in_axes=(0, None))(keys, params)

    def of_persona(persona):
        driver = scripts.script_driver(world, params, traits, persona + len(personas.BASELINES))
        played, exact, _ = rollout.play(
            world, params, keys, turn_key, driver, rollout.gumbel(EPISODES), observe=lambda _, scores: scores
        )
        badge = jnp.array(tokens.BADGES, jnp.int32)[persona + 1]

        def part(rows):
            sequence, exact, counts, start, decided = rows
            reading = rl.read_decisions(policy, parameters, world, sequence.at[:, world.badge_position].set(badge))
            actions = jnp.sum(jnp.exp(exact) * (exact - reading.actions), axis=-1)
            nats, count = jnp.sum(actions, where=counts), counts.sum(dtype=jnp.float32)
            if world.plan_length:
                said, written = world.said(world.opening(sequence)), decided[:, world.spoken : world.opening_length]
                chosen = jnp.take_along_axis(reading.openings, said[..., None], axis=-1)[:, world.spoken :, 0]
                plans = jax.vmap(lambda plan, state: world.plan_log_probabilities(plan, state, params, traits))
                nats += jnp.sum(plans(world.plan(sequence), start)[:, persona]) - jnp.sum(chosen, where=written)
                count += written.sum(dtype=jnp.float32)
            return nats, count

        rows = (played.tokens, jnp.moveaxis(exact, 0, 1), played.played, first, played.decided)
        nats, count = jax.lax.map(part, learner.microbatches(rows, _BATCH))
        return nats.sum() / count.sum()

    return jax.lax.map(of_persona, jnp.arange(len(personas.PERSONAS)))


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
            chosen = reading.chosen(world.said(world.opening(sequence)), actions)
            return jnp.sum(chosen[:, world.spoken :], axis=1, where=decided[:, world.spoken :]), chosen[
                :, : world.spoken
            ]

        own, named = likelihood(sequence)
        own += named.sum(axis=1)
        badges = jnp.array(tokens.BADGES[1:], jnp.int32)
        rest, names = jax.lax.map(lambda badge: likelihood(sequence.at[:, world.badge_position].set(badge)), badges)
        if world.spoken:
            said = (sequence[:, world.badge_position][None] == badges[:, None]).astype(jnp.int32)
            joint = jnp.sum(jnp.where(said == 1, rest + names[..., 0], 0.0), axis=0)
        else:
            joint = jax.nn.logsumexp(jnp.log(prior)[:, None] + rest, axis=0)
        return own - joint

    return jnp.mean(jax.lax.map(part, learner.microbatches((played.tokens, played.actions, played.decided), _BATCH)))
