"""Every measurement by its name: `measures.divergence(run)` is an `xarray.Dataset`; see `analysis.measure`."""

from analysis.measures.divergence import divergence
from analysis.measures.overlaps import overlaps
from analysis.measures.spectra import spectra
from analysis.measures.subnetwork import subnetwork
from analysis.measures.updates import updates

__all__ = ["divergence", "overlaps", "spectra", "subnetwork", "updates"]
