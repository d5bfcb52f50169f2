"""Operations and bytes that the work needs, counted by formula: the numerators.

A matrix product [m, k] × [k, n] is 2·m·n·k floating-point operations. For one sequence of S tokens through a
transformer of width D, hidden width H and L layers, with predictions of V logits and a value at P positions:

    projections   L · S · 2 · (4·D² + 2·D·H)     queries, keys, values, output; up and down
    attention     L · 4 · S² · D                 scores and mixing, over the full square that is computed
    heads         P · 2 · D · (V + 1)

Of the square a causal policy needs S·(S + 1)/2 entries; `causal` counts those alone. Ours computes about three quarters
of it: the formula keeps the field's convention. Where predictions are wanted at P positions alone, our last block
computes queries, mixing, output and MLP only there, and `sparing` counts it so. The backward pass of a product is
two products of the same size, so forward and backward together are three forwards. Embedding, norms, rotary
positions, softmax, losses, the optimiser and the maze are work that the clock counts and these formulas do not.

Cached decoding reads every token once and compares it with the whole cache: as many operations as one forward.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import jax

from agents.policies import PolicyConfig
from agents.runs.config import Config
from benchmarks.measure import Work
from envs import base, tokens


def forward(
    config: PolicyConfig,
    length: int,
    predictions: int,
    logits: int = tokens.FIRST,
    *,
    causal: bool = False,
    sparing: bool = False,
) -> float:
    """Floating-point operations of one sequence's forward pass.

    Args:
        config: of the transformer.
        length: tokens read, S.
        predictions: positions at which the heads are asked, P.
        logits: that they give, V.
        causal: count only the entries of the attention that a causal policy needs.
        sparing: count the last block only where it is needed, with predictions spread evenly.
    """
    width = config.width
    keys = (length + 1) / 2 if causal else length

    def layer(queries: int) -> float:
        of_keys = 2 * length * 2 * width**2
        return of_keys + queries * (2 * (2 * width**2 + 2 * width * config.hidden) + 4 * keys * width)

    last = layer(predictions if sparing else length)
    return float((config.layers - 1) * layer(length) + last + predictions * 2 * width * (logits + 1))


def reading(config: PolicyConfig, lengths: Sequence[int], predictions: int, *, passes: int = 1, **how: Any) -> Work:
    """Sequences of these lengths, each read `passes` times over; `how` is said to `forward`."""
    full, half = (
        passes * sum(forward(config, length, predictions, causal=causal, **how) for length in lengths)
        for causal in (False, True)
    )
    return Work(flops=full, causal_flops=half, precision=config.compute_dtype, in_cache=False)


def shared(work: Work, units: float) -> Work:
    """The work of one of so many units that share it."""
    costs = ("flops", "causal_flops", "operations", "bytes")
    return dataclasses.replace(work, **{name: getattr(work, name) / units for name in costs})


def scoring(config: PolicyConfig, world: base.World, *, passes: int = 1, sparing: bool = True) -> Work:
    """One token of an episode whose four moves are predicted before every action; its last token is not read."""
    length = world.episode_length()
    work = reading(config, [length - 1], world.turns, passes=passes, logits=len(tokens.MOVES), sparing=sparing)
    return shared(work, length)


def decoding(config: PolicyConfig, world: base.World) -> Work:
    """One token of an episode played with a cache, which is read once a turn and written once."""
    length, turns = world.episode_length() - 1, world.turns
    item = 2 if config.compute_dtype == "bfloat16" else 4
    # Before turn t the cache holds t / T of the episode: on average half of it is read.
    cache = config.layers * 2 * config.width * item * (turns * length / 2 + length)
    return dataclasses.replace(scoring(config, world), bytes=cache / world.episode_length())


def stage(config: Config, name: str, *, scored: bool = True, sparing: bool = True) -> Work:
    """One token of a whole update of `pretrain` or `rl`.

    Args:
        config: of the run.
        name: of the stage.
        scored: whether episodes are read again before learning.
        sparing: whether the last block computes only what RL needs.
    """
    world, _ = config.world.make()
    if name == "pretrain":
        length = world.episode_length()
        return shared(reading(config.policy, [length - 1], length - 1, passes=3), length)
    # Playing, scoring, and in every epoch a forward and a backward pass.
    return scoring(config.policy, world, passes=1 + scored + 3 * config.rl.epochs, sparing=sparing)


def stepping(world: base.World, params: Any) -> Work:
    """One turn of a maze, and its share of the reset.

    Operations are those that the program asks for, before XLA simplifies it. Bytes are a lower bound: what a step
    changes of the state is read and written every turn, what it leaves alone is written once an episode, and the
    observation is written.
    """
    key = jax.random.key(0)
    _, state = jax.eval_shape(world.reset_env, key, params)
    reset = jax.make_jaxpr(world.reset_env)(key, params)
    step = jax.make_jaxpr(world.step_env)(key, state, jax.ShapeDtypeStruct((), "int32"), params)
    size = [leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state)]
    observation, *after = step.jaxpr.outvars[: len(size) + 1]
    changed = [variable not in step.jaxpr.invars for variable in after]
    moved = sum(2 * bytes if new else bytes / world.turns for bytes, new in zip(size, changed, strict=True))
    return Work(
        operations=operations(step.jaxpr) + operations(reset.jaxpr) / world.turns,
        bytes=moved + observation.aval.size * observation.aval.dtype.itemsize,
    )


_FREE = frozenset(
    [
        *("bitcast_convert_type", "broadcast_in_dim", "concatenate", "convert_element_type", "copy", "dynamic_slice"),
        *("dynamic_update_slice", "gather", "iota", "pad", "random_unwrap", "random_wrap", "reshape", "rev", "scatter"),
        *("slice", "split", "squeeze", "stop_gradient", "transpose"),
    ]
)
"""Primitives that move data and compute nothing."""

_THREEFRY = 115
"""Operations of one Threefry-2x32-20 block: 20 rounds of add, rotate (3), exclusive or, and 5 key injections of 3."""


def operations(jaxpr: Any) -> float:
    """Elementwise operations that a program asks for, loops of known length counted as often as they run.

    An elementwise primitive counts once per element of its output, a reduction once per element of its input, a random
    word or key one Threefry block. A loop of unknown length counts once.
    """
    total = 0.0
    for equation in jaxpr.eqns:
        name, inner = equation.primitive.name, list(_inner(equation.params))
        size = max((variable.aval.size for variable in equation.outvars), default=0)
        if inner:
            total += equation.params.get("length", 1) * sum(operations(part) for part in inner)
        elif name in ("random_bits", "random_split", "random_fold_in"):
            total += _THREEFRY * size
        elif name.startswith(("reduce", "arg", "cum", "sort")):
            total += max(variable.aval.size for variable in equation.invars)
        elif name not in _FREE:
            total += size
    return total


def _inner(params: dict[str, Any]) -> Iterator[Any]:
    """The programs inside an equation's parameters: bodies of loops, branches, called functions."""
    for value in params.values():
        for item in value if isinstance(value, (tuple, list)) else (value,):
            item = getattr(item, "jaxpr", item)
            if hasattr(item, "eqns"):
                yield item
