"""Where KL(π ‖ π_0) goes: π against its base and against the base's own personas, measured on the same mazes.

The personas are the base itself, told to be each of them. Where a model names itself, the base is their mixture
exactly, and two accounts are kept: by the name (the chain rule), and by the deeds, which are all that follows it. Where
a badge is shown, the base that is shown none is not their mixture: what is left between the two is the misfit.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from agents.learning import objectives, rl, rollout
from agents.policies import Parameters, Policy
from analysis import selection, tilting
from envs import base, personas, tokens

CHANNELS = ("badge", "thought", "action")
"""What a policy decides: the name that it gives itself, its plan, its moves."""
_BADGES = tokens.BADGES[1:]
_TOLD = 4
"""For one episode that is told who plays, so many that are not."""


def by_channel(world: base.World, now: rl.Reading, then: rl.Reading, played: rollout.Episodes) -> jax.Array:
    """KL of every decision of episodes in closed form, summed by `CHANNELS`; nats per episode, float32[B, 3].

    Args:
        world: where they were played.
        now, then: what π and π_0 say before each decision.
        played: the episodes, of which only what was chosen counts.
    """
    nats = [objectives.divergence(*pair) for pair in ((now.openings, then.openings), (now.actions, then.actions))]
    return summed(world, played, *nats)


def summed(world: base.World, played: rollout.Episodes, said: jax.Array, acted: jax.Array) -> jax.Array:
    """Numbers of decisions of an opening [B, K] and of the turns [B, T], summed by `CHANNELS` where chosen; [B, 3]."""
    numbers = jnp.where(played.decided, jnp.concatenate([said, acted], axis=-1), 0)
    parts = jnp.split(numbers, (world.spoken, world.opening_length), axis=-1)
    return jnp.stack([part.sum(axis=-1) for part in parts], axis=-1)


@struct.dataclass
class Deeds:
    """Episodes of one maze, N of them, as to what follows the name; or of several, [..., N]."""

    log_policy: jax.Array
    """float32[N], log-likelihood under π, whatever it calls itself; that of the world's chance left out."""
    log_personas: jax.Array
    """float32[N, I], under the base told to be each persona."""
    rewards: jax.Array
    """float32[N], undiscounted."""
    succeeded: jax.Array
    """bool[N]"""
    named: jax.Array
    """int32[N], the place in `personas.PERSONAS` of the name that was spoken; 0 where none is."""


@struct.dataclass
class Maze:
    """What is known of one maze; or of several, as a leading axis."""

    prior: jax.Array
    """float32[I], w: the base's chances of each name where it speaks one, else those that are given."""
    names: jax.Array
    """float32[I], π's chances of each name; the prior where it speaks none."""
    channels: jax.Array
    """float32[N, 3], of episodes of π, KL(π ‖ π_0) by `CHANNELS`."""
    nats: jax.Array
    """float32[N], of the same, KL(π ‖ mixture of personas) by deeds, each decision in closed form."""
    model: Deeds
    """Episodes of π."""
    mixture: Deeds
    """Episodes of the mixture of personas."""
    survival: jax.Array
    """float32[I, n], of episodes of the base told to be i, KL(base told to be i ‖ π told to be i)."""
    rewards: jax.Array
    """float32[2, I, n], of the base and of π, told to be i."""
    succeeded: jax.Array
    """bool[2, I, n]"""


@struct.dataclass
class Base:
    """What a base does in one maze, whatever it is compared with; or in several, as a leading axis."""

    mixture: rollout.Episodes
    """Episodes of the mixture of its personas, N of them."""
    told: rollout.Episodes
    """Episodes of the base told to be each persona, n of them in a row for each."""
    log_personas: jax.Array
    """float32[N, I], log-likelihood of the deeds of `mixture` under the base told to be each persona."""


def of_base(
    policy: Policy,
    before: Parameters,
    world: base.World,
    params: base.WorldParams,
    prior: jax.Array,
    key: jax.Array,
    episodes: int,
) -> Base:
    """Play a maze as a base, and as each of its personas; arguments as in `look`."""
    who_key = jax.random.fold_in(key, 2)
    drawn = jax.random.categorical(who_key, jnp.log(prior), shape=(episodes,)).astype(jnp.int32)
    # Where no name is spoken, the mixture is that of prompts.
    who = jnp.full_like(drawn, -1) if world.spoken else drawn
    mixture, told = _play(policy, before, world, params, key, who, 0)
    return Base(mixture, told, _likelihood(_as_each(policy, before, world, mixture.tokens), *_chosen(world, mixture)))


def look(
    policy: Policy,
    after: Parameters,
    before: Parameters,
    known: Base,
    world: base.World,
    params: base.WorldParams,
    prior: jax.Array,
    key: jax.Array,
    episodes: int,
) -> Maze:
    """Play and read one maze.

    Args:
        policy: of both.
        after, before: parameters of π and of its base, of one member.
        known: from `of_base`, of the same maze.
        world, params: where they play; the world has badges.
        prior: float32[I], w where no name is spoken.
        key: all chance of the maze and of what is played in it.
        episodes: N, of π and of the mixture; of each persona a fourth.
    """
    nobody = jnp.full(episodes, -1, jnp.int32)  # π is told nothing
    own, as_model = _play(policy, after, world, params, key, nobody, 1)
    read = functools.partial(_read_both, policy, before, after, world)
    as_each, decisions = _as_each_told(world, own.tokens), jax.vmap(functools.partial(_decisions, world))
    if world.spoken:
        # What an episode calls itself is one of the three.
        of_base, of_model = read(as_each, jnp.concatenate([as_each, _as_each_told(world, known.mixture.tokens)]))
        itself = _named(world, own), jnp.arange(episodes)
        then, now = (jax.tree.map(lambda x: x[itself], reading) for reading in (of_base, of_model))
        # The name is the first that is said, so that all episodes of a maze have its chances in common.
        said = (jnp.exp(reading.openings[0, 0, : len(_BADGES)]) for reading in (then, now))
        prior, names = (jnp.maximum(chances, 1e-30) for chances in said)
        mixed = jax.vmap(selection.acts, in_axes=(0, 0, 0, None))
        of_own, of_mixture = (
            mixed(jnp.moveaxis(said, 0, 2), *_chosen(world, played), names)
            for said, played in zip(jnp.split(decisions(of_model), 2), (own, known.mixture), strict=True)
        )
    else:
        of_nobody = known.mixture.tokens.at[:, world.badge_position].set(params.head)
        of_base, of_model = read(jnp.concatenate([as_each, own.tokens[None]]), jnp.stack([own.tokens, of_nobody]))
        then, now = (jax.tree.map(lambda x, at=at: x[at], reading) for reading, at in ((of_base, -1), (of_model, 0)))
        names = prior
        of_own, of_mixture = decisions(of_model)
    every = jnp.moveaxis(decisions(of_base)[: len(_BADGES)], 0, 2)

    def deeds(played, log_policy, log_personas):
        return Deeds(
            log_policy=_likelihood(log_policy[:, :, None], *_chosen(world, played))[:, 0],
            log_personas=log_personas,
            rewards=played.returns,
            succeeded=rollout.succeeded(world, played),
            named=_named(world, played),
        )

    chosen, decided = _chosen(world, own)
    nats = jax.vmap(selection.stepwise_divergence, in_axes=(0, 0, 0, 0, None))(of_own, every, chosen, decided, prior)

    told, each = known.told, len(known.told.tokens) // len(_BADGES)
    told_now, told_then = of_both(lambda x: _read(policy, x, world, told.tokens, each), after, before)

    def by_persona(numbers):
        return numbers.reshape(len(_BADGES), each)

    return Maze(
        prior,
        names,
        by_channel(world, now, then, own),
        nats,
        deeds(own, of_own, _likelihood(every, chosen, decided)),
        deeds(known.mixture, of_mixture, known.log_personas),
        by_persona(by_channel(world, told_then, told_now, told).sum(axis=1)),
        jnp.stack([by_persona(x.returns) for x in (told, as_model)]),
        jnp.stack([by_persona(rollout.succeeded(world, x)) for x in (told, as_model)]),
    )


def _play(
    policy: Policy,
    parameters: Parameters,
    world: base.World,
    params: base.WorldParams,
    key: jax.Array,
    who: jax.Array,
    place: int,
) -> tuple[rollout.Episodes, rollout.Episodes]:
    """Episodes of one maze told to be int32[N], and a fourth as many told to be each persona, in a row for each.

    Of one key all have the same maze and weather, and those that are told to be somebody the same chance, so that what
    training did to a persona is no chance; the others' depends on the place, of the base or of π.
    """
    maze, key = jax.random.split(key)
    count = max(len(who) // _TOLD, 2)
    asked = jnp.concatenate([who, jnp.repeat(jnp.arange(len(_BADGES), dtype=jnp.int32), count)])
    named, opening = jax.vmap(lambda one: rollout.told(world, params, one, 1))(asked)
    driver = rollout.policy_driver(policy, parameters, world, opening=opening[:, 0])

    def noise(key, choices):
        own, common = rollout.gumbel(len(who)), rollout.gumbel(len(asked) - len(who))
        return jnp.concatenate(
            [own(jax.random.fold_in(key, place), choices), common(jax.random.fold_in(key, 2), choices)]
        )

    mazes = jnp.broadcast_to(maze, len(asked))
    group = len(asked) if world.spoken else 1  # a badge that is shown stands in the prompt
    played = rollout.play(world, named, mazes, key, driver, noise, batched_params=True, group=group)[0]
    first, rest = (jax.tree.map(lambda x: x[: len(who)], played), jax.tree.map(lambda x: x[len(who) :], played))
    return first, rest


def posteriors(
    policy: Policy, before: Parameters, world: base.World, prior: jax.Array, played: rollout.Episodes
) -> jax.Array:
    """How likely each of a base's personas is to be who acts, by its deeds so far, in N episodes of one maze.

    Args:
        policy, before: the base, of one member.
        world: where the episodes were played; it has badges.
        prior: float32[I], who it may be where no name is spoken; else the base's chances of each name count.
        played: the episodes, of whatever policy.

    Returns:
        float32[N, T + 1, I]: after what is said before the first turn, then after each turn.
    """
    if world.spoken:
        first = _read(policy, before, world, played.tokens).openings[0, 0, : len(_BADGES)]
        prior = jnp.maximum(jnp.exp(first), 1e-30)
    chosen, decided = _chosen(world, played)
    logs = _logs(_as_each(policy, before, world, played.tokens), chosen)
    said = world.opening_length - world.spoken
    plans = jnp.sum(logs[:, :said], axis=1, where=decided[:, :said, None])
    return jnp.exp(personas.log_posteriors(prior, plans, logs[:, said:], played.played))


def _read(policy: Policy, parameters: Parameters, world: base.World, sequence: jax.Array, group: int = 0) -> rl.Reading:
    """Read episodes of one maze, of which so many in a row share their prompt, badge and all; by default all do."""
    return rl.read_decisions(policy, parameters, world, sequence, group=group or len(sequence))


def _read_both(
    policy: Policy, before: Parameters, after: Parameters, world: base.World, of_base: jax.Array, of_model: jax.Array
) -> tuple[rl.Reading, rl.Reading]:
    """What a base says of episodes int32[R, N, S] and a model of others, each N of one prompt; compiled once."""

    def one(which_and_sequence):
        which, sequence = which_and_sequence
        return _read(policy, jax.tree.map(lambda x: x[which], both), world, sequence)

    both, first = jax.tree.map(lambda *x: jnp.stack(x), before, after), len(of_base)
    which = np.repeat(np.arange(2, dtype=np.int32), (first, len(of_model)))
    read = jax.lax.map(one, (which, jnp.concatenate([of_base, of_model])))
    return jax.tree.map(lambda x: x[:first], read), jax.tree.map(lambda x: x[first:], read)


def _as_each(policy: Policy, parameters: Parameters, world: base.World, sequence: jax.Array) -> jax.Array:
    """Every decision of episodes of one maze, were it each persona's, float32[N, D, I, A]."""

    def one(told):
        return _decisions(world, _read(policy, parameters, world, told))

    return jnp.moveaxis(jax.lax.map(one, _as_each_told(world, sequence)), 0, 2)


def _as_each_told(world: base.World, sequence: jax.Array) -> jax.Array:
    """Episodes int32[N, S] with the badge of each persona, int32[I, N, S]."""
    return jnp.stack([sequence.at[:, world.badge_position].set(badge) for badge in _BADGES])


def _chosen(world: base.World, played: rollout.Episodes) -> tuple[jax.Array, jax.Array]:
    """After the name: what was chosen int32[N, D], and where there was a choice bool[N, D]."""
    chosen = jnp.concatenate([world.said(world.opening(played.tokens)), played.actions], axis=1)
    return chosen[:, world.spoken :], played.decided[:, world.spoken :]


def _logs(every: jax.Array, chosen: jax.Array) -> jax.Array:
    """What of every decision float32[N, D, I, A] belongs to the choices int32[N, D], float32[N, D, I]."""
    return jnp.take_along_axis(every, chosen[:, :, None, None], axis=-1)[..., 0]


def _likelihood(every: jax.Array, chosen: jax.Array, decided: jax.Array) -> jax.Array:
    """Log-likelihood of what was chosen, float32[N, I]; arguments as `_logs` and `_chosen` have them."""
    return jnp.sum(_logs(every, chosen), axis=1, where=decided[:, :, None])


def _named(world: base.World, played: rollout.Episodes) -> jax.Array:
    """Place of the name that stands where a badge does, int32[N]; 0 where none does."""
    badge = played.tokens[:, world.badge_position, None]
    return jnp.argmax(badge == jnp.array(_BADGES, jnp.int32)[None], axis=1).astype(jnp.int32)


def of_both(function: Callable[[Any], Any], one: Any, other: Any) -> tuple[Any, Any]:
    """A function of two trees, one after the other, compiled once."""
    told = jax.lax.map(function, jax.tree.map(lambda *x: jnp.stack(x), one, other))
    return jax.tree.map(lambda x: x[0], told), jax.tree.map(lambda x: x[1], told)


def _decisions(world: base.World, reading: rl.Reading) -> jax.Array:
    """Log-probabilities of every decision after the name, float32[B, D, A]: what one cannot do has almost none."""
    width = max(reading.openings.shape[-1], world.num_actions)
    parts = (reading.openings[:, world.spoken :], reading.actions)
    return jnp.concatenate(
        [jnp.pad(x, ((0, 0), (0, 0), (0, width - x.shape[-1])), constant_values=-1e9) for x in parts], axis=1
    )


def tell(world: base.World, mazes: Maze) -> dict[str, jax.Array]:
    """The accounts of one member, from M mazes; nats per episode unless it is said.

    Returns:
        By name: `channels` float32[3], KL(π ‖ π_0) by `CHANNELS`; `error` float32[], the standard error of their sum;
        `account` float32[4], which adds up to it: choice and routing of personas, W, and the rest: the misfit as π
        meets it, E_π log(mixture / π_0), or, with a spoken badge, KL of the name that is given to the same deeds;
        `selection` float32[2, 2], the least and the most of KL(π ‖ mixture) that re-weighting the personas explains,
        over all mazes alike, and maze by maze; `weights` float32[2, I], of the base and of π, by deeds; `entropy`
        float32[2], theirs; `law` float32[2], η² and R²; `returns`, `success` float32[2]; `survival` float32[I];
        `told_returns`, `told_success` float32[2, I].

        With a spoken badge: `names` float32[2, I], the weights by name; `named` float32[3], KL of the name, in all
        mazes alike and by the maze, and of what follows it; `agreement` float32[2], share of the episodes whose name
        is that of the persona that the deeds make most probable.

        Where the prompt shows the whole maze: `tilt` float32[3], S*, W* and G, NaN where `refused` is above 0;
        `scale` float32[], λ; `effective` float32[], the least number of effective episodes of a maze; `refused`
        float32[], the share of mazes that have too few.
    """
    model, mixture, prior = mazes.model, mazes.mixture, mazes.prior
    channels = mazes.channels.mean(axis=(0, 1))
    totals = mazes.channels.sum(axis=2).mean(axis=1)
    split = selection.split(model.log_policy, model.log_personas, prior, divergences=mazes.nats, jackknife=True)
    reach = selection.reach(model.log_policy, model.log_personas, prior, divergences=mazes.nats)
    choice = selection.common(split.weights, prior)
    rest = channels.sum() - split.divergence
    log_joint = [x.log_personas + jnp.log(prior)[:, None] for x in (mixture, model)]
    posterior, taken_for = (jax.nn.softmax(x, axis=-1) for x in log_joint)
    weights = jnp.stack([prior.mean(axis=0), split.mean_weights])
    told = {
        "channels": channels,
        "error": jnp.std(totals, ddof=1) / len(totals) ** 0.5,
        "account": jnp.stack([choice, split.selection - choice, split.within, rest]),
        "selection": jnp.stack([reach.low, reach.high, reach.routed_low, reach.routed_high]).reshape(2, 2),
        "weights": weights,
        "entropy": jax.scipy.special.entr(weights).sum(axis=1),
        "law": jnp.stack([
            tilting.reward_share(mixture.rewards, posterior, prior),
            tilting.reweighted_share(mixture.rewards, posterior),
        ]),
        "returns": jnp.stack([mixture.rewards.mean(), model.rewards.mean()]),
        "success": jnp.stack([_share(x.succeeded, (0, 1)) for x in (mixture, model)]),
        "survival": mazes.survival.mean(axis=(0, 2)),
        "told_returns": mazes.rewards.mean(axis=(0, 3)),
        "told_success": _share(mazes.succeeded, (0, 3)),
    }  # fmt: skip
    if world.spoken:
        alike = selection.common(mazes.names, prior)
        told |= {
            "names": jnp.stack([prior.mean(axis=0), mazes.names.mean(axis=0)]),
            "named": jnp.stack([alike, channels[0] - alike, channels[1:].sum()]),
            "agreement": jnp.stack([
                _share(jnp.argmax(belief, axis=-1) == x.named, (0, 1))
                for belief, x in ((posterior, mixture), (taken_for, model))
            ]),
        }  # fmt: skip
    if world.sees_all:
        told |= _tilted(world, mazes, split, jnp.concatenate([posterior, taken_for], axis=1))
    return told


def _tilted(world: base.World, mazes: Maze, split: selection.Split, posterior: jax.Array) -> dict[str, jax.Array]:
    """The cheapest policy that earns as much, from the half-half mixture of both samples.

    What π earns is taken from it too, weighted, so that of a π near its base the difference is known, not the noise.
    """
    both = jax.tree.map(lambda *x: jnp.concatenate(x, axis=1), mazes.mixture, mazes.model)
    log_base = jax.nn.logsumexp(both.log_personas + jnp.log(mazes.prior)[:, None], axis=-1)
    log_half = jnp.logaddexp(log_base, both.log_policy)
    of_base, of_model = (jax.nn.softmax(x - log_half, axis=1) for x in (log_base, both.log_policy))
    earned = jnp.sum(of_model * both.rewards, axis=1).mean()
    matched = tilting.match(world, both.rewards, posterior, earned, of_base)
    price = (matched.split.selection, matched.split.within, tilting.gratuitous(split, earned, matched))
    return {
        "tilt": jnp.stack(price),
        "scale": matched.scale,
        "effective": matched.effective.min(),
        "refused": _share(matched.effective < tilting.LEAST_EFFECTIVE, (0,)),
    }


def _share(x: jax.Array, axes: tuple[int, ...]) -> jax.Array:
    return x.astype(jnp.float32).mean(axis=axes)
