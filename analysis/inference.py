"""Does a model know its personas, and does it infer from its own history who it is?

Personas play episodes under the null badge, and a model reads them. Before each action an observer who knows the
personas exactly has a posterior q(i | history) over who is acting, and a model that had learnt everything would act
as Σ q(i | history) π_i. What a model believes shows in its actions alone, so its implied weights are those of the
mixture of personas that explains them best, over all episodes that come to that turn:

    w = argmax over the simplex of the mean over episodes of Σ_a p(a | history) log Σ_j w_j π_j(a | state).

That is concave, and expectation maximisation climbs it from the uniform prior (as `selection.best_mixture` does for
whole episodes). That a language model infers a latent speaker in this way is the hypothesis of arXiv 2111.02080.

Three caveats. Where personas act alike the weights are not identified, and EM stays near its start, the prior.
Episodes in which personas act more differently weigh more, so that even the ideal observer's implied weights differ
a little from its mean posterior; `Beliefs.benchmark` says by how much. And a model that imitates personas badly has
implied weights too: `Beliefs.nats` says how far it is from the ideal observer. The observer knows what each emoji
does; a model whose pretraining drew tile maps has to find that out as well.

I true personas, J = I candidates, N episodes of each, T turns, A actions.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from flax import struct

from agents.learning import demonstrations, learner, objectives, population, rl, rollout
from agents.learning.demonstrations import Demonstrations
from agents.policies import Parameters, Policy
from agents.runs import evaluation
from envs import base, personas, tokens
from envs.personas import Traits
from ground import seeds

STEPS = 100
"""Of expectation maximisation."""

_BATCH = 64
"""Episodes played and read at the same time."""


@struct.dataclass
class Seen:
    """Episodes of each persona under the null badge, and what a model would have done in its place."""

    model: jax.Array
    """float32[I, N, T, A], the model's log-probability of each action before it."""
    personas: jax.Array
    """float32[I, N, T, J, A], the exact one of each persona."""
    posterior: jax.Array
    """float32[I, N, T, J], log q(j | history) before each action, the prior uniform."""
    played: jax.Array
    """bool[I, N, T], False after the episode's end."""


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
    observer who always believes the prior; nats per action."""
    episodes: jax.Array
    """int32[I, T], how many came to the turn."""
    badges: jax.Array
    """float32[I, 1 + J], mean KL(persona ‖ model) per action, in nats, with the null badge and each persona's."""


def watch(
    policy: Policy,
    parameters: Parameters,
    world: base.World,
    params: base.WorldParams,
    traits: Traits,
    episodes: int,
) -> tuple[Seen, rollout.Episodes]:
    """Let each persona play under the null badge, on the same mazes in every call, and a model read.

    Args:
        policy, parameters: of one member.
        world, params: where they play.
        traits: of the personas.
        episodes: N, of each persona.

    Returns:
        What was seen, and the episodes, axes [I, N, …].
    """
    params = dataclasses.replace(params, head=jnp.int32(tokens.NULL_BADGE))
    maze_key, turn_key = jax.random.split(seeds.held_out("inference"))
    maze_keys, count = jax.random.split(maze_key, episodes), len(personas.PERSONAS)

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
            prior = jnp.full(count, 1 / count, jnp.float32)
            posterior = personas.log_posteriors(prior, written, taken, played.played)[:, :-1]
            said, _ = rl.read(policy, parameters, world, played.tokens)
            return Seen(said, exact, posterior, played.played), played

        seen = jax.lax.map(part, learner.microbatches(jnp.arange(episodes), _BATCH))
        return jax.tree.map(lambda x: x.reshape(episodes, *x.shape[2:]), seen)

    return jax.lax.map(of_persona, jnp.arange(count))


def implied_weights(chances: jax.Array, alike: jax.Array, share: jax.Array, steps: int = STEPS) -> jax.Array:
    """Weights of the mixture of personas that explains a model's actions best, float32[J].

    Args:
        chances: the model's probability of each action at one turn, float32[N, A].
        alike: the personas' in the same states, float32[N, J, A].
        share: of each episode, float32[N], 0 or more; all 0 gives NaN.
        steps: of expectation maximisation from uniform weights.
    """
    count = alike.shape[1]
    likelihood = jnp.moveaxis(alike, 1, 2).reshape(-1, count)
    mass = (chances * share[:, None]).reshape(-1)

    def improve(_, weights):
        mixture = jnp.matmul(likelihood, weights, precision="highest")
        # What no persona ever does speaks for none of them.
        ratio = jnp.where(mixture > 0, mass / jnp.where(mixture > 0, mixture, 1.0), 0.0)
        weights = weights * jnp.matmul(ratio, likelihood, precision="highest")
        return weights / weights.sum()

    return jax.lax.fori_loop(0, steps, improve, jnp.full(count, 1 / count, jnp.float32))


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
        return implied_weights(chances, jnp.exp(log_personas), _share(played), steps)

    found = jax.lax.map(one, (by_turn(chances), by_turn(seen.personas), by_turn(seen.played)))
    return found.reshape(several, turns, -1)


def mean_posterior(seen: Seen) -> jax.Array:
    """The ideal observer's mean posterior before each turn, float32[I, T, J]."""
    share = jax.vmap(jax.vmap(_share, in_axes=1))(seen.played)
    return jnp.einsum("itn,intj->itj", share, jnp.exp(seen.posterior), precision="highest")


def ideal_actions(seen: Seen) -> jax.Array:
    """Log-probabilities of the ideal observer's actions, Σ_j q(j | history) π_j(a | state), float32[I, N, T, A]."""
    return jax.nn.logsumexp(seen.posterior[..., None] + seen.personas, axis=-2)


def beliefs(seen: Seen, badges: jax.Array) -> Beliefs:
    """Everything about one member; `badges` from `badge_fidelity`."""
    ideal = ideal_actions(seen)
    blind = jax.nn.logsumexp(seen.personas, axis=-2) - jnp.log(float(seen.personas.shape[-2]))
    nats = [objectives.divergence(ideal, other) for other in (seen.model, blind)]
    apart = [jnp.mean(each, axis=(1, 2), where=seen.played) for each in nats]
    return Beliefs(
        ideal=mean_posterior(seen),
        implied=implied(jnp.exp(seen.model), seen),
        benchmark=implied(jnp.exp(ideal), seen),
        nats=jnp.stack(apart, axis=-1),
        episodes=jnp.sum(seen.played, axis=1, dtype=jnp.int32),
        badges=badges,
    )


def badge_fidelity(
    policy: Policy, parameters: Parameters, world: base.World, seen: Seen, played: rollout.Episodes
) -> jax.Array:
    """`evaluation.badge_divergence` on the personas' episodes, float32[I, 1 + J]; arguments as `watch` gives them."""
    own = jnp.arange(len(seen.personas))
    exact = jax.vmap(lambda x, persona: x[:, :, persona])(seen.personas, own)
    return evaluation.badge_divergence(policy, parameters, world, played, exact)


@functools.partial(jax.jit, static_argnames=("policy", "world", "episodes"))
def measure(
    policy: Policy,
    parameters: Parameters,
    world: base.World,
    params: base.WorldParams,
    shown: Demonstrations,
    episodes: int,
) -> Beliefs:
    """`beliefs` of every member; all arrays have the member as axis 0.

    Args:
        policy, parameters: the policies.
        world, params: where they play.
        shown: what pretraining showed, with float fields float32[M]; it has the personas' traits.
        episodes: N, of each persona.
    """

    def member(parameters, params, shown):
        seen, played = watch(policy, parameters, world, params, shown.traits, episodes)
        return beliefs(seen, badge_fidelity(policy, parameters, world, seen, played))

    mesh = population.mesh(len(params.tile_map), 1)
    return population.over_members(member, mesh)(parameters, params, shown)


def _share(played: jax.Array) -> jax.Array:
    """Share of each episode at one turn, float32[N], sums to 1; NaN where none has come so far."""
    share = played.astype(jnp.float32)
    return share / share.sum()
