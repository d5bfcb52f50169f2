"""The transformer policy: decoder-only, RMSNorm, rotary positions, squared ReLU, tied embedding, a value head.

The modules are `flax.nnx`; `Transformer` splits them once and offers pure functions of a parameter tree, so that a
population is a `vmap` over parameters. The parameters of the layers are stacked on a leading axis. One forward serves
training (a whole sequence) and acting (a chunk of tokens into a cache).
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx, struct

from envs import tokens

Parameters = Any
"""Nested dict of arrays; in a population every array has the member as its leading axis."""


@dataclasses.dataclass(frozen=True)
class TransformerConfig:
    """Size and precision of the transformer."""

    width: int = 64
    """Width of the residual stream."""
    layers: int = 2
    """Number of blocks."""
    heads: int = 4
    """Attention heads; width / heads must be even."""
    hidden: int = 256
    """Hidden units of each block's MLP."""
    compute_dtype: Literal["float32", "bfloat16"] = "float32"
    """Precision of matrix products and the residual stream; logits and losses are always float32."""
    parameter_dtype: Literal["float32", "bfloat16"] = "float32"
    """Precision in which parameters are stored and updated."""

    def __post_init__(self):
        for name in ("width", "layers", "heads", "hidden"):
            if getattr(self, name) < 1:
                raise ValueError(f"policy.{name}={getattr(self, name)}: use at least 1")
        if self.width % (2 * self.heads):
            raise ValueError(f"policy.width={self.width}: use a multiple of 2 * policy.heads = {2 * self.heads}")


@struct.dataclass
class Cache:
    """Keys and values of the tokens read so far."""

    keys: tuple[jax.Array, ...]
    """For each layer [B, heads, length, width / heads]; apart, so that each is updated in place."""
    values: tuple[jax.Array, ...]
    """For each layer [B, heads, length, width / heads]."""


@struct.dataclass
class Intervention:
    """Changes of the residual stream while a policy reads. They are data: many are tried by `vmap`.

    At every entry of the stream, 0 the embedding and l the output of block l, first the ablated directions are
    projected out, then the steering is added.
    """

    steering: jax.Array | None = None
    """[layers + 1, width] at every position, or [B, S, layers + 1, width]; what to add."""
    ablation: jax.Array | None = None
    """[layers + 1, K, width]; K orthonormal directions to remove at every position, zeros for none."""

    def at(self, layer: int, x: jax.Array) -> jax.Array:
        """The stream [B, S, width] after this layer's changes."""
        if self.ablation is not None:
            directions = self.ablation[layer].astype(x.dtype)
            x = x - (x @ directions.T) @ directions
        if self.steering is not None:
            x = x + (self.steering if self.steering.ndim == 4 else self.steering[None, None])[:, :, layer].astype(
                x.dtype
            )
        return x


@struct.dataclass
class Outputs:
    """What a forward pass returns."""

    hidden: jax.Array
    """[B, S, width], the normalised residual stream after the last block; `heads` turns it into predictions."""
    residual: jax.Array | None = None
    """float32[B, positions, layers, width], the residual stream at the captured positions and layers: layer 0 is
    the embedding, layer l the output of block l."""


class Attention(nnx.Module):
    """Causal multi-head attention with rotary positions."""

    def __init__(self, config: TransformerConfig, rngs: nnx.Rngs):
        linear = _linear(config, rngs)
        self.qkv = linear(config.width, 3 * config.width)
        self.out = linear(config.width, config.width, gain=(2 * config.layers) ** -0.5)
        self.heads = config.heads

    def __call__(self, x: jax.Array, rotation, cache, start):
        batch, length, width = x.shape
        qkv = self.qkv(x).reshape(batch, length, 3, self.heads, width // self.heads)
        query, key, value = jnp.moveaxis(qkv, (2, 3), (0, 2))
        query, key = _rotate(query, rotation), _rotate(key, rotation)
        if cache is not None:
            key = jax.lax.dynamic_update_slice(cache[0], key.astype(cache[0].dtype), (0, 0, start, 0))
            value = jax.lax.dynamic_update_slice(cache[1], value.astype(cache[1].dtype), (0, 0, start, 0))
            cache = (key, value)
        scores = jnp.einsum("bhqd,bhkd->bhqk", query, key, preferred_element_type=jnp.float32)
        visible = jnp.arange(key.shape[2])[None] <= start + jnp.arange(length)[:, None]
        scores = jnp.where(visible[None, None], scores * (width // self.heads) ** -0.5, -1e30)
        weights = jax.nn.softmax(scores, axis=-1).astype(x.dtype)
        mixed = jnp.einsum("bhqk,bhkd->bhqd", weights, value)
        return self.out(jnp.moveaxis(mixed, 1, 2).reshape(batch, length, width)), cache


class Block(nnx.Module):
    """Attention and an MLP, each on a normalised view of the residual stream."""

    def __init__(self, config: TransformerConfig, rngs: nnx.Rngs):
        linear = _linear(config, rngs)
        self.attention_norm = _norm(config, rngs)
        self.attention = Attention(config, rngs)
        self.mlp_norm = _norm(config, rngs)
        self.up = linear(config.width, config.hidden)
        self.down = linear(config.hidden, config.width, gain=(2 * config.layers) ** -0.5)

    def __call__(self, x: jax.Array, rotation, cache, start):
        mixed, cache = self.attention(self.attention_norm(x), rotation, cache, start)
        x = x + mixed
        return x + self.down(jnp.square(jax.nn.relu(self.up(self.mlp_norm(x))))), cache


class Model(nnx.Module):
    """Embedding, blocks, final norm and value head."""

    def __init__(self, config: TransformerConfig, rngs: nnx.Rngs):
        self.embedding = nnx.Embed(
            tokens.SIZE,
            config.width,
            embedding_init=nnx.initializers.normal(config.width**-0.5),
            param_dtype=jnp.dtype(config.parameter_dtype),
            dtype=jnp.dtype(config.compute_dtype),
            rngs=rngs,
        )
        make_blocks = nnx.vmap(lambda rngs: Block(config, rngs))
        self.blocks = make_blocks(rngs.split(config.layers))
        self.norm = _norm(config, rngs)
        self.value = _linear(config, rngs)(config.width, 1, gain=0.0)


@dataclasses.dataclass(frozen=True)
class Transformer:
    """A policy family: pure functions of (parameters, tokens). Equal configs share compiled programs."""

    config: TransformerConfig

    def init(self, key: jax.Array) -> Parameters:
        """Fresh parameters: a nested dict of arrays of `config.parameter_dtype`."""
        _, state = nnx.split(Model(self.config, nnx.Rngs(key)))
        return nnx.to_pure_dict(state)

    def empty_cache(self, batch: int, length: int) -> Cache:
        """A cache for `batch` sequences of up to `length` tokens."""
        config = self.config
        shape = (batch, config.heads, length, config.width // config.heads)
        empty = tuple(jnp.zeros(shape, config.compute_dtype) for _ in range(config.layers))
        return Cache(empty, empty)

    def forward(
        self,
        parameters: Parameters,
        sequence: jax.Array,
        *,
        intervention: Intervention | None = None,
        capture: jax.Array | Sequence[int] | None = None,
        capture_layers: Sequence[int] | None = None,
    ) -> Outputs:
        """Read whole sequences at once.

        Args:
            parameters: of one member.
            sequence: tokens int32[B, S].
            intervention: changes of the residual stream.
            capture: positions int[C], or int[B, C] where each sequence has its own, at which to return the residual
                stream as the intervention leaves it.
            capture_layers: which of the layers 0 (embedding) to `config.layers` to return; all by default.
        """
        outputs, _ = self._read(parameters, sequence, None, 0, intervention, capture, capture_layers)
        return outputs

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
    ) -> tuple[Outputs, Cache]:
        """Read the next tokens int32[B, C] of sequences whose first `start` tokens are in the cache."""
        return self._read(parameters, chunk, cache, start, intervention, capture, capture_layers)

    def heads(self, parameters: Parameters, hidden: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Logits of the next token float32[..., V] and value float32[...] for hidden [..., width]."""
        model = self._model(parameters)
        logits = jnp.einsum(
            "...d,vd->...v", hidden, model.embedding.embedding[...].astype(hidden.dtype),
            preferred_element_type=jnp.float32,
        )  # fmt: skip
        value = model.value(hidden)[..., 0].astype(jnp.float32)
        return logits, value

    def _model(self, parameters: Parameters) -> Model:
        graph, state = nnx.split(nnx.eval_shape(lambda: Model(self.config, nnx.Rngs(0))))
        nnx.replace_by_pure_dict(state, parameters)
        return nnx.merge(graph, state)

    def _read(self, parameters, sequence, cache, start, intervention, capture, capture_layers):
        model = self._model(parameters)
        positions = start + jnp.arange(sequence.shape[1])
        rotation = _rotation(positions, self.config.width // self.config.heads)
        x = model.embedding(sequence) * jnp.asarray(self.config.width**0.5, self.config.compute_dtype)
        wanted = range(self.config.layers + 1) if capture_layers is None else capture_layers
        seen = {}

        def pass_layer(layer, x):
            x = x if intervention is None else intervention.at(layer, x)
            if capture is not None and layer in wanted:
                seen[layer] = _at(x, jnp.asarray(capture, jnp.int32))
            return x

        x = pass_layer(0, x)
        graph, stack = nnx.split(model.blocks)
        keys, values = [], []
        for layer in range(self.config.layers):
            block = nnx.merge(graph, jax.tree.map(lambda parameter, layer=layer: parameter[layer], stack))
            x, pair = block(x, rotation, cache and (cache.keys[layer], cache.values[layer]), start)
            x = pass_layer(layer + 1, x)
            if pair:
                keys.append(pair[0])
                values.append(pair[1])
        residual = None if capture is None else jnp.stack([seen[layer] for layer in wanted], axis=2)
        return Outputs(model.norm(x), residual), cache and Cache(tuple(keys), tuple(values))


def _at(x: jax.Array, positions: jax.Array) -> jax.Array:
    """The stream [B, S, width] at positions [C] or [B, C], float32[B, C, width]."""
    some = x[:, positions] if positions.ndim == 1 else jnp.take_along_axis(x, positions[..., None], axis=1)
    return some.astype(jnp.float32)


def _linear(config: TransformerConfig, rngs: nnx.Rngs):
    """A maker of bias-free linear layers, initialised with variance gain² / inputs."""

    def make(inputs: int, outputs: int, gain: float = 1.0) -> nnx.Linear:
        return nnx.Linear(
            inputs,
            outputs,
            use_bias=False,
            kernel_init=nnx.initializers.normal(gain * inputs**-0.5),
            param_dtype=jnp.dtype(config.parameter_dtype),
            dtype=jnp.dtype(config.compute_dtype),
            rngs=rngs,
        )

    return make


def _norm(config: TransformerConfig, rngs: nnx.Rngs) -> nnx.RMSNorm:
    parameter_dtype, dtype = jnp.dtype(config.parameter_dtype), jnp.dtype(config.compute_dtype)
    return nnx.RMSNorm(config.width, param_dtype=parameter_dtype, dtype=dtype, rngs=rngs)


def _rotation(positions: jax.Array, head_width: int) -> tuple[jax.Array, jax.Array]:
    """Cosines and sines float32[S, head_width / 2] of the rotary angles (arXiv 2104.09864, base 10,000)."""
    frequencies = 10_000.0 ** (-jnp.arange(0, head_width, 2, dtype=jnp.float32) / head_width)
    angles = jnp.outer(positions.astype(jnp.float32), frequencies)
    return jnp.cos(angles), jnp.sin(angles)


def _rotate(x: jax.Array, rotation: tuple[jax.Array, jax.Array]) -> jax.Array:
    """Rotate the two halves of each head [B, heads, S, head_width] by their position."""
    cosine, sine = (part[None, None].astype(x.dtype) for part in rotation)
    first, second = jnp.split(x, 2, axis=-1)
    return jnp.concatenate([first * cosine - second * sine, first * sine + second * cosine], axis=-1)
