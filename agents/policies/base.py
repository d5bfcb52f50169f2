"""What every policy family shares: a residual stream over a stack of layers, read as data and changed as data.

A family is a kind of layer. The stream starts as the embedding of each token, every layer adds to it, and the last
one's is normalised and turned into predictions by the tied embedding and the value head. The modules are `flax.nnx`;
`Policy` splits them once and offers pure functions of a parameter tree, so that a population is a `vmap` over
parameters. The parameters of the layers are stacked on a leading axis. One forward serves training (a whole sequence)
and acting (a chunk of tokens into a cache).
"""

import abc
import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx, struct
from jax.lax import Precision

from agents.policies import kernels
from envs import tokens
from ground import precise

UNROLLED = 2
"""Blocks compiled one after the other; a deeper stack is a loop over groups of so many, so that it compiles as fast."""

Parameters = Any
"""Nested dict of arrays; in a population every array has the member as its leading axis."""


@dataclasses.dataclass(frozen=True)
class PolicyConfig:
    """Family, size and precision of the policy."""

    family: Literal["transformer", "gru"] = "transformer"
    """`transformer`: every token attends to those before it. `gru`: a recurrent state of fixed size is all that it
    remembers."""
    width: int = 64
    """Width of the residual stream."""
    layers: int = 2
    """Number of blocks."""
    heads: int = 4
    """Transformer: attention heads; width / heads must be even. GRU: groups of the recurrent units that see only their
    own group's past, so that the recurrent matrices are block-diagonal; 1 is the plain GRU. Must divide `hidden`."""
    hidden: int = 256
    """Transformer: hidden units of each block's MLP. GRU: recurrent units of each block, all that it remembers."""
    lookback: int = 0
    """Tokens before each one that its embedding tells of too: half of the features are then the token's own, the rest
    those of so many before it, in equal parts (token shift, arXiv 2305.13048, section 3.1.1). To find what followed a
    token takes two blocks, one to see what stands before each place; with this it takes one, and is learnt much sooner
    (smeared keys, transformer-circuits.pub/2022/in-context-learning-and-induction-heads, argument 2)."""
    compute_dtype: Literal["float32", "bfloat16"] = "float32"
    """Precision of matrix products and the residual stream; logits and losses are always float32."""
    parameter_dtype: Literal["float32", "bfloat16"] = "float32"
    """Precision in which parameters are stored and updated."""
    matrix_precision: Literal["float32", "device"] = "float32"
    """How float32 numbers are multiplied in matrix products. `float32`: as such, everywhere. `device`: as the device
    likes best, faster and with fewer bits: TF32 on most GPUs, bfloat16 on a TPU. On a CPU both are the same."""

    def __post_init__(self):
        for name in ("width", "layers", "heads", "hidden"):
            if getattr(self, name) < 1:
                raise ValueError(f"policy.{name}={getattr(self, name)}: use at least 1")
        if self.lookback < 0 or (self.lookback and self.width % (2 * self.lookback)):
            raise ValueError(
                f"policy.lookback={self.lookback}: use 0, or a number of which policy.width={self.width} is an even "
                "multiple"
            )
        if self.family == "transformer" and self.width % (2 * self.heads):
            raise ValueError(f"policy.width={self.width}: use a multiple of 2 * policy.heads = {2 * self.heads}")
        if self.family == "gru" and self.hidden % self.heads:
            raise ValueError(f"policy.hidden={self.hidden}: use a multiple of policy.heads = {self.heads}")

    @property
    def precision(self) -> Precision:
        """`matrix_precision` as products take it; never inherited from a global setting."""
        return Precision.HIGHEST if self.matrix_precision == "float32" else Precision.DEFAULT


@struct.dataclass
class Cache:
    """What a policy remembers of the tokens read so far."""

    layers: tuple[tuple[jax.Array, ...], ...]
    """For each block its arrays [B, ...], which are the family's own; apart, so that each is updated in place."""
    recent: jax.Array | None = None
    """[B, lookback, width], embeddings of the last tokens; None where no token tells of those before it."""


@struct.dataclass
class Intervention:
    """Changes of the residual stream while a policy reads. They are data: many are tried by `vmap`.

    At every entry of the stream, 0 the embedding and l the output of block l, first the ablated directions are
    projected out, then the steering is added, then the replacement takes the place of the result: what is replaced is
    exactly what it was given. Later entries, later tokens and a cache are computed from the changed stream.

    Arrays with an axis S go along the sequence, counted from its first token however it is read, whole or in chunks
    with a cache; tokens past S stay as they are. B may be 1 there.
    """

    steering: jax.Array | None = None
    """[layers + 1, width] at every position, or [B, S, layers + 1, width]; what to add."""
    ablation: jax.Array | None = None
    """[layers + 1, K, width]; K orthonormal directions to remove at every position, zeros for none."""
    replacement: jax.Array | None = None
    """[layers + 1, width] or [B, S, layers + 1, width]; values to take the stream's place, as `Outputs.residual` has
    them of another sequence or policy."""
    where: jax.Array | None = None
    """bool, [layers + 1, width] or [B, S, layers + 1, width], where width may be 1; which of them do."""

    def by_layer(self) -> "Intervention":
        """The same with the layer as the leading axis of every array.

        Raises:
            ValueError: one of `replacement` and `where` is missing.
        """
        if (self.replacement is None) != (self.where is None):
            raise ValueError("an intervention has a replacement and where it goes, or neither")
        return jax.tree.map(lambda array: jnp.moveaxis(array, 2, 0) if array.ndim == 4 else array, self)

    def change(self, x: jax.Array, positions: "Positions") -> jax.Array:
        """The stream [width, B, C] of the wanted tokens after the changes of one layer, whose arrays this has."""

        def here(array):
            if array.ndim == 1:
                return array[:, None, None]
            return jnp.moveaxis(jnp.take(array, positions.now, axis=1, mode="fill", fill_value=0), 2, 0)

        if self.ablation is not None:
            directions = self.ablation.astype(x.dtype)
            x = x - precise.product("kw,kbs->wbs", directions, precise.product("kw,wbs->kbs", directions, x))
        if self.steering is not None:
            x = x + here(self.steering).astype(x.dtype)
        if self.replacement is not None and self.where is not None:
            x = jnp.where(here(self.where), here(self.replacement).astype(x.dtype), x)
        return x


@struct.dataclass
class Outputs:
    """What a forward pass returns."""

    hidden: jax.Array
    """[B, S, width], the normalised residual stream after the last block; `heads` turns it into predictions."""
    residual: jax.Array | None = None
    """float32[B, positions, layers, width], the residual stream at the captured positions and layers: layer 0 is
    the embedding, layer l the output of block l."""


@dataclasses.dataclass(frozen=True)
class Positions:
    """Where the tokens lie that a block reads, and which of them it computes."""

    start: jax.Array | int
    """int32[], position of the first token."""
    length: int
    """Tokens."""
    wanted: np.ndarray | None = None
    """int[C], increasing: the tokens, counted from the first, whose new stream is wanted; None for all."""
    sparing: bool = False
    """As in `Policy`."""

    @property
    def static(self) -> tuple[int, ...]:
        """The wanted tokens as plain numbers."""
        return tuple(range(self.length)) if self.wanted is None else tuple(self.wanted.tolist())

    @property
    def now(self) -> jax.Array:
        """Positions of the wanted tokens in the sequence, int32[C]."""
        return self.start + jnp.array(self.static, jnp.int32)

    def only(self, x: jax.Array) -> jax.Array:
        """The wanted tokens of [..., S]."""
        return x if self.wanted is None else x[..., self.wanted]


class Model(nnx.Module):
    """Embedding, blocks, final norm and value head."""

    def __init__(self, config: PolicyConfig, vocabulary: int, block: Callable[[nnx.Rngs], nnx.Module], rngs: nnx.Rngs):
        self.embedding = nnx.Embed(
            vocabulary,
            config.width,
            embedding_init=nnx.initializers.normal(config.width**-0.5),
            param_dtype=jnp.dtype(config.parameter_dtype),
            dtype=jnp.dtype(config.compute_dtype),
            rngs=rngs,
        )
        self.blocks = nnx.vmap(block)(rngs.split(config.layers))
        self.norm = norm(config, rngs)
        self.value = linear(config, rngs)(config.width, 1, gain=0.0)


@dataclasses.dataclass(frozen=True)
class Policy(abc.ABC):
    """A policy family of some size: pure functions of (parameters, tokens) of one member.

    It is hashable, and equal policies share compiled programs. A family says what a block is. The parameter tree has
    the embedding of the tokens under `embedding`, the blocks under `blocks` with the block as the leading axis of
    every array, and what comes after them under `norm` and `value`; analyses rely on these names.
    """

    config: PolicyConfig
    """Family and size."""
    vocabulary: int = tokens.FIRST
    """Tokens that it knows; see `envs.base.World.vocabulary`."""
    sparing: bool = False
    """Whether a backward pass computes again what is large and quickly made, the weights of attention, so that many
    members fit into an accelerator's memory; a CPU would only be slower."""

    @abc.abstractmethod
    def block(self, rngs: nnx.Rngs) -> nnx.Module:
        """A fresh block.

        It maps the stream [width, B, S], the positions, and its arrays of a cache or None to the new stream
        [width, B, C] of the wanted tokens, and its arrays of the cache after them or None.
        """

    @abc.abstractmethod
    def empty_memories(self, batch: int, length: int) -> tuple[tuple[jax.Array, ...], ...]:
        """`Cache.layers` for `batch` sequences of up to `length` tokens."""

    def empty_cache(self, batch: int, length: int) -> Cache:
        """A cache for `batch` sequences of up to `length` tokens."""
        config, recent = self.config, None
        if config.lookback:
            recent = jnp.zeros((batch, config.lookback, config.width), config.compute_dtype)
        return Cache(self.empty_memories(batch, length), recent)

    def positions(self, start: jax.Array | int, length: int) -> Positions:
        """The positions of `length` tokens that begin at `start`, with what the family needs to know of them."""
        return Positions(start, length, sparing=self.sparing)

    def init(self, key: jax.Array) -> Parameters:
        """Fresh parameters: a nested dict of arrays of `config.parameter_dtype`."""
        _, state = nnx.split(Model(self.config, self.vocabulary, self.block, nnx.Rngs(key)))
        return nnx.to_pure_dict(state)

    def forward(
        self,
        parameters: Parameters,
        sequence: jax.Array,
        *,
        intervention: Intervention | None = None,
        capture: jax.Array | Sequence[int] | None = None,
        capture_layers: Sequence[int] | None = None,
        at: np.ndarray | None = None,
        after: Cache | None = None,
        start: int = 0,
    ) -> Outputs:
        """Read whole sequences at once, or what follows their first tokens.

        Args:
            parameters: of one member.
            sequence: tokens int32[B, S].
            intervention: changes of the residual stream.
            capture: positions int[C], or int[B, C] where each sequence has its own, at which to return the residual
                stream as the intervention leaves it.
            capture_layers: which of the layers 0 (embedding) to `config.layers` to return; all by default.
            at: positions int[C], increasing, whose hidden state is wanted; all by default. The last block then
                computes nothing else, unless its stream is captured.
            after: from `remember`, of the `start` tokens before the sequences; positions in `capture` and `at` count
                from the first token after them.
        """
        outputs, _ = self._read(parameters, sequence, after, start, intervention, capture, capture_layers, at)
        return outputs

    def decode(
        self,
        parameters: Parameters,
        cache: Cache,
        chunk: jax.Array,
        start: jax.Array | int,
        *,
        intervention: Intervention | None = None,
        at: np.ndarray | None = None,
    ) -> tuple[Outputs, Cache]:
        """Read the next tokens int32[B, C] of sequences whose first `start` tokens are in the cache.

        `start` is the number of tokens that the cache has read, or 0, which begins anew whatever it holds. Outputs
        agree with those of `forward` at every position to float tolerance. Positions in `at` count from the chunk's
        first token.
        """
        outputs, after = self._read(parameters, chunk, cache, start, intervention, None, None, at)
        assert after is not None
        return outputs, after

    def remember(self, parameters: Parameters, beginnings: jax.Array) -> Cache:
        """What is remembered of the first tokens int32[B, C] of sequences, from which `forward` reads on."""
        cache, last = self.empty_cache(len(beginnings), 0), np.array([beginnings.shape[1] - 1])
        _, after = self._read(parameters, beginnings, cache, 0, None, None, None, last)
        assert after is not None
        return after

    def fork(self, cache: Cache, times: int, start: int) -> Cache:
        """A cache that has read `start` tokens for `times` sequences in a row, each of which goes on by itself."""
        return in_a_row(cache, times)

    def heads(self, parameters: Parameters, hidden: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Logits of the next token float32[..., V] and value float32[...] for hidden [..., width]."""
        model = self._model(parameters)
        product = functools.partial(jnp.einsum, precision=self.config.precision, preferred_element_type=jnp.float32)
        logits = product("...d,vd->...v", hidden, model.embedding.embedding[...].astype(hidden.dtype))
        return logits, product("...d,do->...o", hidden, model.value.kernel[...].astype(hidden.dtype))[..., 0]

    def _model(self, parameters: Parameters) -> Model:
        graph, state = nnx.split(nnx.eval_shape(lambda: Model(self.config, self.vocabulary, self.block, nnx.Rngs(0))))
        nnx.replace_by_pure_dict(state, parameters)
        return nnx.merge(graph, state)

    def _read(self, parameters, sequence, cache, start, intervention, capture, capture_layers, at):
        model = self._model(parameters)
        length, last = sequence.shape[1], self.config.layers - 1
        every = self.positions(start, length)
        # The last block may leave out what nobody asked for.
        few = every if capture is not None or at is None else dataclasses.replace(every, wanted=np.asarray(at))
        changes = None if intervention is None else intervention.by_layer()
        capture = None if capture is None else jnp.asarray(capture, jnp.int32)
        graph, stack = nnx.split(model.blocks)

        def block(x, layer, positions=every):
            parameters, change, memory = layer
            x, memory = nnx.merge(graph, parameters)(x, positions, memory)
            x = x if change is None else change.change(x, positions)
            return x, (None if capture is None else _at(x, capture), memory)

        def layers(index):
            memory = None if cache is None or isinstance(index, slice) else cache.layers[index]
            of_blocks = jax.tree.map(lambda array: array[1:], changes)
            return (*(jax.tree.map(lambda array: array[index], tree) for tree in (stack, of_blocks)), memory)

        scale = jnp.asarray(self.config.width**0.5, self.config.compute_dtype)
        table, dtype = model.embedding.embedding[...], self.config.compute_dtype
        x = kernels.embed(table, sequence, dtype, self.config.precision)
        x, recent = self.looking_back(x, None if cache is None else cache.recent, start)
        x = jnp.moveaxis(x, 2, 0) * scale
        if changes is not None:
            x = jax.tree.map(lambda array: array[0], changes).change(x, every)
        streams: list[Any] = [] if capture is None else [_at(x, capture)[None]]
        memories: list[Any] = []
        if cache is None and last:
            deep = last >= UNROLLED
            x, (stream, _) = jax.lax.scan(block, x, layers(slice(last)), unroll=UNROLLED if deep else True)
            streams += [] if capture is None else [stream]
        for index in range(last if cache is None else 0, last + 1):  # a compiled loop would copy the cache
            x, (stream, memory) = block(x, layers(index), few if index == last else every)
            streams += [] if stream is None else [stream[None]]
            memories.append(memory)
        residual = None
        if capture is not None:
            residual = jnp.moveaxis(jnp.concatenate(streams), 0, 2)
            residual = residual if capture_layers is None else residual[:, :, np.asarray(capture_layers)]
        hidden = jnp.moveaxis(normalise(model.norm, x), 0, 2)
        hidden = hidden[:, np.asarray(at)] if at is not None and few is every else hidden
        return Outputs(hidden, residual), None if cache is None else Cache(tuple(memories), recent)

    def looking_back(self, x: jax.Array, recent: jax.Array | None, start) -> tuple[jax.Array, jax.Array | None]:
        """Embeddings [B, S, width] that tell of the tokens before them, and the last `lookback` as they were.

        Args:
            x: embeddings of the tokens alone.
            recent: those of the `lookback` tokens before them, [B, lookback, width], as they were; None for none.
            start: int32[], position of the first token; at 0 there is nothing before it.
        """
        count, (batch, length, width) = self.config.lookback, x.shape
        if not count:
            return x, recent
        if recent is None:
            recent = jnp.zeros((batch, count, width), x.dtype)
        every = jnp.concatenate([jnp.where(start > 0, recent, 0), x], axis=1)
        bounds = [0, *range(width // 2, width + 1, width // (2 * count))]
        parts = [every[:, count - back :][:, :length, bounds[back] : bounds[back + 1]] for back in range(count + 1)]
        return jnp.concatenate(parts, axis=2), every[:, length:]


def in_a_row(tree: Any, times: int) -> Any:
    """Every row of axis 0 so many times in a row, in all arrays."""
    return jax.tree.map(lambda x: jnp.repeat(x, times, axis=0), tree)


def _at(x: jax.Array, positions: jax.Array) -> jax.Array:
    """The stream [width, B, S] at positions [C] or [B, C], float32[B, C, width]."""
    some = x[..., positions] if positions.ndim == 1 else jnp.take_along_axis(x, positions[None], axis=2)
    return jnp.moveaxis(some, 0, 2).astype(jnp.float32)


def normalise(norm: nnx.RMSNorm, x: jax.Array) -> jax.Array:
    """`norm` of features on axis 0; statistics in float32."""
    precise = x.astype(jnp.float32)
    # Not rsqrt: CPUs approximate it, in a way that depends on the program around it, and a ratio of two programs'
    # probabilities is to be 1 to the bit.
    root = jax.lax.optimization_barrier(jnp.sqrt(jnp.mean(jnp.square(precise), axis=0, keepdims=True) + norm.epsilon))
    scale = 1 / root
    assert norm.scale is not None
    return (precise * scale * norm.scale[...].astype(jnp.float32)[:, None, None]).astype(x.dtype)


def linear(config: PolicyConfig, rngs: nnx.Rngs):
    """A maker of linear layers, initialised with variance gain² / inputs and without a bias unless one is given."""

    def make(inputs: int, outputs: int, gain: float = 1.0, bias: nnx.Initializer | None = None) -> nnx.Linear:
        return nnx.Linear(
            inputs,
            outputs,
            use_bias=bias is not None,
            kernel_init=nnx.initializers.normal(gain * inputs**-0.5),
            bias_init=bias or nnx.initializers.zeros,
            param_dtype=jnp.dtype(config.parameter_dtype),
            dtype=jnp.dtype(config.compute_dtype),
            precision=config.precision,
            rngs=rngs,
        )

    return make


def dense(layer: nnx.Linear, x: jax.Array) -> jax.Array:
    """A layer without bias of features on axis 0, [I, B, S] → [O, B, S]."""
    return kernels.dense(layer.kernel[...], x, layer.precision)


def norm(config: PolicyConfig, rngs: nnx.Rngs) -> nnx.RMSNorm:
    """A fresh norm of the residual stream; `normalise` applies it."""
    parameter_dtype, dtype = jnp.dtype(config.parameter_dtype), jnp.dtype(config.compute_dtype)
    return nnx.RMSNorm(config.width, param_dtype=parameter_dtype, dtype=dtype, rngs=rngs)
