"""How many parameters an update changed, by every definition."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from analysis import changes

BF16 = jnp.bfloat16.dtype


def rounded(x):
    return np.asarray(x).astype(BF16).astype(np.float32)


@pytest.fixture
def pair():
    """Two members, an embedding, a kernel and a norm, moved by steps that bfloat16 partly loses."""
    generator = np.random.default_rng(0)
    shapes = {"embedding": (2, 7, 4), "blocks.0.up": (2, 9, 16), "norm": (2, 12)}
    before = {name: generator.normal(size=shape).astype(np.float32) * 0.1 for name, shape in shapes.items()}
    before = {name: x.astype(np.float32) for name, x in before.items()}
    moves = {
        name: generator.normal(size=x.shape) * 10.0 ** generator.uniform(-8, -2, x.shape) for name, x in before.items()
    }
    after = {
        name: (x + moves[name] * generator.integers(0, 2, x.shape)).astype(np.float32) for name, x in before.items()
    }
    return before, after


def test_counts_are_those_of_a_loop(pair):
    before, after = (x["blocks.0.up"][0] for x in pair)
    found = np.asarray(changes.counts(before, after))
    assert found.shape == (2, 2, 38)
    assert found.dtype == np.int32
    for v, view in enumerate((lambda x: x, rounded)):
        first, second = view(before).ravel(), view(after).ravel()
        for t, tolerance in enumerate(changes.TOLERANCES):
            absolute = relative = 0
            for w, moved in zip(first, second, strict=True):
                absolute += abs(moved - w) > tolerance
                relative += abs(moved - w) > tolerance * max(abs(w), abs(moved))
            assert (found[v, 0, t], found[v, 1, t]) == (absolute, relative)


def test_bfloat16_is_really_rounded_inside_a_compiled_program():
    # XLA drops a cast to bfloat16 and back; then every move would count.
    before, after = jnp.array([1.0, 1.0]), jnp.array([1.0 + 2**-10, 1.0 + 2**-7])
    found = np.asarray(jax.jit(changes.counts)(before, after))
    assert found[:, 0, 0].tolist() == [2, 1]


def test_the_definitions_are_points_of_the_curves(pair):
    before, after = pair
    counted, sizes = changes.curves(before, after), changes.sizes(before)
    found = changes.defined(changes.fraction(counted, sizes, list(before)))
    flat = [np.concatenate([x[name].reshape(2, -1) for name in before], axis=1) for x in pair]
    (w, v), (wb, vb) = flat, [rounded(x) for x in flat]
    expected = {
        "changed_bf16": wb != vb,
        "paper": np.abs(vb - wb) > np.float32(1e-5),
        "relative": np.abs(v - w) > np.float32(1e-3) * np.maximum(np.abs(v), np.abs(w)),
        "relative_bf16": np.abs(vb - wb) > np.float32(1e-3) * np.maximum(np.abs(vb), np.abs(wb)),
        "changed_stored": v != w,
        "absolute_stored": np.abs(v - w) > np.float32(1e-5),
    }
    assert set(found) == set(changes.DEFINITIONS) == set(expected)
    for name, changed in expected.items():
        np.testing.assert_allclose(found[name], changed.mean(axis=1), rtol=1e-12, err_msg=name)
    # Neighbouring bfloat16 values differ by more than a thousandth (arXiv 2511.08567).
    np.testing.assert_array_equal(found["changed_bf16"], found["relative_bf16"])
    assert (found["changed_bf16"] < found["changed_stored"]).all()


def test_tolerances_hold_those_of_the_papers_and_fractions_fall_along_them(pair):
    assert np.float32(1e-5) in changes.TOLERANCES
    assert np.float32(1e-3) in changes.TOLERANCES
    assert (np.diff(changes.TOLERANCES) > 0).all()
    for counted in changes.curves(*pair).values():
        assert (np.diff(counted, axis=-1) <= 0).all()


def test_a_planted_sparse_update_is_counted_exactly():
    before = {"blocks.0.up": np.ones((3, 100, 100), np.float32), "norm": np.ones((3, 50), np.float32)}
    after = {name: x.copy() for name, x in before.items()}
    after["blocks.0.up"][1].ravel()[:137] += np.float32(2**-7)  # one bfloat16 step
    after["blocks.0.up"][2].ravel()[:250] += np.float32(2**-9)  # too small for bfloat16
    counted = changes.curves(before, after)
    assert counted["blocks.0.up"].dtype == np.int64
    assert counted["blocks.0.up"][:, :, 0, 0].tolist() == [[0, 0], [137, 137], [250, 0]]
    assert not counted["norm"].any()


def test_members_computed_together_or_alone_count_the_same(pair, monkeypatch):
    together = changes.curves(*pair)
    monkeypatch.setattr(changes, "AT_ONCE", 1)
    for name, alone in changes.curves(*pair).items():
        np.testing.assert_array_equal(alone, together[name])


def test_of_parameters_stored_in_bfloat16_both_views_are_one(pair):
    before, after = ({name: x.astype(BF16) for name, x in side.items()} for side in pair)
    for name, counted in changes.curves(before, after).items():
        np.testing.assert_array_equal(counted[:, 0], counted[:, 1])
        np.testing.assert_array_equal(counted[:, 1], changes.curves(*pair)[name][:, 1])


def test_the_embedding_is_cut_by_the_use_of_its_rows(pair):
    cut = changes.parts(pair[0], [0, 3, 6])
    assert list(cut) == ["embedding.used", "embedding.unused", "blocks.0.up", "norm"]
    np.testing.assert_array_equal(cut["embedding.used"], pair[0]["embedding"][:, [0, 3, 6]])
    np.testing.assert_array_equal(cut["embedding.unused"], pair[0]["embedding"][:, [1, 2, 4, 5]])
    assert changes.kinds(cut) == {
        "kernel": ["blocks.0.up"], "norm": ["norm"], "embedding_used": ["embedding.used"],
        "embedding_unused": ["embedding.unused"],
        "all": ["embedding.used", "embedding.unused", "blocks.0.up", "norm"],
    }  # fmt: skip
    assert "embedding_unused" not in changes.kinds(changes.parts(pair[0], range(7)))


def test_concentration_of_equal_moves_is_their_share():
    before = {"a": np.zeros((2, 10, 10), np.float32), "b": np.zeros((2, 100), np.float32)}
    after = {name: x.copy() for name, x in before.items()}
    after["a"][0] = 1.0  # 100 equal moves of 200
    found = changes.concentration(before, after, ["a", "b"])
    assert [found[name][0] for name in changes.CONCENTRATIONS] == [0.45, 0.495, 0.5]
    assert all(np.isnan(found[name][1]) for name in found)


def test_concentration_of_a_single_large_move():
    before, after = {"a": np.zeros((1, 1000), np.float32)}, {"a": np.full((1, 1000), 1e-4, np.float32)}
    after["a"][0, 500] = 1.0
    found = changes.concentration(before, after, ["a"])
    assert found["holding_90"][0] == found["holding_99"][0] == 1 / 1000
    np.testing.assert_allclose(found["participation_ratio"], 1 / 1000, rtol=1e-3)


def test_concentration_is_that_of_a_loop(pair):
    before, after = pair
    found = changes.concentration(before, after, list(before))
    for member in range(2):
        squares = sorted(
            (float(b) - float(a)) ** 2
            for name in before
            for a, b in zip(before[name][member].ravel(), after[name][member].ravel(), strict=True)
        )
        for share, name in ((0.90, "holding_90"), (0.99, "holding_99")):
            held, count, rest = 0.0, 0, list(squares)
            while held < share * sum(squares):
                held, count = held + rest.pop(), count + 1
            assert found[name][member] == count / len(squares)
        ratio = sum(squares) ** 2 / (len(squares) * sum(x * x for x in squares))
        np.testing.assert_allclose(found["participation_ratio"][member], ratio, rtol=1e-9)


def test_the_time_course_by_hand():
    # Four parameters: never touched; touched and cancelled; changed; lost to bfloat16.
    steps = [[1, 1, 1, 1], [1, 2, 1, 1 + 2**-10], [1, 1, 3, 1 + 2**-10], [1, 1, 3, 1 + 2**-10]]
    checkpoints = [{"a": np.array([step, [0.5] * 4], np.float32)} for step in steps]
    found = np.stack([one["a"] for one in changes.course(iter(checkpoints))])
    assert found.shape == (4, 2, 2, 3)  # checkpoints, members, views, states
    assert found[:, 0, 0].tolist() == [[4, 0, 0], [2, 0, 2], [1, 1, 2], [1, 1, 2]]
    assert found[:, 0, 1].tolist() == [[4, 0, 0], [3, 0, 1], [2, 1, 1], [2, 1, 1]]
    assert (found[:, 1] == [4, 0, 0]).all()
    assert changes.STATES == ("never_touched", "touched_and_cancelled", "changed")


def test_the_last_checkpoint_of_the_time_course_counts_what_the_curves_count(pair):
    middle = {name: x * np.float32(1.01) for name, x in pair[0].items()}
    *_, last = changes.course([pair[0], middle, pair[1]])
    for name, counted in changes.curves(*pair).items():
        np.testing.assert_array_equal(last[name][:, :, 2], counted[:, :, 0, 0])
        np.testing.assert_array_equal(last[name].sum(axis=-1), pair[0][name][0].size)


def test_the_median_weight_is_over_all_matrices_together():
    matrices = {"a": np.array([[-1.0, 2.0]], np.float32), "b": np.array([[[-7.0], [5.0], [3.0]]], np.float32)}
    assert changes.median_weight(matrices, ["a", "b"]).tolist() == [3.0]
    assert changes.median_weight({n: x.astype(BF16) for n, x in matrices.items()}, ["b"]).tolist() == [5.0]
