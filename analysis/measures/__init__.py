"""Every measurement by its name: `measures.divergence(run)` is an `xarray.Dataset`; see `analysis.measure`."""

from analysis.measures.divergence import divergence
from analysis.measures.returns import returns

__all__ = ["divergence", "returns"]
