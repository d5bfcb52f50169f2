"""How many parameters an update changed, by every definition in use, and how its square is spread over them.

One number would not be honest. The 5 to 30 % of arXiv 2505.11711 depend on storage in bfloat16, on the tolerance and
on the size of a step beside the size of a weight (arXiv 2511.08567, 2509.04259). So all definitions are points of
curves: the fraction of parameters that moved by more than a tolerance, absolute or relative to the weight, as stored
and as seen in bfloat16.

Counts come from pure functions of one member's matrices, mapped over members a few at a time; they are exact.
"""

import functools
from collections.abc import Iterable, Iterator, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from analysis import weights
from analysis.weights import Matrices

VIEWS = ("stored", "bf16")
"""Values as the checkpoint stores them, and rounded to bfloat16."""
SCALES = ("absolute", "relative")
"""|Δ| > t, and |Δ| > t · max(|w|, |w'|)."""
TOLERANCES = np.concatenate([[0.0], 10.0 ** (np.arange(-36, 1) / 4)]).astype(np.float32)
"""The tolerances t of the curves: 0, then four per decade from 1e-9 to 1; float32[38]."""

DEFINITIONS = {
    "changed_bf16": ("bf16", "absolute", 0.0, "differ in bfloat16"),
    "paper": ("bf16", "absolute", 1e-5, "differ in bfloat16 by over 1e-5"),  # arXiv 2505.11711, section 2
    "relative": ("stored", "relative", 1e-3, "moved by over 1e-3 · max(|w|, |w'|)"),
    "relative_bf16": ("bf16", "relative", 1e-3, "moved by as much in bfloat16"),  # arXiv 2511.08567
    "changed_stored": ("stored", "absolute", 0.0, "differ as stored"),
    "absolute_stored": ("stored", "absolute", 1e-5, "moved by over 1e-5 as stored"),
}
"""Name → view, scale, tolerance and meaning of each definition of a changed parameter."""
CONCENTRATIONS = {
    "holding_90": "hold 90 % of ‖Δ‖²",
    "holding_99": "hold 99 % of ‖Δ‖²",
    "participation_ratio": "(Σδ²)² / (n Σδ⁴)",
}
"""What `concentration` measures, free of any tolerance: the smallest shares of the parameters that hold so much of the
squared update, and 1 where all parameters move equally far, 1/n where one moves."""
LENGTHS = {"norm": "‖Δ‖", "relative_norm": "‖Δ‖ / ‖w‖"}
"""What `lengths` measures."""
STATES = ("never_touched", "touched_and_cancelled", "changed")
"""What can have become of a parameter by a checkpoint, as seen at the checkpoints so far."""

KINDS = ("kernel", "bias", "norm", "embedding_used", "embedding_unused")
"""Kinds of parameters; rows of tokens that the RL world never says are kept apart, for they get no gradient there."""
_EMBEDDING = {"embedding.used": "embedding_used", "embedding.unused": "embedding_unused"}


def parts(matrices: Matrices, used: Sequence[int]) -> Matrices:
    """The matrices with the embedding cut into the rows of the tokens `used` and the other rows.

    Args:
        matrices: from `weights.split`.
        used: token ids.
    """
    cut = {}
    for name, x in matrices.items():
        if name != "embedding":
            cut[name] = x
            continue
        chosen = np.isin(np.arange(x.shape[1]), np.asarray(used))
        rows = {"embedding.used": x[:, chosen], "embedding.unused": x[:, ~chosen]}
        cut |= {name: part for name, part in rows.items() if part.size}
    return cut


def kinds(names: Iterable[str]) -> dict[str, list[str]]:
    """Kind → the names of its parts, for the kinds that occur; last `all`."""
    names = list(names)
    of_kind = {kind: [n for n in names if _EMBEDDING.get(n, weights.kind(n)) == kind] for kind in KINDS}
    return {kind: members for kind, members in of_kind.items() if members} | {"all": names}


def _seen(x: jax.Array, view: str) -> jax.Array:
    # A cast to bfloat16 and back is a no-op to XLA, which may keep excess precision; this rounding it must do.
    x = x.astype(jnp.float32)
    return jax.lax.reduce_precision(x, exponent_bits=8, mantissa_bits=7) if view == "bf16" else x


def counts(before: jax.Array, after: jax.Array) -> jax.Array:
    """How many parameters moved by more than each tolerance.

    Args:
        before, after: a matrix of one member, float32 or bfloat16 of any shape.

    Returns:
        int32[views, scales, tolerances].
    """

    def view(name):
        first, second = _seen(before, name), _seen(after, name)
        move, size = jnp.abs(second - first), jnp.maximum(jnp.abs(first), jnp.abs(second))

        def beyond(tolerance):
            return jnp.stack([jnp.sum(move > tolerance, dtype=jnp.int32), jnp.sum(move > tolerance * size)])

        return jax.lax.map(beyond, jnp.asarray(TOLERANCES)).T

    return jnp.stack([view(name) for name in VIEWS])


def track(before: jax.Array, now: jax.Array, touched: jax.Array) -> tuple[jax.Array, jax.Array]:
    """One more checkpoint in the time course of a matrix (arXiv 2505.11711, section 6).

    Args:
        before, now: a matrix of one member at the start and at this checkpoint.
        touched: bool[views, ...], whether an earlier checkpoint differed from the start.

    Returns:
        `touched` with this checkpoint, and int32[views, states]: how many parameters are in each of `STATES`.
    """
    differs = jnp.stack([_seen(now, name) != _seen(before, name) for name in VIEWS])
    touched = touched | differs
    axes = tuple(range(1, differs.ndim))
    return touched, jnp.stack([jnp.sum(x, axes) for x in (~touched, touched & ~differs, differs)], axis=1)


AT_ONCE = 8
"""Members that are counted at the same time, which bounds memory."""


@functools.partial(jax.jit, static_argnames=("function", "at_once"))
def _over_members(function, arguments, at_once):
    def member(one):
        return {name: function(*(argument[name] for argument in one)) for name in one[0]}

    return jax.lax.map(member, arguments, batch_size=at_once)


def curves(before: Matrices, after: Matrices) -> dict[str, np.ndarray]:
    """`counts` of every matrix and member.

    Args:
        before, after: with the same names and shapes.

    Returns:
        Name → int64[M, views, scales, tolerances].
    """
    counted = _over_members(counts, (before, after), AT_ONCE)
    return {name: np.asarray(x, np.int64) for name, x in counted.items()}


def course(checkpoints: Iterable[Matrices]) -> Iterator[dict[str, np.ndarray]]:
    """The time course: what has become of the parameters of the first checkpoint, at each of them.

    Args:
        checkpoints: in the order of training; read one at a time.

    Yields:
        For each checkpoint, name → int64[M, views, states].
    """
    before, touched = None, None
    for now in checkpoints:
        before = now if before is None else before
        if touched is None:
            touched = {name: np.zeros((len(x), len(VIEWS), *x.shape[1:]), bool) for name, x in now.items()}
        stepped = _over_members(track, (before, now, touched), AT_ONCE)
        touched = {name: state for name, (state, _) in stepped.items()}
        yield {name: np.asarray(counted, np.int64) for name, (_, counted) in stepped.items()}


def sizes(matrices: Matrices) -> dict[str, int]:
    """Parameters of one member in each matrix."""
    return {name: x[0].size for name, x in matrices.items()}


def fraction(counted: Mapping[str, np.ndarray], parameters: Mapping[str, int], names: Sequence[str]) -> np.ndarray:
    """Counts of some matrices together, as a share of their parameters; float64 of the shape of the counts."""
    return np.sum([counted[name] for name in names], axis=0) / sum(parameters[name] for name in names)


def defined(curve: np.ndarray) -> dict[str, np.ndarray]:
    """The points of a curve [..., views, scales, tolerances] that `DEFINITIONS` names: name → [...]."""
    return {
        name: curve[..., VIEWS.index(view), SCALES.index(scale), int(np.argmin(np.abs(TOLERANCES - tolerance)))]
        for name, (view, scale, tolerance, _) in DEFINITIONS.items()
    }


def concentration(before: Matrices, after: Matrices, names: Sequence[str]) -> dict[str, np.ndarray]:
    """How the squared update is spread over the parameters of some matrices together.

    In float64: a running sum of float32 squares would lose the small ones it has to count.

    Returns:
        For each of `CONCENTRATIONS` float64[M]; NaN for a member in which nothing moved.
    """
    rows = []
    for member in range(len(before[names[0]])):
        squares = np.concatenate(
            [
                np.square(after[n][member].astype(np.float64) - before[n][member].astype(np.float64)).ravel()
                for n in names
            ]
        )
        running = np.cumsum(np.sort(squares)[::-1])
        if running[-1] == 0:
            rows.append([np.nan] * len(CONCENTRATIONS))
            continue
        held = [(np.searchsorted(running, share * running[-1]) + 1) / len(squares) for share in (0.90, 0.99)]
        rows.append([*held, running[-1] ** 2 / (len(squares) * np.square(squares).sum())])
    return dict(zip(CONCENTRATIONS, np.array(rows).T, strict=True))


def lengths(before: Matrices, after: Matrices, names: Sequence[str]) -> dict[str, np.ndarray]:
    """How long the update of some matrices together is; for each of `LENGTHS` float64[M]."""

    def squared(matrices: Iterable[np.ndarray]) -> np.ndarray:
        return np.sum([np.square(x).reshape(len(x), -1).sum(axis=1) for x in matrices], axis=0)

    first, second = ([x[n].astype(np.float64) for n in names] for x in (before, after))
    moved = np.sqrt(squared(y - x for x, y in zip(first, second, strict=True)))
    size = np.sqrt(squared(first))
    return dict(zip(LENGTHS, (moved, moved / np.where(size > 0, size, np.nan)), strict=True))


def median_weight(matrices: Matrices, names: Sequence[str]) -> np.ndarray:
    """Median magnitude of the parameters of some matrices together, float64[M]."""
    magnitudes = [np.abs(matrices[name].astype(np.float32)).reshape(len(matrices[name]), -1) for name in names]
    return np.median(np.concatenate(magnitudes, axis=1), axis=1).astype(np.float64)
