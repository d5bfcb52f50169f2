"""Evaluation: what members, scripts and badges earn over fixed mazes that no training ever draws.

Its keys are a branch of their own (`ground.seeds`), and every policy meets the same mazes and the same weather.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from agents.learning import demonstrations, learner, objectives, population, rl, rollout
from agents.policies import Parameters, Policy, in_a_row
from agents.runs import fidelity, scripts
from agents.runs.config import Config, Member
from agents.runs.run import Run
from envs import base, personas, tokens
from envs.personas import SCRIPTS, Traits
from ground.estimates import Estimate

_BATCH = 64
"""Episodes that a member plays, or reads, at the same time."""


def policy_outcomes(
    policy: Policy,
    parameters: Parameters,
    world: base.World,
    params: base.WorldParams,
    episodes: int = scripts.EPISODES,
    *,
    speakers: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Returns float32[M, episodes] of a population, and which episodes succeeded bool[M, episodes].

    On a CPU the devices share the episodes of one member after another, so that one program serves populations of any
    size; elsewhere members are spread over the devices and play at the same time. Every process of a job takes part;
    one without a device in the mesh learns nothing.

    Args:
        policy, parameters: the policies; axis 0 is the member.
        world, params: where they play; axis 0 of every leaf of `params` is the member.
        episodes: how many; the same mazes for every member.
        speakers: int32[M], who each is told to be, as in `rollout.told`; nobody by default.
    """
    together = members = len(jax.tree.leaves(parameters)[0])
    mesh = population.mesh(members, episodes)
    if population.on_cpu(mesh):
        together, mesh = 1, population.mesh(1, episodes)
    if not mesh.local_devices:
        return np.full((members, episodes), np.nan, np.float32), np.zeros((members, episodes), bool)
    speakers = np.full(members, -1, np.int32) if speakers is None else speakers

    def outcomes(*block):
        return _outcomes(policy, world, population.place(block, mesh), mesh, episodes)

    return population.in_turn(outcomes, parameters, params, speakers, at_once=together)


@functools.partial(
    jax.jit, static_argnames=("policy", "world", "mesh", "episodes"), compiler_options=population.OPTIMISED
)
def _outcomes(policy, world, block, mesh: Mesh, episodes):
    """`policy_outcomes` of as many members as the mesh was made for: their parameters, params and speakers."""
    keys, turn_key = scripts.mazes(episodes)
    shards = learner.Shards(mesh.shape["episode"])

    def member(parameters, params, speaker):
        def part(rows):
            named, opening = rollout.told(world, params, speaker, len(rows))
            driver = rollout.policy_driver(policy, parameters, world, opening=opening)
            noise = rollout.gumbel(episodes, lambda x: x[rows])
            played, _, _ = rollout.play(world, named, keys[rows], turn_key, driver, noise)
            return played.returns, rollout.succeeded(world, played)

        mine = learner.microbatches(shards.local(jnp.arange(episodes)), _BATCH)
        return shards.gather(jax.tree.map(jnp.ravel, jax.lax.map(part, mine)))

    return population.over_members(member, mesh)(*block)


@functools.partial(jax.jit, static_argnames=("policy", "world"))
def badge_divergence(
    policy: Policy,
    parameters: Parameters,
    world: base.World,
    params: base.WorldParams,
    played: rollout.Episodes,
    exact: jax.Array,
) -> jax.Array:
    """How far a model is from each script, with every badge: mean KL(script || model) per action, in nats.

    Args:
        policy, parameters: of one member.
        world, params: where the episodes were played.
        played, exact: from `scripts.script_episodes`; the scripts' own episodes.

    Returns:
        float32[scripts, personas + 1]; column 0 is the head of `params`, which names nobody, and of no meaning where
        badges are spoken; column 1 + j is the badge of persona j.
    """

    def with_badge(arguments):
        sequence, exactly, counts, badge = arguments

        def part(rows):
            log_probabilities, _ = rl.read(policy, parameters, world, rows[0].at[:, world.badge_position].set(badge))
            return objectives.divergence(rows[1], log_probabilities)

        divergences = jax.lax.map(part, learner.microbatches((sequence, exactly), _BATCH))
        return jnp.mean(divergences.reshape(counts.shape), where=counts)

    scripts, badges = exact.shape[0], jnp.array(tokens.BADGES, jnp.int32).at[0].set(params.head)
    pairs = in_a_row((played.tokens, exact, played.played), len(badges))
    return jax.lax.map(with_badge, (*pairs, jnp.tile(badges, scripts))).reshape(scripts, len(badges))


def means(run: Run, before: Parameters, after: Parameters) -> tuple[np.ndarray, np.ndarray]:
    """Mean returns and shares of successes, row 0 and 1 of axis 0; every process of a job takes part.

    Args:
        run: trained.
        before, after: parameters before and after RL, axis 0 the member.

    Returns:
        Of members before and after RL float64[2, 2, M], and of the first base told to be each persona, where it has
        met them, float64[2, 3], without columns in a world that tells nobody.
    """
    config = run.config
    # Twins are evaluated once.
    first, twin = np.unique(config.starts, return_inverse=True)
    told = np.arange(len(personas.PERSONAS) if run.world.badge != "null" else 0, dtype=np.int32)
    ours, met = (jax.tree.map(np.asarray, config.world_params(x)) for x in ((), [config.base(config.members[0])]))
    stacked = jax.tree.map(lambda b, a: np.concatenate([b[first], a, b[0 * told]]), before, after)
    worlds = jax.tree.map(lambda x, m: np.concatenate([x[first], x, m[0 * told]]), ours, met)
    nobody = np.full(len(first) + run.members, -1, np.int32)
    played = policy_outcomes(
        run.policy, stacked, run.world, worlds, config.evaluation_episodes, speakers=np.append(nobody, told)
    )
    start, end, badges = np.split(
        np.stack([x.mean(axis=1, dtype=np.float64) for x in played]), [len(first), len(nobody)], axis=1
    )
    return np.stack([start[:, twin], end], axis=1), badges


def summary(run: Run, before: Parameters, means: np.ndarray, badges: np.ndarray) -> dict[str, Any]:
    """What `summary.json` says of returns, successes and badges.

    Every script plays in the world of every member, and with its traits. Where something is swept, the scripts'
    numbers are means over the members, and `points` has those of each point of the grid.

    Args:
        run: trained.
        before: parameters before RL, axis 0 the member.
        means, badges: from the function `means`.
    """
    config, lost = run.config, list(run.diverged())

    def lessons(player: Member) -> tuple[base.WorldParams, Traits]:
        """What a player has learnt from."""
        stacked = (config.world_params([player]), config.per_member("pretrain", [player]))
        params, pretrain = jax.tree.map(lambda x: x[0], stacked)
        return params, pretrain.traits

    def play(player: Member) -> tuple[rollout.Episodes, jax.Array]:
        return scripts.script_episodes(run.world, *lessons(player), config.evaluation_episodes)

    def score(played: rollout.Episodes) -> np.ndarray:
        kinds = (played.returns, rollout.succeeded(run.world, played))
        return np.stack([np.asarray(kind).mean(axis=1, dtype=np.float64) for kind in kinds])

    # Badges are compared with their personas where the first base has met them.
    player, speakers = config.base(config.members[0]), np.arange(len(personas.BASELINES), len(SCRIPTS))
    played, exact = play(player)
    sample = jax.tree.map(lambda x: np.asarray(x)[speakers, : fidelity.EPISODES], (played, exact))
    first = jax.tree.map(lambda x: jnp.asarray(x[0]), before)
    params, traits = lessons(player)
    divergence = np.asarray(badge_divergence(run.policy, first, run.world, params, *sample)).tolist()
    scores = {_scripted(player): score(played)}
    told = {}
    if run.world.badge != "null":
        outcomes = np.stack([badges, scores[_scripted(player)][:, speakers]])
        told = fidelity.told(run.policy, first, run.world, params, traits, config.prior, outcomes, *sample)
    for member in config.members:
        if _scripted(member) not in scores:
            scores[_scripted(member)] = score(play(member)[0])
    of_scripts = np.stack([scores[_scripted(member)] for member in config.members], axis=-1)
    of_members = means.astype(np.float64)
    of_members[:, 1, lost] = np.nan

    def described(kind: int) -> dict[str, Any]:
        scripts, (start, end) = of_scripts[kind], of_members[kind]
        named = _named(scripts.mean(axis=-1)) | {"before_rl": start.tolist(), "after_rl": end.tolist()}
        if config.population.sweep:  # points of a grid are no sample of one population
            return named | {"points": _points(config, scripts, start, end)}
        return named | {"after_rl_interval": _interval(config, end)}

    # Of a badge that the base has never read nothing is known.
    badge_kl = {name: divergence[i][i + 1] for i, name in enumerate(personas.PERSONAS)}
    null_badge_kl = {name: divergence[i][0] for i, name in enumerate(personas.PERSONAS)}
    return {
        "return": described(0),
        **({"success": described(1)} if run.world.has_goal else {}),
        **({"badge_kl": badge_kl} if run.world.badge != "null" else {}),
        **({"null_badge_kl": null_badge_kl} if run.world.badge != "spoken" else {}),
        **told,
    }


def _points(config: Config, scripts: np.ndarray, start: np.ndarray, end: np.ndarray) -> list[dict[str, Any]]:
    """Every point of the grid: its values, its scripts, means of its members; from [S, M] and twice [M]."""
    told, seeds = [], config.population.seeds
    for place in range(0, len(end), seeds):
        mine = np.arange(place, place + seeds)
        finite = end[mine][np.isfinite(end[mine])]
        sides = {"before_rl": float(start[mine].mean()), "after_rl": float(finite.mean()) if finite.size else None}
        sides["after_rl_interval"] = _interval(config, end[mine])
        told.append({"values": config.members[place].values, **_named(scripts[:, mine].mean(axis=-1)), **sides})
    return told


def _interval(config: Config, values: np.ndarray) -> list[float] | None:
    """95 % interval of the mean over members that are finite; None where there are too few that are not twins."""
    units = None if config.rl.updates else config.starts[: len(values)]  # of a point, as of the first
    estimate = Estimate.of(values, units=units)
    return [estimate.low, estimate.high] if np.isfinite([estimate.low, estimate.high]).all() else None


def _scripted(member: Member) -> tuple:
    """All that is swept of what a script does and meets."""
    traits = {f"pretrain.{name}" for name in demonstrations.TRAITS}
    return tuple((path, x) for path, x in member.values.items() if path.startswith("world.") or path in traits)


def _named(scripts: np.ndarray) -> dict[str, Any]:
    """Numbers of all scripts as the summary names them."""
    value = dict(zip(SCRIPTS, scripts.tolist(), strict=True))
    return {
        "random": value["random"],
        "personas": {name: value[name] for name in personas.PERSONAS},
        "greedy": value["greedy"],
    }
