"""The shape of an update: its rank, its energy, the spectrum of the weights, and where in them its masks lie."""

import numpy as np
import xarray as xr

from agents.runs import Run
from analysis import masks, shapes, stretches
from analysis.measure import end, measure

PLACES = {
    f"{mask}_{key}": f"{words}: share {where}"
    for mask, words in masks.MASKS.items()
    for key, where in (("principal", "in W's principal half"), ("low_magnitude", "in the smaller half of |w|"))
}
"""Where masks lie: the half of a matrix that is largest in its rank-r reconstruction, and that of the smallest |w|."""
MEANINGS = shapes.MEASURES | PLACES | {"baseline": "by chance, in either half"}
UNITS = {name: "degrees" if "angle" in name else "share" if name in PLACES else "" for name in MEANINGS}
SHOWN = (
    "rank_share_above_rounding", "stable_rank", "normalised_spectral_shift", "left_angle_largest",
    "changed_bf16_low_magnitude",
)  # fmt: skip
"""Those of `MEANINGS` that tables show."""


@measure(checkpoints=end)
def spectra(run: Run, checkpoint: str, *, since: str = "") -> xr.Dataset:
    """Rank and energy of what training has changed, and what it did to the spectrum of the weights.

    Args:
        since: checkpoint that changes are counted from; by default the one that training set out from.

    Returns:
        `shapes.MEASURES` and the places of `masks.MASKS`, float64[kind, member], of a kind the mean over its matrices
        in which they are defined, NaN where there is none; and `by_matrix` float64[measure, matrix, member]. Vectors
        have no spectrum.
    """
    stretch = stretches.read(run, checkpoint, since)
    before, after = stretch.before, stretch.after
    measured = {name: shapes.shape(x, after[name]) for name, x in before.items() if x.ndim == 3}
    for name, places in shapes.location(before, masks.compared(before, after)).items():
        measured[name] |= places
    kinds = {}
    for kind, names in stretch.kinds.items():
        matrices = [measured[name] for name in names if name in measured]
        if matrices:
            kinds[kind] = {key: _mean([x[key] for x in matrices]) for key in MEANINGS}
    return stretches.dataset(kinds, measured, MEANINGS, UNITS, SHOWN).assign_attrs(stretch.about)


def _mean(values: list[np.ndarray]) -> np.ndarray:
    """Mean over matrices of float64[M], leaving out those in which the measure is undefined."""
    return np.ma.masked_invalid(np.stack(values)).mean(axis=0).filled(np.nan)
