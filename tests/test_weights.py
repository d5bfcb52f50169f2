"""The matrices of a population by name."""

import jax
import numpy as np
import pytest

from analysis import weights
from tests import tiny

CONFIG = tiny.changed(policy={"layers": 2})


@pytest.fixture(scope="module")
def tree():
    keys = jax.random.split(jax.random.key(0), 3)
    return jax.tree.map(np.asarray, jax.vmap(CONFIG.make_policy().init)(keys))


def test_every_parameter_is_in_exactly_one_matrix(tree):
    matrices = weights.split(tree)
    assert sum(x.size for x in matrices.values()) == sum(x.size for x in jax.tree.leaves(tree))
    values = np.concatenate([x.ravel() for x in matrices.values()])
    np.testing.assert_array_equal(np.sort(values), np.sort(np.concatenate([x.ravel() for x in jax.tree.leaves(tree)])))


def test_names_say_layer_role_and_kind_in_the_order_of_the_forward_pass(tree):
    block = ("attention_norm", "attention.qkv", "attention.out", "mlp_norm", "up", "down")
    expected = ["embedding", *(f"blocks.{layer}.{role}" for layer in (0, 1) for role in block), "norm", "value"]
    matrices = weights.split(tree)
    assert list(matrices) == expected
    assert [weights.layer(name) for name in expected] == [None, *[0] * 6, *[1] * 6, None, None]
    assert [weights.role(name) for name in expected] == ["embedding", *block, *block, "norm", "value"]
    kinds = ["norm", "kernel", "kernel", "norm", "kernel", "kernel"]
    assert [weights.kind(name) for name in expected] == ["embedding", *kinds, *kinds, "norm", "kernel"]


def test_a_layer_is_its_slice_of_the_stack(tree):
    matrices = weights.split(tree)
    stacked = tree["blocks"]["attention"]["qkv"]["kernel"]
    for layer in (0, 1):
        np.testing.assert_array_equal(matrices[f"blocks.{layer}.attention.qkv"], stacked[:, layer])


def test_join_undoes_split_and_keeps_other_dtypes(tree):
    back = weights.join(weights.split(tree), tree)
    jax.tree.map(np.testing.assert_array_equal, back, tree)
    signs = weights.join({name: x > 0 for name, x in weights.split(tree).items()}, tree)
    jax.tree.map(lambda sign, x: np.testing.assert_array_equal(sign, x > 0), signs, tree)
