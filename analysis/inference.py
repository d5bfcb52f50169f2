"""Does a model know its personas, and does it infer from its own history who it is?

Personas play episodes whose prompt names nobody, and a model reads them. Before each action an observer who knows the
personas exactly, and the chances of each that the model was shown, has a posterior q(i | history) over who is acting,
and a model that had learnt everything would act as Σ q(i | history) π_i. What a model believes shows in its actions
alone, so its implied weights are those of the mixture of personas that explains them best, over all episodes that come
to that turn:

    w = argmax over the simplex of the mean over episodes of Σ_a p(a | history) log Σ_j w_j π_j(a | state).

That is concave, and expectation maximisation climbs it from the prior (as `selection.best_mixture` does for whole
episodes). That a language model infers a latent speaker in this way is the hypothesis of arXiv 2111.02080.

Three caveats. Where personas act alike the weights are not identified, and EM stays near its start, the prior.
Episodes in which personas act more differently weigh more, so that even the ideal observer's implied weights differ
a little from its mean posterior; `Beliefs.benchmark` says by how much. And a model that imitates personas badly has
implied weights too: `Beliefs.nats` says how far it is from the ideal observer. The observer knows what each emoji
does; a model whose pretraining drew tile maps has to find that out as well.

I true personas, J = I candidates, N episodes of each, T turns, A actions.
"""

import functools

import jax
import jax.numpy as jnp
from flax import struct

from agents.learning import demonstrations, learner, objectives, population, rl, rollout
from agents.learning.demonstrations import Demonstrations
from agents.policies import Parameters, Policy
from agents.runs import evaluation
from envs import base, personas
from envs.personas import Traits
from ground import seeds
from ground.precise import product

STEPS = 100
"""Of expectation maximisation."""

_LEAST = 1e-3
"""Weight at which expectation maximisation starts at least: from nothing it never gets away."""

_BATCH = 64
"""Episodes played and read at the same time."""


@struct.dataclass
class Seen:
    """Episodes of each persona whose prompt names nobody, and what a model would have done in its place."""

    model: jax.Array
    """float32[I, N, T, A], the model's log-probability of each action before it."""
    personas: jax.Array
    """float32[I, N, T, J, A], the exact one of each persona."""
    posterior: jax.Array
    """float32[I, N, T, J], log q(j | history) before each action; NaN once nobody of any chance would play so."""
    played: jax.Array
    """bool[I, N, T], False after the episode's end."""
    prior: jax.Array
    """float32[J], chances of the personas before anything has happened."""


@struct.dataclass
class Beliefs:
    """What an observer and a model make of a history; NaN at turns that no episode has come to."""

    ideal: jax.Array
    """float32[I, T, J], the mean posterior before turn t of episodes that persona i plays."""
    implied: jax.Array
    """float32[I, T, J], the model's implied weights."""
    benchmark: jax.Array
    """float32[I, T, J], the implied weights of the ideal observer: what the method makes of a perfect model."""
    nats: jax.Array
    """float32[I, 2], mean KL from the ideal observer's action distribution to the model's, and to that of an
    observer who always believes the prior; nats per action, NaN where the posterior is."""
    episodes: jax.Array
    """int32[I, T], how many came to the turn."""
    badges: jax.Array
    """float32[I, 1 + J], mean KL(persona ‖ model) per action, in nats, without a badge and with each persona's."""


def watch(
    policy: Policy,
    parameters: Parameters,
    world: base.World,
    params: base.WorldParams,
    traits: Traits,
    prior: jax.Array,
    episodes: int,
) -> tuple[Seen, rollout.Episodes]:
    """Let each persona play without a badge, on the same mazes in every call, and a model read.

    Args:
        policy, parameters: of one member.
        world, params: where they play; the head of the prompt names nobody.
        traits: of the personas.
        prior: their chances there, float32[J], which sum to 1.
        episodes: N, of each persona.

    Returns:
        What was seen, and the episodes, axes [I, N, …].
    """
    maze_key, turn_key = jax.random.split(seeds.held_out("inference"))
    maze_keys = jax.random.split(maze_key, episodes)

    def of_persona(persona):
        def part(rows):
            def keys(key):
                return jax.random.split(key, episodes)[rows]

            chosen = jnp.full(rows.shape, persona)
            driver = demonstrations.persona_driver(world, params, chosen, traits, keys)
            noise = rollout.gumbel(episodes, lambda x: x[rows])
            played, states, _ = rollout.play(
                world, params, maze_keys[rows], turn_key, driver, noise, observe=lambda states, scores: states
            )
            plans = world.plan(played.tokens)

            def chances(states, plan):
                def one(state):
                    return world.persona_log_probabilities(state, plan, params, traits)

                first = jax.tree.map(lambda x: x[0], states)
                written = world.plan_log_probabilities(plan, first, params, traits)
                return written, jax.vmap(one)(states)

            written, exact = jax.vmap(chances, in_axes=(1, 0))(states, plans)
            taken = jnp.take_along_axis(exact, played.actions[..., None, None], axis=-1)[..., 0]
            posterior = personas.log_posteriors(prior, written, taken, played.played)[:, :-1]
            said, _ = rl.read(policy, parameters, world, played.tokens)
            return (said, exact, posterior, played.played), played

        seen = jax.lax.map(part, learner.microbatches(jnp.arange(episodes), _BATCH))
        return jax.tree.map(lambda x: x.reshape(episodes, *x.shape[2:]), seen)

    (said, exact, posterior, lasted), played = jax.lax.map(of_persona, jnp.arange(len(personas.PERSONAS)))
    return Seen(said, exact, posterior, lasted, prior), played


def implied_weights(
    chances: jax.Array, alike: jax.Array, share: jax.Array, prior: jax.Array, steps: int = STEPS
) -> jax.Array:
    """Weights of the mixture of personas that explains a model's actions best, float32[J].

    Args:
        chances: the model's probability of each action at one turn, float32[N, A].
        alike: the personas' in the same states, float32[N, J, A].
        share: of each episode, float32[N], 0 or more; all 0 gives NaN.
        prior: where it starts, float32[J], each weight raised to `_LEAST` at least.
        steps: of expectation maximisation, 1 or more.
    """
    likelihood = jnp.moveaxis(alike, 1, 2).reshape(-1, alike.shape[1])
    mass = (chances * share[:, None]).reshape(-1)

    def improve(_, weights):
        mixture = product("nk,k->n", likelihood, weights)
        # What no persona ever does speaks for none of them.
        ratio = jnp.where(mixture > 0, mass / jnp.where(mixture > 0, mixture, 1.0), 0.0)
        weights = weights * product("n,nk->k", ratio, likelihood)
        return weights / weights.sum()

    return jax.lax.fori_loop(0, steps, improve, jnp.maximum(prior, _LEAST))


def implied(chances: jax.Array, seen: Seen, steps: int = STEPS) -> jax.Array:
    """`implied_weights` at every turn of every persona's episodes, float32[I, T, J].

    Args:
        chances: of a model's actions, float32[I, N, T, A].
        seen: the episodes.
        steps: of expectation maximisation.
    """
    several, episodes, turns, _ = chances.shape

    def by_turn(x):
        return jnp.moveaxis(x, 2, 1).reshape(several * turns, episodes, *x.shape[3:])

    def one(arguments):
        chances, log_personas, played = arguments
        return implied_weights(chances, jnp.exp(log_personas), _share(played), seen.prior, steps)

    found = jax.lax.map(one, (by_turn(chances), by_turn(seen.personas), by_turn(seen.played)))
    return found.reshape(several, turns, -1)


def mean_posterior(seen: Seen) -> jax.Array:
    """The ideal observer's mean posterior before each turn, float32[I, T, J]."""
    share = jax.vmap(jax.vmap(_share, in_axes=1))(seen.played)
    return product("itn,intj->itj", share, jnp.exp(seen.posterior))


def ideal_actions(seen: Seen) -> jax.Array:
    """Log-probabilities of the ideal observer's actions, Σ_j q(j | history) π_j(a | state), float32[I, N, T, A]."""
    return jax.nn.logsumexp(seen.posterior[..., None] + seen.personas, axis=-2)


def beliefs(seen: Seen, badges: jax.Array) -> Beliefs:
    """Everything about one member; `badges` from `badge_fidelity`."""
    ideal = ideal_actions(seen)
    log_prior = jnp.log(seen.prior)[None, None, None, :, None]
    blind = jax.nn.logsumexp(log_prior + seen.personas, axis=-2)
    nats = [objectives.divergence(ideal, other) for other in (seen.model, blind)]
    unknown = jnp.isnan(ideal).any(axis=-1)
    apart = [jnp.mean(jnp.where(unknown, jnp.nan, each), axis=(1, 2), where=seen.played) for each in nats]
    return Beliefs(
        ideal=mean_posterior(seen),
        implied=implied(jnp.exp(seen.model), seen),
        benchmark=implied(jnp.exp(ideal), seen),
        nats=jnp.stack(apart, axis=-1),
        episodes=jnp.sum(seen.played, axis=1, dtype=jnp.int32),
        badges=badges,
    )


def badge_fidelity(
    policy: Policy,
    parameters: Parameters,
    world: base.World,
    params: base.WorldParams,
    seen: Seen,
    played: rollout.Episodes,
) -> jax.Array:
    """`evaluation.badge_divergence` on the personas' episodes, float32[I, 1 + J]; arguments as `watch` has them."""
    own = jnp.arange(len(seen.personas))
    exact = jax.vmap(lambda x, persona: x[:, :, persona])(seen.personas, own)
    return evaluation.badge_divergence(policy, parameters, world, params, played, exact)


@functools.partial(jax.jit, static_argnames=("policy", "world", "episodes"))
def measure(
    policy: Policy,
    parameters: Parameters,
    world: base.World,
    params: base.WorldParams,
    shown: Demonstrations,
    prior: jax.Array,
    episodes: int,
) -> Beliefs:
    """`beliefs` of every member; all arrays have the member as axis 0.

    Args:
        policy, parameters: the policies.
        world, params: where they play.
        shown: what pretraining showed, with float fields float32[M]; it has the personas' traits.
        prior: chances of the personas where members play, float32[J], the same for all.
        episodes: N, of each persona.
    """

    def member(parameters, params, shown):
        seen, played = watch(policy, parameters, world, params, shown.traits, prior, episodes)
        return beliefs(seen, badge_fidelity(policy, parameters, world, params, seen, played))

    mesh = population.mesh(len(params.tile_map), 1)
    return population.over_members(member, mesh)(parameters, params, shown)


def _share(played: jax.Array) -> jax.Array:
    """Share of each episode at one turn, float32[N], sums to 1; NaN where none has come so far."""
    share = played.astype(jnp.float32)
    return share / share.sum()
