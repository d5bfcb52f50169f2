"""Every measurement by its name: `measures.divergence(run)` is an `xarray.Dataset`; see `analysis.measure`."""

from analysis.measures.concepts import concepts
from analysis.measures.divergence import divergence
from analysis.measures.overlaps import overlaps
from analysis.measures.spectra import spectra
from analysis.measures.steering import steering
from analysis.measures.subnetwork import subnetwork
from analysis.measures.tracking import tracking
from analysis.measures.updates import updates

__all__ = ["concepts", "divergence", "overlaps", "spectra", "steering", "subnetwork", "tracking", "updates"]
