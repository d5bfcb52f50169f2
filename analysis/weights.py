"""The matrices of a population: the unit in which changes of parameters are counted.

Layers are stored stacked on one axis; here each layer's matrix stands by itself, under a name such as
`blocks.0.attention.qkv`.
"""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

Matrices = dict[str, np.ndarray]
"""Name → array [M, ...] of all members, in the order of the forward pass within each layer."""

STACKED = "blocks"
"""The branch of a parameter tree whose arrays have the layer as axis 1."""


def split(parameters: Any) -> Matrices:
    """The matrices of a parameter tree.

    Args:
        parameters: nested dict of arrays; axis 0 is the member, and axis 1 of what lies under `blocks` the layer.
    """
    matrices = {}
    for path, leaf in jax.tree_util.tree_flatten_with_path(parameters)[0]:
        keys = [str(entry.key) for entry in path]
        name = ".".join(keys[:-1]) if keys[-1] in ("kernel", "embedding", "scale") and len(keys) > 1 else ".".join(keys)
        if keys[0] == STACKED:
            for layer in range(leaf.shape[1]):
                matrices[f"{STACKED}.{layer}.{name.partition('.')[2]}"] = np.asarray(leaf[:, layer])
        else:
            matrices[name] = np.asarray(leaf)
    return dict(sorted(matrices.items(), key=lambda item: _place(item[0])))


def join(matrices: Mapping[str, np.ndarray], like: Any) -> Any:
    """The tree of the shape of `like` whose `split` is `matrices`; dtypes are those of the matrices."""
    leaves, structure = jax.tree_util.tree_flatten_with_path(like)
    joined = []
    for path, leaf in leaves:
        names = list(split(_only(path, leaf)))
        parts = [matrices[name] for name in names]
        joined.append(np.stack(parts, axis=1) if str(path[0].key) == STACKED else parts[0])
    return jax.tree_util.tree_unflatten(structure, joined)


def kind(name: str) -> str:
    """What a matrix is: a `kernel` multiplies, a `bias` is added, a `norm` scales, an `embedding` has token rows."""
    last = name.rpartition(".")[2]
    return last if last in ("embedding", "bias") else "norm" if last.endswith("norm") else "kernel"


def layer(name: str) -> int | None:
    """The layer that a matrix belongs to; None for the embedding, the final norm and the value head."""
    parts = name.split(".")
    return int(parts[1]) if parts[0] == STACKED else None


def role(name: str) -> str:
    """The name without its layer, such as `attention.qkv`: what the matrix does in each layer."""
    return name if layer(name) is None else ".".join(name.split(".")[2:])


def _only(path, leaf) -> Any:
    tree = leaf
    for entry in reversed(path):
        tree = {entry.key: tree}
    return tree


_ORDER = (
    "embedding", "attention_norm", "attention.qkv", "attention.out", "mlp_norm", "up", "down",
    "given_norm", "given", "given.bias", "recurrent", "out", "norm", "value",
)  # fmt: skip


def _place(name: str) -> tuple:
    """Sorting key: embedding, blocks in order, what comes after them."""
    at = layer(name)
    position = _ORDER.index(role(name)) if role(name) in _ORDER else len(_ORDER)
    return (0 if kind(name) == "embedding" else 1 if at is not None else 2, at or 0, position, name)
