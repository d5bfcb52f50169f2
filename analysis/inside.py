"""A transformer read with everything in it by name, and anything in it replaced: what mechanistic measurements share.

`Policy.forward` is made for speed and shows the residual stream. This is the same arithmetic spelt out for one
sequence: every head's weights and what it writes, every hidden unit of the MLPs. What is replaced is data, a `Patch`,
so that many replacements are tried by `vmap`. Sequences, members and checkpoints are the caller's to map over.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from flax import struct

from agents.learning import rollout
from agents.policies import Parameters, Policy
from agents.policies.transformer import Transformer
from agents.runs import Run
from analysis.measure import AT_ONCE, check_episodes, each
from envs import base, tokens
from ground import seeds
from ground.precise import product
from ground.terminal import ConfigError

AXES = {
    "stream": "entry position width",
    "pattern": "layer head query key",
    "mixed": "layer head position head_width",
    "heads": "layer head position width",
    "hidden": "layer position unit",
    "mlp": "layer position width",
    "logits": "position token",
    "values": "position",
}
"""Everything that `read` can tell of a sequence, with its axes.

`stream`: the residual stream, entry 0 the embedding and entry l the output of block l. `pattern`: how each query of a
head shares its attention among keys. `mixed`: the values that a head mixes. `heads`: what it adds to the stream for
them; the heads of a block add up to what its attention writes. `hidden`: the MLP's units after the squared ReLU, and
`mlp` what they write. TransformerLens calls them resid_pre and resid_post, hook_pattern, hook_z, hook_result,
mlp.hook_post, hook_mlp_out."""

PATCHABLE = ("stream", "pattern", "mixed", "heads", "hidden", "mlp")
"""What a `Patch` can replace."""

PLACES = ("opening", "move")
"""Where a choice is made: what is said before the first move, and moves."""


@struct.dataclass
class Patch:
    """Values that take the place of a policy's own while it reads, by name; see `AXES`.

    `agents.policies.Intervention` replaces the stream of every family, in `Policy.forward` and in play.
    """

    values: dict[str, jax.Array]
    """float32, each with its axes, as `read` tells them of another sequence or policy."""
    where: dict[str, jax.Array]
    """bool, which of them do, by the same names and with the same axis 0; the other axes may be of length 1."""

    def of_blocks(self) -> "Patch":
        """What changes the blocks, with the block as axis 0."""
        values, where = (
            {name: array[1:] if name == "stream" else array for name, array in one.items()}
            for one in (self.values, self.where)
        )
        return Patch(values, where)

    def change(self, name: str, x: jax.Array) -> jax.Array:
        """The values of one layer, of which this holds the arrays, with what is replaced."""
        return jnp.where(self.where[name], self.values[name], x) if name in self.values else x


NOTHING = Patch({}, {})
"""Replaces nothing."""


def read(
    policy: Policy, parameters: Parameters, sequence: jax.Array, patch: Patch = NOTHING, names: Sequence[str] = ()
) -> dict[str, jax.Array]:
    """What is in a transformer that reads one sequence.

    Args:
        policy: a transformer.
        parameters: of one member.
        sequence: tokens int32[S].
        patch: what to replace. A replaced value is what later ones are computed from.
        names: of `AXES`; all by default.

    Returns:
        float32 arrays by name.

    Raises:
        ValueError: the policy is no transformer, or there is no such name.
    """
    if not isinstance(policy, Transformer):
        raise ValueError(f"a {policy.config.family} has no attention to look into; use a transformer")
    if wrong := [*{*names} - {*AXES}, *{*patch.values} - {*PATCHABLE}]:
        raise ValueError(f"{wrong[0]}: no such name; use {', '.join(AXES)}, and replace {', '.join(PATCHABLE)}")
    parameters = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), parameters)
    config, length = policy.config, len(sequence)
    positions = policy.positions(0, length)
    causal = jnp.tril(jnp.ones((length, length), bool))[None]

    def turned(x):
        """Queries or keys [heads, S, D] by their positions."""
        return positions.rotate(jnp.swapaxes(x, 1, 2)[:, :, None])[:, :, 0]

    def block(x, layer):
        own, patch = layer
        view = normalised(x, own["attention_norm"]["scale"])
        joined = product("sw,wo->so", view, own["attention"]["qkv"]["kernel"])
        query, key, value = jnp.moveaxis(joined.reshape(length, 3, config.heads, -1), 0, 2)
        scores = product("hdq,hdk->hqk", turned(query), turned(key)) * query.shape[-1] ** -0.5
        pattern = patch.change("pattern", jax.nn.softmax(jnp.where(causal, scores, -1e30), axis=-1))
        mixed = patch.change("mixed", product("hqk,hkd->hqd", pattern, value))
        out = own["attention"]["out"]["kernel"].reshape(config.heads, -1, config.width)
        heads = patch.change("heads", product("hqd,hdw->hqw", mixed, out))
        x = x + heads.sum(axis=0)
        hidden = product("sw,wu->su", normalised(x, own["mlp_norm"]["scale"]), own["up"]["kernel"])
        hidden = patch.change("hidden", jnp.square(jax.nn.relu(hidden)))
        mlp = patch.change("mlp", product("su,uw->sw", hidden, own["down"]["kernel"]))
        x = patch.change("stream", x + mlp)
        told = {"pattern": pattern, "mixed": mixed, "heads": heads, "hidden": hidden, "mlp": mlp, "stream": x}
        return x, {name: told[name] for name in told if not names or name in names}

    table = parameters["embedding"]["embedding"]
    x, _ = policy.looking_back(table[sequence][None], None, 0)
    x = patch.change("stream", x * config.width**0.5)[0]
    start = x
    x, told = jax.lax.scan(block, x, (parameters["blocks"], patch.of_blocks()))
    if "stream" in told:
        told["stream"] = jnp.concatenate([start[None], told["stream"]])
    told |= dict(zip(("logits", "values"), predictions(parameters, x), strict=True))
    return {name: told[name] for name in (names or AXES)}


def root(x: jax.Array) -> jax.Array:
    """The root mean square [..., 1] that a norm divides the stream [..., width] by."""
    return jnp.sqrt(jnp.mean(jnp.square(x), axis=-1, keepdims=True) + 1e-6)


def normalised(x: jax.Array, scale: jax.Array) -> jax.Array:
    """The stream [..., width] as a layer sees it, by its norm's `scale` [width]."""
    return x / root(x) * jnp.expand_dims(scale, range(x.ndim - 1))


def predictions(parameters: Parameters, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Logits [..., V] and values [...] that the stream [..., width] gives where it is taken for the last block's."""
    final = normalised(x, parameters["norm"]["scale"].astype(jnp.float32))
    logits = product("...w,vw->...v", final, parameters["embedding"]["embedding"].astype(jnp.float32))
    return logits, product("...w,wo->...o", final, parameters["value"]["kernel"].astype(jnp.float32))[..., 0]


def choices(policy: Policy, world: base.World) -> np.ndarray:
    """What may be said at each of a world's decisions, bool[K + T, V]: words of its opening, then moves."""
    allowed = np.zeros((len(world.decision_positions()), policy.vocabulary), bool)
    for slot, sayable in enumerate(world.sayable):
        allowed[slot, world.sayings[sayable]] = True
    allowed[world.opening_length :, list(tokens.MOVES)] = True
    return allowed


def check(run: Run, episodes: int) -> None:
    """Refuse a run whose policy is no transformer, and what `measure.check_episodes` refuses.

    Raises:
        ConfigError: in one line.
    """
    if run.policy.config.family != "transformer":
        raise ConfigError(
            f"{run.path}: its policy is a {run.policy.config.family}, which has no attention to look into; "
            "give a run with --policy.family transformer"
        )
    check_episodes(episodes)


def played(
    policy: Policy, parameters: Parameters, world: base.World, params: base.WorldParams, episodes: int
) -> rollout.Episodes:
    """Episodes of one member in mazes that no training draws, the same mazes for everyone."""
    return rollout.policy_episodes(policy, parameters, world, params, seeds.held_out("inside"), episodes)


def by_parts(function, *arrays: jax.Array):
    """`function` of `AT_ONCE` rows of arrays [B, ...] at a time; axis 0 of every leaf is the part."""
    count = len(arrays[0])
    size = min(count, AT_ONCE)
    return jax.lax.map(lambda part: function(*part), tuple(x.reshape(-1, size, *x.shape[1:]) for x in arrays))


def summed(function, *arrays: jax.Array):
    """What `function` says of each row of arrays [B, ...], summed; `AT_ONCE` rows are asked at a time."""

    def part(*rows):
        return jax.tree.map(lambda x: x.sum(axis=0), jax.vmap(function)(*rows))

    return jax.tree.map(lambda x: x.sum(axis=0), by_parts(part, *arrays))


def by_place(
    told: Callable[[jax.Array, jax.Array], Any],
    policy: Policy,
    parameters: Parameters,
    world: base.World,
    params: base.WorldParams,
    episodes: int,
) -> Any:
    """Means over a member's choices at each of `PLACES`; NaN where no such choice is made.

    Args:
        told: of an episode's tokens int32[S], and weights float32[2, D] that are 1 where a choice is made at a place:
            sums over those, [2, …] each.
        policy, parameters, world, params: of one member.
        episodes: that it plays.
    """
    opening = jnp.arange(len(world.decision_positions())) < world.opening_length

    def episode(sequence, decided):
        weight = jnp.stack([opening & decided, ~opening & decided]).astype(jnp.float32)
        return told(sequence, weight), weight.sum(axis=1)

    seen = played(policy, parameters, world, params, episodes)
    total, count = summed(episode, seen.tokens[:, :-1], seen.decided)
    count = jnp.where(count > 0, count, jnp.nan)
    return jax.tree.map(lambda x: x / count.reshape(-1, *(1 for _ in x.shape[1:])), total)


def heads_of(run: Run) -> list[str]:
    """Names of a run's heads, in the order of blocks."""
    config = run.policy.config
    return [f"block {layer + 1} head {head + 1}" for layer in range(config.layers) for head in range(config.heads)]


def components(run: Run) -> list[str]:
    """Names of what writes to a run's residual stream after the embedding: its heads, then its MLPs."""
    return [*heads_of(run), *(f"block {layer + 1} MLP" for layer in range(run.policy.config.layers))]


def activations(run: Run, checkpoint: str, names: Sequence[str], episodes: int = 32) -> xr.Dataset:
    """What is in every member while it reads episodes of its own.

    Args:
        run: whose members; of a transformer.
        checkpoint: which.
        names: of `AXES`.
        episodes: of each member, the same held-out mazes for all.

    Returns:
        float32 arrays by name, with axes member, episode and those of `AXES`; and `tokens` int32[member, episode,
        position].
    """
    check(run, episodes)
    told = each(_activations, run, checkpoint, names=tuple(names), episodes=episodes)
    axes: Mapping[str, str] = {"tokens": "position", **AXES}
    variables = {name: (["member", "episode", *axes[name].split()], array) for name, array in told.items()}
    labels = {name: ("member", values) for name, values in run.labels.items()}
    return xr.Dataset(variables, attrs={"checkpoint": checkpoint}).assign_coords(labels)


def _activations(policy, world, parameters, params, names, episodes):
    said = played(policy, parameters, world, params, episodes).tokens
    told = by_parts(jax.vmap(lambda sequence: read(policy, parameters, sequence, names=names)), said)
    return {"tokens": said, **jax.tree.map(lambda x: x.reshape(episodes, *x.shape[2:]), told)}
