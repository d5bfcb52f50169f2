"""The optimiser's step of one member, with and without a mask."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from agents.learning import learner
from ground import checkpoints

RATE, DECAY = 0.1, 0.3


def member(dtype, mask=None):
    parameters = {
        "a": jnp.array([[1.5, -2.0], [0.3, -0.0]], dtype),
        "b": {"c": jnp.array([4.0, jnp.nan, 1e-30], dtype)},
    }
    state = learner.fresh(parameters, jax.random.key(0))
    return dataclasses.replace(state, mask=mask)


GRADIENT = {"a": jnp.array([[30.0, -1.0], [0.0, 5.0]]), "b": {"c": jnp.array([0.0, 1.0, 40.0])}}
MASK = {"a": jnp.array([[True, False], [True, False]]), "b": {"c": jnp.array([True, False, False])}}


def steps(state, count=3):
    norms = []
    for _ in range(count):
        state, norm = jax.jit(learner.descend)(state, GRADIENT, RATE, 1.0, DECAY)
        norms.append(float(norm))
    return state, norms


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_outside_the_mask_bits_stay_and_inside_nothing_is_different(dtype):
    before, (masked, norms) = member(dtype), steps(member(dtype, MASK))
    free, free_norms = steps(member(dtype))
    assert norms == free_norms  # clipping sees all of the gradient
    jax.tree.map(np.testing.assert_array_equal, masked.moments, free.moments)
    leaves = [jax.tree.leaves(x) for x in (MASK, before.parameters, masked.parameters, free.parameters)]
    for inside, start, found, unmasked in zip(*leaves, strict=True):
        assert found.dtype == start.dtype == dtype
        where = np.asarray(inside)
        bits = [np.asarray(x).view(np.uint16 if dtype == "bfloat16" else np.uint32) for x in (start, found, unmasked)]
        np.testing.assert_array_equal(bits[1][~where], bits[0][~where])
        np.testing.assert_array_equal(bits[1][where], bits[2][where])
    # Without a gradient, weight decay still reaches what is inside and must not reach what is outside.
    assert np.all(np.asarray(masked.parameters["b"]["c"])[:1] < np.asarray(before.parameters["b"]["c"])[:1])


def test_a_mask_of_everything_is_no_mask():
    everything, _ = steps(member("float32", jax.tree.map(lambda x: jnp.ones_like(x, bool), MASK)))
    free, _ = steps(member("float32"))
    jax.tree.map(np.testing.assert_array_equal, everything.parameters, free.parameters)


def test_a_state_without_a_mask_is_stored_as_it_always_was(tmp_path):
    state = member("float32")
    paths = {jax.tree_util.keystr(path[:1]) for path, _ in jax.tree_util.tree_flatten_with_path(state)[0]}
    assert paths == {".parameters", ".moments", ".key", ".update", ".steps"}
    checkpoints.save(tmp_path / "state", state)
    again = checkpoints.load(tmp_path / "state", jax.eval_shape(lambda: state))
    assert again.mask is None
    jax.tree.map(np.testing.assert_array_equal, again, state)
