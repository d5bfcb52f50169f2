"""Stage configs that are also data: float fields can be traced and swept, all others are static.

A field's type decides. A float is a hyper-parameter: a leaf of the config's pytree, so that a population may give
every member its own value in one compiled program. Integers, flags and names shape the program.
"""

import dataclasses
from typing import Any, TypeVar, dataclass_transform

import jax

Stage = TypeVar("Stage")

Scalar = float | jax.Array
"""A hyper-parameter: a number, or inside a program float32[] of one member."""


def names(cls: type) -> tuple[str, ...]:
    """Names of a config's float fields."""
    return tuple(field.name for field in dataclasses.fields(cls) if field.type is float)


@dataclass_transform(frozen_default=True)
def stage_config(cls: type[Stage]) -> type[Stage]:
    """Decorator: a frozen dataclass whose float fields are pytree leaves and whose other fields are static."""
    config: Any = dataclasses.dataclass(frozen=True)(cls)
    data = names(config)
    static = [field.name for field in dataclasses.fields(config) if field.name not in data]
    return jax.tree_util.register_dataclass(config, data_fields=list(data), meta_fields=static)
