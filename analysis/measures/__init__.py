"""Every measurement by its name: `measures.divergence(run)` is an `xarray.Dataset`; see `analysis.measure`."""

from analysis.measures.attempts import attempts
from analysis.measures.beliefs import beliefs
from analysis.measures.divergence import divergence

__all__ = ["attempts", "beliefs", "divergence"]
