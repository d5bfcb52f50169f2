"""Stage `rl`: policy gradients of a token policy on whole episodes, PPO (arXiv 1707.06347) by default.

One update plays a batch of episodes with the current policy, scores them with the training forward, and takes a few
epochs of clipped-surrogate steps. A decision is a token of the plan or an action; what its advantage is, what a step
averages over and what is clipped are switches of `agents.learning.algorithms`. Old log-probabilities come from the
training forward and not from the cached decoding that played, so that the ratio starts at exactly 1. The time limit is
part of the task (the policy can count the turns it has read), so nothing is bootstrapped beyond the last turn.
"""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from agents.learning import algorithms, demonstrations, imitation, learner, objectives, rollout
from agents.learning.algorithms import RLConfig
from agents.learning.hyperparameters import Scalar
from agents.learning.imitation import SFTConfig
from agents.policies import Intervention, Parameters, Policy, in_a_row
from envs import base
from ground import seeds

CHOICES = ("name", "plan", "actions")
"""Kinds of decisions, in their order in an episode; see `RLConfig.choices`."""


@struct.dataclass
class Batch:
    """What the loss needs of a batch of episodes."""

    tokens: jax.Array
    """int32[B, S]"""
    actions: jax.Array
    """int32[B, T]"""
    neighbours: jax.Array
    """int8[B, T, 4]"""
    decided: jax.Array
    """bool[B, D], D = K + T decisions: whether there was a choice."""
    log_probabilities: jax.Array
    """float32[B, D], of what was chosen, under the policy that ratios are taken against."""
    reference: jax.Array
    """float32[B, D], the same under the reference; zeros where none is used."""
    advantages: jax.Array
    """float32[B, D]"""
    targets: jax.Array
    """float32[B, D], of the value head."""


@struct.dataclass
class Reading:
    """What a policy says before each decision of episodes."""

    openings: jax.Array
    """float32[B, K, C], log-probabilities of what an opening can say; see `envs.base.World.sayings`."""
    actions: jax.Array
    """float32[B, T, 4], log-probabilities."""
    values: jax.Array
    """float32[B, K + T]"""

    def chosen(self, said: jax.Array, actions: jax.Array) -> jax.Array:
        """Log-probabilities float32[B, K + T] of what was said, int32[B, K] in `sayings`, and of actions [B, T]."""
        pairs = ((self.openings, said), (self.actions, actions))
        return jnp.concatenate([jnp.take_along_axis(x, at[..., None], axis=-1)[..., 0] for x, at in pairs], axis=-1)


def read_decisions(
    policy: Policy,
    parameters: Parameters,
    world: base.World,
    sequence: jax.Array,
    *,
    intervention: Intervention | None = None,
    group: int = 1,
) -> Reading:
    """Read whole episodes int32[B, S].

    Args:
        policy, parameters, world, sequence: of one member, and of the episodes.
        intervention: on the residual stream; each episode then reads its own prompt.
        group: episodes in a row that have the same prompt, which is read once.

    Raises:
        ValueError: the world has words that the policy does not know.
    """
    rollout.check_words(policy, world)
    at, shared = world.decision_positions() - 1, {}
    if group > 1 and intervention is None and world.prompt_length > 1:
        # The last token of the prompt is read with what follows, for the first decision comes right after it.
        start = world.prompt_length - 1
        memory = policy.remember(parameters, sequence[::group, :start])
        shared = {"after": in_a_row(memory, group), "start": start}
        sequence, at = sequence[:, start:], at - start
    outputs = policy.forward(parameters, sequence[:, :-1], intervention=intervention, at=at, **shared)
    logits, values = policy.heads(parameters, outputs.hidden)
    return Reading(
        openings=world.saying_log_probabilities(logits[:, : world.opening_length]),
        actions=objectives.action_log_probabilities(logits[:, world.opening_length :]),
        values=values,
    )


def read(
    policy: Policy,
    parameters: Parameters,
    world: base.World,
    sequence: jax.Array,
    *,
    intervention: Intervention | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Action log-probabilities float32[B, T, 4] and values float32[B, T] before each action of episodes [B, S]."""
    reading = read_decisions(policy, parameters, world, sequence, intervention=intervention)
    return reading.actions, reading.values[:, world.opening_length :]


def loss_function(
    policy: Policy, world: base.World, config: RLConfig, decisions: jax.Array, norm: jax.Array, group: int = 1
):
    """The loss of a microbatch and its metrics.

    Args:
        policy, world, config: of the stage.
        decisions: float32[], decisions of the minibatch, over which metrics are means.
        norm: float32[], from `algorithms.shares`, over which the loss is one.
        group: as in `read_decisions`.
    """

    def loss(parameters, batch_and_shares: tuple[Batch, jax.Array]):
        batch, share = batch_and_shares
        reading = read_decisions(policy, parameters, world, batch.tokens, group=group)
        log_ratio = reading.chosen(world.said(world.opening(batch.tokens)), batch.actions) - batch.log_probabilities
        compared = log_ratio
        if config.ratio == "episode":
            whole = jnp.sum(log_ratio, axis=1, where=batch.decided, keepdims=True)
            compared = jnp.broadcast_to(whole, log_ratio.shape)
        share_of_turns = share[:, world.opening_length :]

        def mean(x):
            return jnp.sum(x, where=batch.decided) / decisions

        surrogates = objectives.clipped_surrogate(
            compared, batch.advantages, config.clip_low, config.clip_high, config.clip_dual
        )
        surrogate = jnp.sum(share * surrogates) / norm
        value_loss = jnp.sum(share * 0.5 * jnp.square(reading.values - batch.targets)) / norm
        entropies = jnp.concatenate(
            [objectives.entropy(reading.openings), objectives.entropy(reading.actions)], axis=-1
        )
        entropy = jnp.sum(share * entropies) / norm
        equalized = jnp.sum(share_of_turns * objectives.equalized_entropy(reading.actions, batch.neighbours)) / norm
        total = (
            config.value_weight * value_loss
            - surrogate
            - config.entropy_weight * entropy
            - config.equalized_entropy_weight * equalized
        )
        apart = {}
        if config.reference != "none":
            # k3 of KL(pi || reference): its log-ratio is the reference's over ours.
            away = batch.reference - batch.log_probabilities - log_ratio
            reference_kl = jnp.sum(share * objectives.kl_estimate(away)) / norm
            total += config.reference_weight * reference_kl if config.reference == "loss" else 0.0
            apart = {"reference_kl": reference_kl}
        ratio = jnp.exp(compared)
        clipped = (ratio < 1 - config.clip_low) | (ratio > 1 + config.clip_high)
        return total, {
            "loss": total,
            "surrogate": surrogate,
            "value_loss": value_loss,
            "entropy": entropy,
            "equalized_entropy": equalized,
            "kl": mean(objectives.kl_estimate(log_ratio)),
            "clipped": mean(clipped.astype(jnp.float32)),
            "ratio_error": mean(jnp.abs(ratio - 1)),
            **apart,
        }

    return loss


def sharing(config: RLConfig, microbatch: int, shards: learner.Shards) -> int:
    """How many episodes in a row share their prompt in every microbatch that a device has of a minibatch."""
    return math.gcd(config.group, learner.divisor(config.episodes // (shards.parts * shards.count), microbatch))


def collect(
    policy: Policy,
    world: base.World,
    config: RLConfig,
    params: base.WorldParams,
    parameters: Parameters,
    key: jax.Array,
    microbatch: int,
    shards: learner.Shards,
    *,
    at_once: int = 0,
    behaviour: Parameters | None = None,
    reference: Parameters | None = None,
    plan_budget: jax.Array | None = None,
) -> tuple[Batch, learner.Metrics]:
    """Play a batch, score it and estimate advantages; every device gets the whole batch.

    Args:
        policy, world, config, params: of the stage, for one member.
        parameters: that learn.
        key: all chance of the batch.
        microbatch: episodes scored at the same time.
        shards: this device's share.
        at_once: episodes that it plays at the same time; 0 for all.
        behaviour: parameters that play; those that learn by default.
        reference: parameters to stay near; None for none.
        plan_budget: int32[], tokens of a plan that the policy may choose; all by default.
    """
    maze_key, turn_key, shuffle_key = jax.random.split(key, 3)
    mazes = jnp.repeat(jax.random.split(maze_key, config.episodes // config.group), config.group)
    driver = rollout.policy_driver(
        policy,
        parameters if behaviour is None else behaviour,
        world,
        temperature=config.temperature,
        plan_budget=plan_budget,
    )
    group, rows = sharing(config, microbatch, shards), config.episodes // shards.count
    together = group * learner.divisor(rows // group, max((at_once or rows) // group, 1))

    def play(rows):
        def local(x):
            return shards.local(x)[rows]

        noise, keep = rollout.gumbel(config.episodes, local), lambda _, scores: scores
        episodes, scores, _ = rollout.play(
            world, params, local(mazes), turn_key, driver, noise, observe=keep, group=group
        )
        return episodes, jnp.moveaxis(scores, 0, 1)

    episodes, scores = learner.joined(jax.lax.map(play, jnp.arange(rows).reshape(-1, together)))

    def score(parameters):
        """Log-probabilities of what was chosen and values, both [B, K + T]."""

        def part(rows):
            reading = read_decisions(policy, parameters, world, rows[0], group=group)
            return reading.chosen(world.said(world.opening(rows[0])), rows[1]), reading.values

        of_minibatch = len(episodes.tokens) // shards.parts
        parts = learner.microbatches((episodes.tokens, episodes.actions), learner.divisor(of_minibatch, microbatch))
        return learner.joined(jax.lax.map(part, parts))

    taken, values = score(parameters)
    played = taken if behaviour is None else score(behaviour)[0]
    expected = jnp.zeros_like(taken) if reference is None else score(reference)[0]
    drawn = jax.nn.log_softmax(config.temperature * scores, axis=-1)
    drawn = jnp.take_along_axis(drawn, episodes.actions[..., None], axis=-1)[..., 0]
    gathered = shards.gather((episodes, drawn, taken, values, played, expected))
    episodes, drawn, taken, values, played, expected = gathered

    pay = episodes.pay
    rewards = pay * config.reward_scale
    if config.shuffle_rewards:
        others = strangers(shuffle_key, config.episodes, config.group)
        pay, rewards = pay[others], rewards[others]
        discount = config.discount if config.advantage in ("gae", "to_go") else 1.0  # the others sum
        rewards = jax.vmap(objectives.pay_later, in_axes=(0, 0, None))(rewards, episodes.played, discount)
    divergence = jnp.where(episodes.decided, taken - expected, 0.0)
    if config.reference == "reward":
        # Charged at the next turn, for a plan at the first: what a turn's reward is, its decisions have caused.
        charge = divergence[:, world.opening_length :].at[:, 0].add(divergence[:, : world.opening_length].sum(axis=1))
        rewards = rewards - config.reward_scale * config.reference_weight * charge
    taught = None
    if config.choices != "all":
        kinds = np.repeat(CHOICES, (world.spoken, world.plan_length, world.turns))
        taught = kinds == config.choices
    decided, advantages, targets = algorithms.advantages(config, episodes, pay, rewards, values, taught)
    weight = jnp.exp(taken - played)
    if config.importance == "decoupled":
        advantages = weight * advantages  # a factor above 0 of both sides of the clip's minimum
    batch = Batch(
        tokens=episodes.tokens,
        actions=episodes.actions,
        neighbours=episodes.neighbours,
        decided=decided,
        log_probabilities=taken if config.importance == "decoupled" else played,
        reference=expected,
        advantages=advantages,
        targets=targets,
    )
    learnt = episodes.decided if taught is None else episodes.decided & taught[None]
    unexplained, variance = (objectives.variance(x, learnt) for x in (targets - values, targets))
    apart = jnp.abs(jnp.exp(drawn - played[:, world.opening_length :]) - 1)
    metrics = {
        "return": episodes.returns.mean(),
        "return_deviation": episodes.returns.std(),
        "success": rollout.succeeded(world, episodes).astype(jnp.float32).mean(),
        "explained_variance": 1 - unexplained / jnp.maximum(variance, 1e-8),
        "played_ratio_error": objectives.mean(apart, episodes.played),
    }
    if reference is not None:
        of_episode = divergence.sum(axis=1)
        likelier = jax.nn.softmax(jnp.sum(taken - played, axis=1, where=episodes.decided))
        metrics["episode_kl"] = of_episode.mean() if behaviour is None else jnp.sum(likelier * of_episode)
    if behaviour is not None:
        first, second = (jnp.sum(x, where=episodes.decided) for x in (weight, jnp.square(weight)))
        count = episodes.decided.sum(dtype=jnp.float32)
        metrics["effective_samples"] = jnp.square(first) / jnp.maximum(second * count, 1e-8)
    return batch, metrics


def strangers(key: jax.Array, episodes: int, group: int) -> jax.Array:
    """For each episode one of another group, int32[episodes]; each is taken once.

    So nobody is paid for what it does itself, nor is that part of the mean of its group.
    """
    order = jax.random.permutation(key, episodes // group)
    other = jnp.zeros_like(order).at[order].set(jnp.roll(order, 1))
    return (other[:, None] * group + jnp.arange(group)[None]).reshape(-1)


@functools.lru_cache(maxsize=64)
def update_function(
    policy: Policy, world: base.World, microbatch: int, teacher: SFTConfig, at_once: int = 0
) -> learner.Update:
    """The stage's update of one member.

    Metrics are means over the decisions of all epochs, but for `return`, `success` and `episode_kl`, of the episodes
    played, for `effective_samples`, how many fresh decisions the stale ones are worth, as a fraction, for
    `played_ratio_error`, by how much the probability of an action when it was played is off the one that scoring it
    gives, as a fraction (rounding of `policy.compute_dtype`), and for
    `first_ratio_error` and `first_kl`, of the first minibatch, which are 0 when scoring and training agree (and
    nothing stale is clipped against the policy that played).

    Args:
        policy, world: of the stage.
        microbatch: episodes of one forward and backward pass.
        teacher: what there is to imitate, where the stage's config says so.
        at_once: episodes that a device plays at the same time; 0 for all.
    """

    def update(state, config: RLConfig, params, shards):
        size = config.episodes // config.minibatches
        total_steps = config.updates * config.epochs * config.minibatches
        key, collect_key, order_key = jax.random.split(seeds.stored(state.key), 3)
        state, behaviour = stale_version(config, reset_reference(config, state))
        by_minibatch = dataclasses.replace(shards, parts=config.minibatches)
        budget = plan_budget(config, world, state.update)
        roles = {"behaviour": behaviour, "reference": state.reference, "plan_budget": budget, "at_once": at_once}
        batch, collected = collect(
            policy, world, config, params, state.parameters, collect_key, microbatch, by_minibatch, **roles
        )
        group = sharing(config, microbatch, by_minibatch)
        lessons, mu = None, between(config.imitation_weight, config.final_imitation_weight, config, state.update)
        if config.imitation == "sft":
            teacher_key = jax.random.fold_in(order_key, config.epochs)  # the folds before are the orders' keys
            shown = demonstrations.persona_episodes(teacher, world, params, teacher_key, teacher.episodes, by_minibatch)
            lesson = imitation.Lesson.of(world, shown, teacher.choices).joined(teacher.trips, world.map_length)
            lessons = jax.tree.map(lambda x: x.reshape(config.minibatches, -1, *x.shape[1:]), lesson)

        def minibatch(state, rows_and_lesson):
            rows, lesson = rows_and_lesson
            decided = batch.decided[rows]
            share, whole = algorithms.shares(config, decided)
            part = jax.tree.map(lambda x: x[shards.local(rows)], batch), shards.local(share)
            decisions = jnp.maximum(decided.sum(dtype=jnp.float32), 1.0)
            loss = loss_function(policy, world, config, decisions, whole, group)
            gradient, metrics = learner.accumulate(loss, state.parameters, part, microbatch, shards)
            if lesson is not None:
                weight, focus = teacher.observation_weight, config.imitation_focus
                other, shown = imitation.gradient(
                    policy, state.parameters, lesson, weight, microbatch, shards, focus=focus
                )
                gradient = jax.tree.map(lambda rl, imitated: (1 - mu) * rl + mu * imitated, gradient, other)
                metrics |= {"imitation_loss": shown["loss"], "imitation_weight": mu}
            factor = learner.cosine(state.steps, total_steps, config.final_learning_rate)
            rate = config.learning_rate * factor
            state, norm = learner.descend(state, gradient, rate, config.max_gradient_norm, config.weight_decay)
            return state, metrics | {"gradient_norm": norm, "learning_rate": rate}

        # Groups stay together, for they share their prompts. The first epoch meets the episodes as they were scored,
        # microbatch by microbatch: how a processor rounds a row of a product can depend on the rows beside it, and the
        # first ratio is to be 1 to the bit.
        groups = config.episodes // config.group
        orders = jax.vmap(lambda key: jax.random.permutation(key, groups))
        order = orders(jax.random.split(order_key, config.epochs)).at[0].set(jnp.arange(groups))
        order = order[..., None] * config.group + jnp.arange(config.group)[None, None]
        lessons = jax.tree.map(lambda x: jnp.concatenate([x] * config.epochs), lessons)
        state, metrics = jax.lax.scan(minibatch, state, (order.reshape(-1, size), lessons))
        first = {f"first_{name}": metrics[name][0] for name in ("ratio_error", "kl")}
        metrics = jax.tree.map(jnp.mean, metrics)
        state = dataclasses.replace(state, key=jax.random.key_data(key), update=state.update + 1)
        return state, collected | metrics | first

    return update


def plan_budget(config: RLConfig, world: base.World, update: jax.Array) -> jax.Array | None:
    """Tokens of a plan that the policy may choose in an update, int32[]; None without plans."""
    if world.plan_length == 0:
        return None
    share = between(config.plan_budget, config.final_plan_budget, config, update)
    return jnp.round(share * world.plan_length).astype(jnp.int32)


def between(first: Scalar, last: Scalar, config: RLConfig, update: jax.Array) -> jax.Array:
    """On the straight line from the first update's value to the last one's, float32[]."""
    return first + (last - first) * (update.astype(jnp.float32) / max(config.updates - 1, 1))


def stale_version(config: RLConfig, state: learner.TrainState) -> tuple[learner.TrainState, Parameters | None]:
    """The state with its parameters entered into its versions, and those that play; None for its own."""
    if config.staleness == 0:
        return state, None
    places = config.staleness + 1
    now = state.update % places

    def enter(ring, parameters):
        return jax.lax.dynamic_update_index_in_dim(ring, parameters, now, axis=0)

    versions = jax.tree.map(enter, state.versions, state.parameters)
    # The place after the newest is the oldest; before it was ever written, it holds what training began with.
    oldest = jax.tree.map(lambda ring: ring[(now + 1) % places], versions)
    return dataclasses.replace(state, versions=versions), oldest


def reset_reference(config: RLConfig, state: learner.TrainState) -> learner.TrainState:
    """The state with the current policy as the reference and a fresh optimiser, where such a reset is due."""
    if state.reference is None or config.reference_reset == 0:
        return state
    due = (state.update > 0) & (state.update % config.reference_reset == 0)
    fresh = (state.parameters, jax.tree.map(jnp.zeros_like, state.moments))
    reference, moments = jax.tree.map(
        lambda new, old: jnp.where(due, new, old), fresh, (state.reference, state.moments)
    )
    return dataclasses.replace(state, reference=reference, moments=moments)
