"""The extraction set: episodes that end with a forced step onto a tile of each class, and what a policy makes of them.

arXiv 2605.30232, appendices C and L: moves over Path alone, then one last step onto Path, Gold or Mold, no wind, no
melting, and the residual stream read at the token of that last move: the policy has chosen, and seen no consequence.
The set is off-policy, so that it has Mold steps whatever a policy would do. Where a name is spoken, one is said before
the first move, by the base's prior and the same in every class.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from agents.learning import learner
from agents.policies import Parameters, Policy
from agents.runs import Run
from envs import base, maze, personas, tokens
from ground import seeds
from ground.terminal import ConfigError

CLASSES = (tokens.PATH, tokens.GOLD, tokens.MOLD)
"""The roles of the last tile; a class is the index here, and equals the role."""

EPISODES = 15_000
"""Episodes of the extraction set (appendix L): 5,000 of each class."""

_CACHED = 20

TRIES = 2_000
"""Mazes in which an episode is looked for; with the world's own shares of tiles one of Gold needs 20 on average."""


@struct.dataclass
class Approaches:
    """Episodes that end with a step onto a tile of a given class."""

    tokens: jax.Array
    """int32[N, S]; what follows the last step means nothing, and a causal policy cannot see it from there."""
    last: jax.Array
    """int32[N], position of the last move's token."""
    classes: jax.Array
    """int32[N], class of the tile that it leads to."""
    directions: jax.Array
    """int32[N], 0 to 3, the last move."""
    steps: jax.Array
    """int32[N], moves of the episode, 1 to T."""
    found: jax.Array
    """bool[N], whether the episode is what the plan wants; False where `TRIES` mazes had no such walk."""


def plan(episodes: int, turns: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Class, direction and steps of each episode, int32[N]: exactly balanced directions in each class, and steps even.

    Raises:
        ValueError: `episodes` is not a multiple of 12, so that classes and directions cannot be balanced.
    """
    if episodes < 1 or episodes % (len(CLASSES) * len(tokens.MOVES)):
        raise ValueError(f"episodes={episodes}: use a multiple of {len(CLASSES) * len(tokens.MOVES)}")
    index = np.arange(episodes, dtype=np.int32)
    within = index % (episodes // len(CLASSES))
    return index // (episodes // len(CLASSES)), within % 4, within // 4 % turns + 1


@functools.partial(jax.jit, static_argnames=("world", "episodes", "batch"))
def approaches(
    world: maze.EmojiMaze,
    params: maze.MazeParams,
    key: jax.Array,
    episodes: int = EPISODES,
    batch: int = 240,
    prior: Sequence[float] = (1 / 3, 1 / 3, 1 / 3),
) -> Approaches:
    """Draw an extraction set on the device.

    Each episode is drawn until its last step finds the tile that the plan wants, a fresh maze each time: a sample of
    all such walks.

    Args:
        world, params: single example; wind and melting are switched off.
        key: of all chance.
        episodes: N, a multiple of 12.
        batch: episodes drawn side by side.
        prior: chances that Larry, Bob and Alice are named, where a name is spoken.
    """
    calm = {"wind_probability": jnp.zeros_like(params.wind_probability), "melting": jnp.array(False)}
    params = dataclasses.replace(params, **calm)

    def attempt(key, role, direction, steps, speaker):
        maze_key, walk_key, turn_key = jax.random.split(key, 3)
        observation, state = world.reset_env(maze_key, params)
        prompt = world.prompt(state, params)
        opening = world.write_opening(turn_key, speaker, state, params, personas.Traits())

        def turn(carry, noise_at):
            observation, state, good = carry
            noise, index = noise_at
            around = world.neighbours(state, params).astype(jnp.int32)
            is_path = around == tokens.PATH
            is_last = index == steps - 1
            action = jnp.where(is_last, direction, jnp.argmax(jnp.where(is_path, noise, -1.0)).astype(jnp.int32))
            good &= jnp.where(is_last, around[direction] == role, is_path.any() | (index >= steps))
            following, state, _, _, _ = world.step_env(turn_key, state, action, params)
            spoken = jnp.concatenate([observation, action[None] + tokens.MOVES[0]])
            return (following, state, good), spoken

        noise = jax.random.uniform(walk_key, (world.turns, 4))
        start = (observation, state, jnp.array(True))
        (_, _, good), spoken = jax.lax.scan(turn, start, (noise, jnp.arange(world.turns)))
        return good, jnp.concatenate([prompt, opening, spoken.reshape(-1)])

    def draw(arguments):
        keys, *wanted = arguments

        def again(carry):
            count, done, sequences = carry
            tries = jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys, count)
            good, found = jax.vmap(attempt)(tries, *wanted)
            sequences = jnp.where((good & ~done)[:, None], found, sequences)
            return count + 1, done | good, sequences

        size = len(keys)
        nothing = (jnp.int32(0), jnp.zeros(size, bool), jnp.zeros((size, world.episode_length()), jnp.int32))
        _, done, sequences = jax.lax.while_loop(lambda carry: ~carry[1].all() & (carry[0] < TRIES), again, nothing)
        return done, sequences

    classes, directions, steps = plan(episodes, world.turns)
    chances = jnp.log(jnp.asarray(prior, jnp.float32))
    drawn = jax.random.categorical(jax.random.fold_in(key, episodes), chances, shape=(episodes // len(CLASSES),))
    speakers = jnp.tile(drawn.astype(jnp.int32), len(CLASSES))
    planned = (jax.random.split(key, episodes), jnp.array(CLASSES, jnp.int32)[classes], directions, steps, speakers)
    done, sequences = jax.lax.map(draw, learner.microbatches(planned, batch))
    return Approaches(
        tokens=sequences.reshape(episodes, -1),
        last=jnp.asarray(world.action_positions(), jnp.int32)[steps - 1],
        classes=jnp.asarray(classes),
        directions=jnp.asarray(directions),
        steps=jnp.asarray(steps),
        found=done.reshape(-1),
    )


@struct.dataclass
class Sets:
    """Episodes that every member, checkpoint and arm reads."""

    training: Approaches
    """Of which the vectors are made."""
    held_out: Approaches
    """By which layers are chosen."""
    written: jax.Array
    """int32[5], the tile map that they are written in."""


def check(option: str, episodes: int) -> None:
    """Refuse a size of the extraction set that cannot be balanced, or leaves too little to measure: ConfigError."""
    if episodes < 120 or episodes % 12:
        raise ConfigError(f"--{option}={episodes}: use a multiple of 12, at least 120")


def sets(run: Run, episodes: int, seed: int) -> Sets:
    """The extraction sets of a run's world (of its first member's, where they differ): the same for all such runs.

    Where a name is spoken, runs of another prior have other names.

    Args:
        run: whose world it is.
        episodes: of which the vectors are made, see `check`; a fifth as many are held out.
        seed: of all chance.

    Raises:
        ConfigError: the run's world has no such episodes, or none of a class.
    """
    if not isinstance(run.world, maze.EmojiMaze):
        raise ConfigError(f"{run.path}: concepts are of EmojiMaze-v0 alone, and the run's world is another")
    values = run.population[0].values.items()
    swept = {path.removeprefix("world."): value for path, value in values if path.startswith("world.")}
    params: Any = run.params
    prior = tuple(run.config.prior.tolist())
    drawn = _sets(dataclasses.replace(run.config.world, **swept), prior, episodes, seed)
    for part in (drawn.training, drawn.held_out):
        missing = np.bincount(np.asarray(part.classes)[~np.asarray(part.found)], minlength=3)
        if missing.any():
            role = int(np.argmax(missing))
            raise ConfigError(
                f"{run.path}: {missing[role]} of {len(part.classes) // 3} episodes of class "
                f"{tokens.ROLES[role].title()} cannot be found in {TRIES} mazes each; the run's world.gold_ratio="
                f"{float(params.gold_ratio[0]):g} leaves too few such tiles, so analyse a run with more"
            )
    return drawn


@functools.lru_cache(maxsize=4)
def _sets(config: Any, prior: tuple[float, ...], episodes: int, seed: int) -> Sets:
    world, params = config.make()
    held_out = max(episodes // 60 * 12, 12)
    training_key, held_out_key, _ = jax.random.split(seeds.held_out("concepts", seed), 3)
    training = approaches(world, params, training_key, episodes, prior=prior)
    return Sets(training, approaches(world, params, held_out_key, held_out, prior=prior), params.tile_map)


def keys(seed: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The keys of label permutations, of goal tracking and of narrated episodes."""
    permutations, tracking, narrated = jax.random.split(jax.random.split(seeds.held_out("concepts", seed), 3)[2], 3)
    return permutations, tracking, narrated


def retile(sequence: jax.Array, written: jax.Array, wanted: jax.Array) -> jax.Array:
    """Token sequences int32[...] with one tile map int32[5] in place of another.

    Right for maps that hold the same emoji in other orders, and for maps with no emoji in common.
    """
    translation = jnp.arange(tokens.SIZE, dtype=jnp.int32).at[written].set(wanted)
    return translation[sequence]


def residuals(
    policy: Policy,
    parameters: Parameters,
    sequence: jax.Array,
    positions: jax.Array,
    layers: Sequence[int],
    batch: int = 0,
) -> jax.Array:
    """The residual stream float32[N, C, layers, width] of one member, a few episodes at a time.

    Args:
        policy, parameters: of one member.
        sequence: tokens int32[N, S].
        positions: where to read, int32[N, C].
        layers: which to read; l is the output of block l, 0 the embedding.
        batch: episodes in one forward pass, reduced to a divisor of N; 0 chooses what a CPU's cache holds, or 512 on
            an accelerator.
    """
    batch = batch or (_CACHED if jax.default_backend() == "cpu" else 512)

    def part(arguments):
        rows, at = arguments
        outputs = policy.forward(parameters, rows, capture=at, capture_layers=tuple(layers))
        return outputs.residual

    rows = len(sequence)
    batch = max(size for size in range(1, min(batch, rows) + 1) if rows % size == 0)
    parts = learner.microbatches((sequence, positions), batch)
    read = jax.lax.map(part, parts)
    return read.reshape(len(sequence), *read.shape[2:])


def read_last(
    policy: Policy,
    parameters: Parameters,
    world: base.World,
    sequence: jax.Array,
    layers: Sequence[int],
) -> jax.Array:
    """The residual stream at every episode's last move, float32[N, layers, width].

    Short episodes are read together and no further than the longest of them goes, which saves a third of the work.

    Args:
        policy, parameters: of one member.
        world: where the episodes were drawn.
        sequence: tokens int32[N, S] of `approaches`, perhaps in other emoji.
        layers: as in `residuals`.
    """
    _, _, steps = plan(len(sequence), world.turns)
    last = world.action_positions()[steps - 1]
    order = np.argsort(steps, kind="stable")
    read = []
    for rows in np.array_split(order, 3):
        at = jnp.asarray(last[rows, None], jnp.int32)
        read.append(residuals(policy, parameters, sequence[rows, : last[rows].max() + 1], at, layers)[:, 0])
    return jnp.concatenate(read)[np.argsort(order)]


def blocks(policy: Policy) -> tuple[int, ...]:
    """The layers whose output is read: every block. At the embedding, a move says nothing of the tile behind it."""
    return tuple(range(1, policy.config.layers + 1))
