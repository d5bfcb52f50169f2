"""The exact optimum of KL-regularised RL for personas that are tables: what selection alone can explain.

π*_λ ∝ π_0 e^{λ r} with π_0 = Σ w_i π_i over whole episodes is again a mixture: of the tilted personas
π_i e^{λ r} / Z_i with weights w*_i ∝ w_i Z_i. A tilted persona is a table too, found backwards
in time: log Z_i(state, t) = log Σ_a π_i(a | state) exp(λ r(state, a) + log Z_i(next, t + 1)). So KL, selection and
change within personas are exact for a whole curve of λ, and the oracle of `selection` and `tilting`.

Everything is float64 NumPy. M mazes, I personas, X states, A actions.
"""

import collections
import dataclasses
import functools
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from analysis import selection
from envs import labyrinth, tokens
from envs.personas import Traits
from ground import seeds

HEADINGS = 5
"""A heading is -1, none, or a direction."""


@dataclasses.dataclass(frozen=True)
class Table:
    """Personas whose next action depends on a state among X alone, in M mazes where moves are certain."""

    following: np.ndarray
    """int[M, X, A], the state that each action leads to; a final state leads to itself."""
    rewards: np.ndarray
    """float64[M, X, A]; 0 in a final state."""
    log_policies: np.ndarray
    """float64[M, I, X, A]"""
    starts: np.ndarray
    """int[M]"""
    turns: int
    """Actions of an episode, T; those after a final state change nothing and are not counted."""


@dataclasses.dataclass(frozen=True)
class Tilted:
    """Each persona tilted, π_i e^{λ r} / Z_i, over whole episodes."""

    scale: float
    """λ"""
    log_partitions: np.ndarray
    """float64[M, I], log Z_i = log E_i e^{λ r}."""
    means: np.ndarray
    """float64[M, I], E r under the tilted persona."""
    variances: np.ndarray
    """float64[M, I], Var r under the tilted persona."""

    def weights(self, prior: np.ndarray) -> np.ndarray:
        """w*_i ∝ w_i Z_i of each maze, float64[M, I]."""
        joint = np.log(prior) + self.log_partitions
        return np.exp(joint - _log_sum(joint)[..., None])

    def rewards(self, prior: np.ndarray) -> np.ndarray:
        """E r under π*_λ in each maze, float64[M]."""
        return (self.weights(prior) * self.means).sum(axis=-1)

    def split(self, prior: np.ndarray) -> selection.Split:
        """KL(π*_λ ‖ π_0) = S* + W*, float64; `prior` is w, float64[I]."""
        weights, own = self.weights(prior), np.broadcast_to(prior, self.means.shape)
        log_partition = _log_sum(np.log(prior) + self.log_partitions)
        return selection.Split(
            prior=own,
            weights=weights,
            divergences=self.scale * self.rewards(prior) - log_partition,
            selections=selection.relative_entropy(weights, own),
            changes=weights * (self.scale * self.means - self.log_partitions),
        )


def backwards(table: Table, scale: float) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]]:
    """The tilted personas, from the last turn to the first.

    Yields:
        Log-probabilities float64[M, I, X, A] of the turn's actions under the tilted personas; and of what is still
        to come from each state: log Z_i, mean and variance of the reward, each float64[M, I, X].
    """
    mazes, count, states, actions = table.log_policies.shape
    where = table.following.reshape(mazes, 1, states * actions)
    reward = table.rewards[:, None]
    log_partition, mean, variance = np.zeros((3, mazes, count, states))

    def ahead(values: np.ndarray) -> np.ndarray:
        return np.take_along_axis(values, where, axis=2).reshape(mazes, count, states, actions)

    for _ in range(table.turns):
        joint = table.log_policies + scale * reward + ahead(log_partition)
        log_partition = _log_sum(joint)
        log_chance = joint - log_partition[..., None]
        chance, pays = np.exp(log_chance), reward + ahead(mean)
        mean = (chance * pays).sum(axis=-1)
        variance = (chance * (ahead(variance) + (pays - mean[..., None]) ** 2)).sum(axis=-1)
        yield log_chance, log_partition, mean, variance


def tilt(table: Table, scale: float) -> Tilted:
    """The personas tilted by λ = `scale`; 0 gives what they are, negative scales shun the reward."""
    if table.turns < 1:
        raise ValueError(f"turns={table.turns}: an episode needs at least 1 turn")
    _, *first = collections.deque(backwards(table, scale), maxlen=1).pop()
    at_start = (np.take_along_axis(x, table.starts[:, None, None], axis=2)[..., 0] for x in first)
    return Tilted(scale, *at_start)


def match(table: Table, prior: np.ndarray, reward: float, largest: float = 1e3) -> Tilted:
    """The tilt, one λ for all mazes, that earns `reward` on average over mazes.

    Raises:
        ValueError: no λ between ± `largest` earns it.
    """

    def earned(scale: float) -> float:
        return float(tilt(table, scale).rewards(prior).mean())

    low, high = -1.0, 1.0
    while earned(low) > reward and low > -largest:
        low *= 2
    while earned(high) < reward and high < largest:
        high *= 2
    if not earned(low) <= reward <= earned(high):
        raise ValueError(
            f"reward={reward:g}: no tilt earns it; λ from {low:g} to {high:g} earns {earned(low):g} to {earned(high):g}"
        )
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if earned(middle) < reward else (low, middle)
    return tilt(table, (low + high) / 2)


def correlation_ratio(table: Table, prior: np.ndarray) -> float:
    """η², of which `tilting.reward_share` is the estimate; S / KL of the tilt comes to it as λ → 0."""
    untilted = tilt(table, 0.0)
    mean = (prior * untilted.means).sum(axis=-1, keepdims=True)
    between = (prior * (untilted.means - mean) ** 2).sum(axis=-1)
    return float(between.mean() / (between + (prior * untilted.variances).sum(axis=-1)).mean())


def travellers(
    world: labyrinth.EmojiLabyrinth,
    states: labyrinth.LabyrinthState,
    params: labyrinth.LabyrinthParams,
    traits: Traits,
    *,
    memory: bool = True,
) -> Table:
    """The labyrinth's personas, without plans, as tables.

    Args:
        world: the labyrinth.
        states: of episodes that have just begun, one of each maze; leading axis M.
        params: of the world; rewards of a style are not a function of the state.
        traits: of the personas.
        memory: they remember the last move and whether it was a bump, 10 n² states. Without it each move is as
            though it were the first, n² states: a table π_i(a | cell).

    Raises:
        ValueError: for rewards of a style.
    """
    if bool(jnp.any(params.style_rewards != 0)):
        raise ValueError("style_rewards: the way an episode came is not in the state; only 0 can be tabled")
    following, rewards, chances, starts = (np.asarray(x) for x in _tables(world, states, params, traits, memory))
    exact = np.moveaxis(chances.astype(np.float64), 2, 1)
    # Float32 probabilities sum to 1 within 1e-7, which T turns and λ would make visible.
    exact = exact - _log_sum(exact)[..., None]
    return Table(following, rewards.astype(np.float64), exact, starts, world.turns)


@functools.partial(jax.jit, static_argnames=("world", "memory"))
def _tables(world: labyrinth.EmojiLabyrinth, states: labyrinth.LabyrinthState, params, traits: Traits, memory: bool):
    """Next states, rewards and log-probabilities of every state of each maze, and the states the mazes start in."""
    variants = HEADINGS * 2 if memory else 1

    def number(state: labyrinth.LabyrinthState) -> jax.Array:
        row, column = world.cell(state.position)
        place = row * world.size + column
        if not memory:
            return place
        return (place * HEADINGS + state.heading + 1) * 2 + (state.met == tokens.WALL).astype(jnp.int32)

    def row(state: labyrinth.LabyrinthState, index: jax.Array):
        place, variant = index // variants, index % variants
        here = dataclasses.replace(
            state,
            position=world.tile(jnp.stack([place // world.size, place % world.size])),
            heading=variant // 2 - 1 if memory else state.heading,
            met=jnp.where((variant % 2 == 1) & memory, tokens.WALL, tokens.PATH).astype(jnp.int8),
        )
        chances = world.persona_log_probabilities(here, jnp.zeros(0, jnp.int32), params, traits)

        def act(action: jax.Array):
            # The key is for worlds with chance; this one has none after the reset.
            _, after, reward, _, _ = world.step_env(seeds.key(0), here, action, params)
            return number(after), reward

        return *jax.vmap(act)(jnp.arange(4)), chances

    indices = jnp.arange(world.size * world.size * variants)
    each = jax.vmap(jax.vmap(row, in_axes=(None, 0)), in_axes=(0, None))
    return *each(states, indices), jax.vmap(number)(states)


def _log_sum(values: np.ndarray) -> np.ndarray:
    """log Σ exp over the last axis."""
    top = values.max(axis=-1, keepdims=True)
    return np.log(np.exp(values - top).sum(axis=-1)) + top[..., 0]
