"""The shape of an update: its rank, where its energy lies, and what it does to the spectrum of the weights.

Everything here is float64 NumPy, that is LAPACK on the host. Spectra of weights move by a part in 10⁵ under RL and
their subspaces turn by less than a degree (arXiv 2511.08567, 2606.07082), which float32 cannot tell from rounding,
accelerators have no fast float64 decomposition, and the matrices are small. Members are axis 0 and go in one batch.
"""

import itertools
from collections.abc import Mapping

import jax.numpy as jnp
import numpy as np

from analysis import masks
from analysis.weights import Matrices

RANK_SHARE = 1 / 8
"""Share of min(shape) that counts as the principal subspace."""
TOP = (1, 4, 16)
"""Numbers of singular values whose energy is reported."""
DENSITY = 0.5
"""Share of a matrix in the principal mask and in the low-magnitude mask; what chance gives an overlap."""

MEASURES = {
    # With the tolerance of torch.linalg.matrix_rank in float32, and above what rounding W' to its dtype can make.
    "rank_share": "rank of Δ / full rank",
    "rank_share_above_rounding": "rank of Δ above rounding / full rank",
    "stable_rank": "stable rank of Δ, ‖Δ‖F² / ‖Δ‖₂²",
    "effective_rank": "effective rank of Δ, exp H(σ / Σσ)",
    **{f"energy_top_{k}": f"‖Δ‖F² in its {k} largest σ" for k in TOP},
    "normalised_spectral_shift": "spectral shift, ‖σ(W') − σ(W)‖ / ‖σ(W)‖",  # arXiv 2606.07082
    # Between the leading singular subspaces of W and W'.
    "left_angle_largest": "largest angle of left subspaces",
    "left_angle_mean": "mean angle of left subspaces",
    "right_angle_largest": "largest angle of right subspaces",
    "right_angle_mean": "mean angle of right subspaces",
}
"""What `shape` measures of one matrix; angles in degrees."""


def shape(before: np.ndarray, after: np.ndarray) -> dict[str, np.ndarray]:
    """Measures of the update of a matrix.

    Args:
        before, after: float32 or bfloat16 [M, rows, columns], as stored.

    Returns:
        For each of `MEASURES` float64[M]; NaN where it is undefined, such as the rank of no update.
    """
    unit = float(jnp.finfo(after.dtype).eps) / 2
    first, second = before.astype(np.float64), after.astype(np.float64)
    (left, sigma, right), (left_after, sigma_after, right_after) = (_svd(x) for x in (first, second))
    update = np.linalg.svd(second - first, compute_uv=False)
    least = min(first.shape[1:])
    largest = update[:, 0]
    weighty = np.where(sigma[:, 0] > 0, np.linalg.norm(sigma, axis=1), np.nan)
    with np.errstate(invalid="ignore", divide="ignore"):
        energy = np.square(update)
        share = update / update.sum(axis=1, keepdims=True)
        entropy = -np.where(share > 0, share * np.log(np.where(share > 0, share, 1.0)), share).sum(axis=1)
        tolerance = largest * max(first.shape[1:]) * np.finfo(np.float32).eps
        rounding = np.linalg.norm(second, axis=(1, 2)) * unit
        measured = {
            "rank_share": (update > tolerance[:, None]).sum(axis=1) / least,
            "rank_share_above_rounding": (update > np.maximum(tolerance, rounding)[:, None]).sum(axis=1) / least,
            "stable_rank": energy.sum(axis=1) / energy[:, 0],
            "effective_rank": np.exp(entropy),
            **{f"energy_top_{k}": energy[:, :k].sum(axis=1) / energy.sum(axis=1) for k in TOP},
            "normalised_spectral_shift": np.linalg.norm(sigma_after - sigma, axis=1) / weighty,
        }
    rank = principal_rank(first.shape[1:])
    defined = (sigma[:, 0] > 0) & (sigma_after[:, 0] > 0)
    for side, start, end in (("left", left, left_after), ("right", right, right_after)):
        angles = principal_angles(start[:, :, :rank], end[:, :, :rank])
        measured[f"{side}_angle_largest"] = np.where(defined, angles.max(axis=1), np.nan)
        measured[f"{side}_angle_mean"] = np.where(defined, angles.mean(axis=1), np.nan)
    return {name: measured[name].astype(np.float64) for name in MEASURES}


def principal_rank(dimensions: tuple[int, ...]) -> int:
    """Number of leading singular directions that count as principal."""
    return max(1, round(RANK_SHARE * min(dimensions)))


def principal_angles(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Angles between two subspaces, in degrees, the smallest first.

    From sines below 45° and cosines above, since an arc cosine near 1 loses half of its digits (Björck and Golub,
    Mathematics of Computation 27, 1973).

    Args:
        first, second: float64[..., n, r], orthonormal columns.

    Returns:
        float64[..., r].
    """
    overlap = np.matmul(np.swapaxes(first, -1, -2), second)
    cosines = np.clip(np.linalg.svd(overlap, compute_uv=False), 0, 1)
    sines = np.clip(np.linalg.svd(second - np.matmul(first, overlap), compute_uv=False)[..., ::-1], 0, 1)
    return np.degrees(np.where(np.square(cosines) > 0.5, np.arcsin(sines), np.arccos(cosines)))


def principal_mask(matrix: np.ndarray) -> np.ndarray:
    """The half of the parameters that are largest in the rank-r reconstruction (arXiv 2511.08567, section 4).

    Args:
        matrix: [M, rows, columns].

    Returns:
        bool[M, rows, columns].
    """
    left, sigma, right = _svd(matrix.astype(np.float64))
    rank = principal_rank(matrix.shape[1:])
    kept = np.matmul(left[:, :, :rank] * sigma[:, None, :rank], np.swapaxes(right[:, :, :rank], 1, 2))
    return masks.top(np.abs(kept).reshape(len(kept), -1), DENSITY).reshape(matrix.shape)


def low_magnitude_mask(matrix: np.ndarray) -> np.ndarray:
    """The half of the parameters that are smallest in magnitude; bool[M, rows, columns]."""
    flat = -np.abs(matrix.astype(np.float64)).reshape(len(matrix), -1)
    return masks.top(flat, DENSITY).reshape(matrix.shape)


def location(before: Matrices, updated: Mapping[str, Matrices]) -> dict[str, dict[str, np.ndarray]]:
    """Where the parameters of some masks lie, per matrix of two dimensions.

    Args:
        before: the weights.
        updated: masks by name.

    Returns:
        Name of a matrix → MASK_principal and MASK_low_magnitude, the share of a mask inside each reference mask, and
        baseline, what chance gives: the density of either reference. float64[M]; NaN for a matrix of zeros, which has
        no order.
    """
    places = {}
    for name, matrix in before.items():
        if matrix.ndim != 3:
            continue
        size = matrix[0].size
        empty = ~np.any(matrix.reshape(len(matrix), -1) != 0, axis=1)
        inside = {"baseline": np.full(len(matrix), round(DENSITY * size) / size)}
        references = {"principal": principal_mask(matrix), "low_magnitude": low_magnitude_mask(matrix)}
        for (mask, matrices), (key, reference) in itertools.product(updated.items(), references.items()):
            inside[f"{mask}_{key}"] = masks.share_inside(matrices[name], reference)
        places[name] = {key: np.where(empty, np.nan, share) for key, share in inside.items()}
    return places


def _svd(x: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """x = left · diag(sigma) · rightᵀ."""
    left, sigma, right = np.linalg.svd(x, full_matrices=False)
    return left, sigma, np.swapaxes(right, 1, 2)
