"""Every measurement by its name: `measures.divergence(run)` is an `xarray.Dataset`; see `analysis.measure`."""

from analysis.measures.concepts import concepts
from analysis.measures.divergence import divergence
from analysis.measures.steering import steering
from analysis.measures.tracking import tracking

__all__ = ["concepts", "divergence", "steering", "tracking"]
