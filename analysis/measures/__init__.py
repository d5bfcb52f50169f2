"""Every measurement by its name: `measures.divergence(run)` is an `xarray.Dataset`; see `analysis.measure`."""

from analysis.measures.attempts import attempts
from analysis.measures.attention import attention
from analysis.measures.attribution import attribution
from analysis.measures.beliefs import beliefs
from analysis.measures.concepts import concepts
from analysis.measures.course import course
from analysis.measures.divergence import divergence
from analysis.measures.ledger import ledger
from analysis.measures.lens import lens
from analysis.measures.overlaps import overlaps
from analysis.measures.patching import patching
from analysis.measures.probes import probes
from analysis.measures.recruitment import recruitment
from analysis.measures.returns import returns
from analysis.measures.spectra import spectra
from analysis.measures.steering import steering
from analysis.measures.subnetwork import subnetwork
from analysis.measures.thoughts import thoughts
from analysis.measures.tracking import tracking
from analysis.measures.updates import updates

__all__ = [
    "attempts",
    "attention",
    "attribution",
    "beliefs",
    "concepts",
    "course",
    "divergence",
    "ledger",
    "lens",
    "overlaps",
    "patching",
    "probes",
    "recruitment",
    "returns",
    "spectra",
    "steering",
    "subnetwork",
    "thoughts",
    "tracking",
    "updates",
]
