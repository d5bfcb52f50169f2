"""Policies: what every family offers to those who train, play and look inside, and how one is made."""

from collections.abc import Sequence
from typing import Protocol

import jax
import numpy as np

from agents.gru import GRU
from agents.streams import Cache, Intervention, Outputs, Parameters, PolicyConfig
from agents.transformer import Transformer

__all__ = ["Cache", "Intervention", "Outputs", "Parameters", "Policy", "PolicyConfig", "make"]


class Policy(Protocol):
    """A policy family of some size: pure functions of (parameters, tokens) of one member.

    It is hashable, and equal policies share compiled programs. Its parameter tree has the embedding of the tokens
    under `embedding`, the blocks under `blocks` with the block as the leading axis of every array, and what comes
    after them under `norm` and `value`; analyses rely on these names.
    """

    @property
    def config(self) -> PolicyConfig:
        """Family and size."""
        ...

    def init(self, key: jax.Array) -> Parameters:
        """Fresh parameters: a nested dict of arrays of `config.parameter_dtype`."""
        ...

    def empty_cache(self, batch: int, length: int) -> Cache:
        """A cache for `batch` sequences of up to `length` tokens."""
        ...

    def forward(
        self,
        parameters: Parameters,
        sequence: jax.Array,
        *,
        intervention: Intervention | None = None,
        capture: jax.Array | Sequence[int] | None = None,
        capture_layers: Sequence[int] | None = None,
        at: np.ndarray | None = None,
    ) -> Outputs:
        """Read whole sequences int32[B, S] at once; `agents.streams.StreamPolicy.forward` explains the options."""
        ...

    def decode(
        self,
        parameters: Parameters,
        cache: Cache,
        chunk: jax.Array,
        start: jax.Array | int,
        *,
        intervention: Intervention | None = None,
        capture: jax.Array | Sequence[int] | None = None,
        capture_layers: Sequence[int] | None = None,
        at: np.ndarray | None = None,
    ) -> tuple[Outputs, Cache]:
        """Read the next tokens int32[B, C] of sequences whose first `start` tokens are in the cache.

        `start` is the number of tokens that the cache has read, or 0, which begins anew whatever it holds. Outputs
        agree with those of `forward` at every position to float tolerance.
        """
        ...

    def heads(self, parameters: Parameters, hidden: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Logits of the next token float32[..., V] and value float32[...] for hidden [..., width]."""
        ...


_FAMILIES = {"transformer": Transformer, "gru": GRU}


def make(config: PolicyConfig) -> Policy:
    """The policy that a config describes."""
    return _FAMILIES[config.family](config)
