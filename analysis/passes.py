"""Pass@k: how often one of k attempts at a maze succeeds, estimated without bias from n attempts at each.

A policy that RL has made surer does better at one attempt and may do worse at many, since it no longer tries what
its base would have tried (arXiv 2504.13837, 2506.01347). So both are measured on the same held-out mazes.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax.sharding import Mesh
from numpy.typing import ArrayLike

from agents.learning import learner, population, rollout
from agents.policies import Parameters, Policy
from envs import base, tokens
from ground import seeds

BLOCK = 16
"""Mazes of one call to the device: a block is some seconds of work, after which progress can be shown."""

_DIGITS = 13
"""Turns in a word: 5 to that power still fits into 32 bits."""


@struct.dataclass
class Attempts:
    """What became of n attempts at each maze."""

    successes: Any
    """int32[M, mazes], attempts that succeeded, as `rollout.succeeded` has it."""
    distinct: Any
    """int32[M, mazes], different sequences of actions among them (the count of solution paths of arXiv 2506.01347)."""


def powers(samples: int) -> np.ndarray:
    """The k at which pass@k is told: 1, 2, 4, … and n, int[K]."""
    return np.array([*(2**power for power in range(samples.bit_length()) if 2**power < samples), samples])


def pass_at_k(successes: ArrayLike, samples: int, ks: ArrayLike) -> np.ndarray:
    """Unbiased pass@k (arXiv 2107.03374, section 2.1): the share of all sets of k attempts that hold a success.

    That is 1 − C(n − c, k) / C(n, k), a product of n − c + 1 … n over 1 − k / j, summed here in logarithms.

    Args:
        successes: int[...], c of each maze.
        samples: n, attempts at each maze.
        ks: int[K], attempts allowed.

    Returns:
        float64[..., K].

    Raises:
        ValueError: a count is not between 0 and n, or a k not between 1 and n.
    """
    counts, ks = np.asarray(successes), np.asarray(ks)
    for name, values, low in (("successes", counts, 0), ("ks", ks, 1)):
        if not np.issubdtype(values.dtype, np.integer) or np.any((values < low) | (values > samples)):
            raise ValueError(f"{name}: use whole numbers from {low} to samples={samples}")
    share = np.minimum(ks[None] / np.arange(samples, 0, -1.0)[:, None], 1.0)
    with np.errstate(divide="ignore"):  # fewer failures than k: a success is certain, and its logarithm −∞
        logs = np.cumsum(np.log1p(-share), axis=0)
    missed = np.concatenate([np.zeros((1, len(ks))), logs])
    return (0.0 - np.expm1(missed))[counts]


def cover(successes: ArrayLike, samples: int, taus: ArrayLike) -> np.ndarray:
    """Cover@τ (arXiv 2510.08325): the share of mazes of which at least a share τ of the attempts succeeds.

    Args:
        successes: int[..., mazes], of each maze.
        samples: n, attempts at each maze.
        taus: float[T], 0 to 1.

    Returns:
        float64[..., T].
    """
    least = np.ceil(np.asarray(taus, np.float64) * samples - 1e-9)
    return (np.asarray(successes)[..., None] >= least).mean(axis=-2)


def measure(
    policy: Policy | None,
    parameters: Parameters,
    world: base.World,
    params: base.WorldParams,
    mazes: int,
    samples: int,
    temperature: float = 1.0,
    report: Callable[[float], None] = lambda share: None,
) -> Attempts:
    """Play n attempts of every member at each held-out maze; the mazes are the same for everyone, and in every call.

    On a CPU the devices share the mazes of one member after another, so that one program serves populations of any
    size; elsewhere members play at the same time.

    Args:
        policy, parameters: the policies; axis 0 is the member. None and {}: somebody who moves at random.
        world, params: where they play; axis 0 of every leaf of `params` is the member.
        mazes: how many; fewer are the first of more.
        samples: n, attempts at each.
        temperature: of plans and actions.
        report: is told the share that is done.

    Returns:
        NumPy arrays.
    """
    block = min(BLOCK, mazes)
    together = members = len(params.tile_map)
    mesh = population.mesh(members, block)
    if population.on_cpu(mesh):
        together, mesh = 1, population.mesh(1, block)
    # In NumPy, so that nothing is compiled to take a member out.
    everyone, parts = jax.tree.map(np.asarray, (parameters, params)), []
    for first in range(0, members, together):
        mine = jax.tree.map(lambda x, first=first: x[first : first + together], everyone)
        mine, blocks = population.place(mine, mesh), []
        for start in range(0, mazes, block):
            # The last block may go on beyond the mazes asked for, so that one program does for all.
            indices = jnp.arange(start, start + block)
            played = play(policy, mine[0], world, mine[1], indices, jnp.float32(temperature), mesh, samples)
            blocks.append(population.on_host(played))
            report((first * mazes + together * min(start + block, mazes)) / (members * mazes))
        parts.append(jax.tree.map(lambda *x: np.concatenate(x, axis=1)[:, :mazes], *blocks))
    return jax.tree.map(lambda *x: np.concatenate(x), *parts)


@functools.partial(jax.jit, static_argnames=("policy", "world", "mesh", "samples"))
def play(
    policy: Policy | None,
    parameters: Parameters,
    world: base.World,
    params: base.WorldParams,
    mazes: jax.Array,
    temperature: jax.Array,
    mesh: Mesh,
    samples: int,
) -> Attempts:
    """`measure` of the mazes int32[B]; `mesh` is `population.mesh(M, B)`.

    The attempts at a maze share its start and its weather and differ in the policy's chance alone. One maze is
    played at a time, on a CPU by a few attempts at a time, so that memory is bounded whatever the sizes.
    """
    maze_key, chance_key = _keys()
    shards = learner.Shards(mesh.shape["episode"])
    parts = -(-samples // (rollout.AT_ONCE if population.on_cpu(mesh) else samples))
    # Equal parts, of which the last repeats the last attempt where n cannot be divided.
    attempts = jnp.minimum(jnp.arange(parts * -(-samples // parts)), samples - 1).reshape(parts, -1)

    def member(parameters, params):
        if policy is None:
            driver = silent(world, lambda state: jnp.zeros(world.num_actions, jnp.float32))
        else:
            driver = rollout.policy_driver(policy, parameters, world, temperature=temperature)

        def maze(index):
            own, chance = (jax.random.fold_in(key, index) for key in (maze_key, chance_key))

            def part(rows):
                noise = rollout.gumbel(samples, lambda x: x[rows])
                keys = jnp.broadcast_to(own, rows.shape)
                played, _, _ = rollout.play(
                    world, params, keys, chance, driver, noise, group=len(rows), stops=population.on_cpu(mesh)
                )
                solved = rollout.succeeded(world, played)
                return solved, jnp.where(solved[:, None], _words(played), jnp.uint32(0))

            played = jax.lax.map(part, attempts)
            solved, words = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:])[:samples], played)
            return Attempts(jnp.sum(solved, dtype=jnp.int32), _different(words))

        return shards.gather(jax.lax.map(maze, shards.local(mazes)))

    return population.over_members(member, mesh)(parameters, params)


@functools.partial(jax.jit, static_argnames=("world", "mazes"))
def distances(world: base.World, params: base.WorldParams, mazes: int) -> jax.Array:
    """`moves` in each of the mazes of `measure`, float32[M, mazes]; axis 0 of every leaf of `params` is the member."""
    maze_key, chance_key = _keys()
    keys = jax.vmap(lambda index: jax.random.fold_in(maze_key, index))(jnp.arange(mazes))
    return jax.lax.map(lambda params: moves(world, params, keys, chance_key), params)


def moves(world: base.World, params: base.WorldParams, keys: jax.Array, chance_key: jax.Array) -> jax.Array:
    """How far the goal is in mazes of keys [B]: moves of the planner, float32[B].

    NaN where it does not get there in time, and in worlds without a goal.
    """
    if not world.has_goal:
        return jnp.full(len(keys), jnp.nan, jnp.float32)
    driver = silent(world, lambda state: world.planner_scores(state, params))
    played, _, _ = rollout.play(world, params, keys, chance_key, driver, rollout.gumbel(len(keys)))
    return jnp.where(rollout.succeeded(world, played), jnp.sum(played.played, axis=-1, dtype=jnp.float32), jnp.nan)


def _keys() -> tuple[jax.Array, jax.Array]:
    """The keys of the mazes, and of chance, each to be folded with the number of a maze."""
    maze_key, chance_key = jax.random.split(seeds.held_out("pass-at-k"))
    return maze_key, chance_key


def silent(world: base.World, scores: Callable[[base.WorldState], jax.Array]) -> rollout.Driver:
    """Somebody who says nothing before the first move, and moves by scores float32[4] of one state."""

    def write(states, key):
        return jnp.full((len(states.time), world.opening_length), tokens.PLAN_END, jnp.int32)

    return rollout.scripted_driver(world, lambda states, plans: jax.vmap(scores)(states), write)


def _words(episodes: rollout.Episodes) -> jax.Array:
    """The actions played as digits 1 to 4 of numbers, uint32[B, W]; never all zero, for every episode has a turn."""
    digits = jnp.where(episodes.played, episodes.actions + 1, 0).astype(jnp.uint32)
    batch, turns = digits.shape
    digits = jnp.pad(digits, ((0, 0), (0, -turns % _DIGITS))).reshape(batch, -1, _DIGITS)
    return jnp.sum(digits * jnp.array(5 ** np.arange(_DIGITS), jnp.uint32)[None, None], axis=-1)


def _different(words: jax.Array) -> jax.Array:
    """How many different rows of uint32[n, W] are not zero, int32[]."""
    columns: Sequence[jax.Array] = jax.lax.sort(list(words.T), num_keys=words.shape[1])
    rows = jnp.stack(columns)
    changes = jnp.sum(jnp.any(rows[:, 1:] != rows[:, :-1], axis=0), dtype=jnp.int32)
    return changes + jnp.any(rows[:, 0] != 0).astype(jnp.int32)
