"""Policies: what those who train, play and look inside need of them, and how one is made."""

from agents.policies.base import Cache, Intervention, Outputs, Parameters, Policy, PolicyConfig, in_a_row
from agents.policies.gru import GRU
from agents.policies.transformer import Transformer
from envs import tokens

__all__ = ["Cache", "Intervention", "Outputs", "Parameters", "Policy", "PolicyConfig", "in_a_row", "make"]

_FAMILIES: dict[str, type[Policy]] = {"transformer": Transformer, "gru": GRU}


def make(config: PolicyConfig, vocabulary: int = tokens.FIRST) -> Policy:
    """The policy that a config describes, with so many tokens; see `envs.base.World.vocabulary`."""
    return _FAMILIES[config.family](config, vocabulary)
