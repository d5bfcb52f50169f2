"""The shape of an update."""

import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg

from analysis import shapes

BF16 = jnp.bfloat16.dtype


def orthonormal(generator, rows, columns):
    return np.linalg.qr(generator.normal(size=(rows, columns)))[0]


@pytest.fixture
def generator():
    return np.random.default_rng(0)


@pytest.mark.parametrize("rank", [1, 3, 8])
def test_a_planted_low_rank_update_is_found_exactly(generator, rank):
    left, right = orthonormal(generator, 24, rank), orthonormal(generator, 16, rank)
    sigma = np.arange(rank, 0, -1.0)
    update = (left * sigma) @ right.T
    zeros = np.zeros((1, 24, 16), np.float32)
    found = {name: value[0] for name, value in shapes.shape(zeros, update[None].astype(np.float32)).items()}
    energy = np.square(sigma)
    assert found["rank_share_above_rounding"] == rank / 16
    assert found["stable_rank"] == pytest.approx(energy.sum() / energy[0], rel=1e-5)
    share = sigma / sigma.sum()
    assert found["effective_rank"] == pytest.approx(np.exp(-(share * np.log(share)).sum()), rel=1e-4)
    for k in shapes.TOP:
        assert found[f"energy_top_{k}"] == pytest.approx(energy[:k].sum() / energy.sum(), rel=1e-5)
    # A matrix of zeros has no spectrum and no principal directions.
    assert np.isnan([found["normalised_spectral_shift"], found["left_angle_mean"], found["right_angle_largest"]]).all()


def test_rounding_makes_a_low_rank_update_look_full_rank(generator):
    before = generator.normal(size=(1, 32, 32)).astype(np.float32)
    update = 1e-3 * orthonormal(generator, 32, 2) @ orthonormal(generator, 32, 2).T
    for dtype, above in ((np.dtype(np.float32), 2 / 32), (BF16, 0.0)):
        start = before.astype(dtype)
        found = shapes.shape(start, (start.astype(np.float32) + update).astype(dtype))
        assert found["rank_share_above_rounding"][0] == above
    found = shapes.shape(before, (before + 0.1 * update).astype(np.float32))
    assert found["rank_share"][0] > 0.9


def test_rank_is_that_of_numpy_with_the_tolerance_of_float32(generator):
    before = generator.normal(size=(4, 12, 20)).astype(np.float32)
    after = before.copy()
    after[1:] += (generator.normal(size=(3, 12, 5)) @ generator.normal(size=(3, 5, 20))).astype(np.float32)
    found = shapes.shape(before, after)["rank_share"]
    update = after.astype(np.float64) - before.astype(np.float64)
    expected = [np.linalg.matrix_rank(x, rtol=20 * np.finfo(np.float32).eps) / 12 for x in update]
    np.testing.assert_array_equal(found, expected)
    assert found[0] == 0


def test_no_update_has_no_shape(generator):
    before = generator.normal(size=(2, 6, 5)).astype(np.float32)
    found = shapes.shape(before, before)
    assert (found["rank_share"] == 0).all()
    assert np.isnan([found[name] for name in ("stable_rank", "effective_rank", "energy_top_1")]).all()
    np.testing.assert_allclose(found["normalised_spectral_shift"], 0, atol=1e-15)
    np.testing.assert_allclose(found["left_angle_largest"], 0, atol=1e-6)


def test_the_spectral_shift_of_a_scaled_matrix_is_the_scale(generator):
    before = generator.normal(size=(1, 9, 7)).astype(np.float32)
    assert shapes.shape(before, before * np.float32(1.25))["normalised_spectral_shift"][0] == pytest.approx(0.25)
    # A rotation moves every weight and no singular value.
    turned = (orthonormal(generator, 9, 9) @ before[0]).astype(np.float32)
    found = shapes.shape(before, turned[None])
    assert found["normalised_spectral_shift"][0] < 1e-6
    assert found["left_angle_largest"][0] > 1
    assert found["right_angle_largest"][0] < 1e-3


def test_principal_angles_are_those_of_scipy_down_to_tiny_ones(generator):
    for tilt in (1e-9, 1e-4, 0.3, 5.0):
        first = orthonormal(generator, 20, 3)
        second = np.linalg.qr(first + tilt * generator.normal(size=(20, 3)))[0]
        expected = np.sort(np.degrees(scipy.linalg.subspace_angles(first, second)))
        np.testing.assert_allclose(shapes.principal_angles(first, second), expected, rtol=1e-5, atol=1e-13)


def test_a_planted_angle_between_leading_directions(generator, monkeypatch):
    base = orthonormal(generator, 16, 16)
    sigma = np.array([10.0, *[0.1] * 15])
    angle = np.radians(0.5)
    turned = base.copy()
    turned[:, 0] = np.cos(angle) * base[:, 0] + np.sin(angle) * base[:, 1]
    turned[:, 1] = np.cos(angle) * base[:, 1] - np.sin(angle) * base[:, 0]
    before, after = (((x * sigma) @ base.T)[None] for x in (base, turned))
    monkeypatch.setattr(shapes, "RANK_SHARE", 1 / 16)
    found = shapes.shape(before, after)
    assert found["left_angle_largest"][0] == pytest.approx(0.5, rel=1e-6)
    assert found["right_angle_largest"][0] == pytest.approx(0.0, abs=1e-6)


def test_the_principal_mask_is_the_upper_half_of_the_reconstruction(generator, monkeypatch):
    assert shapes.principal_rank((64, 1)) == 1
    monkeypatch.setattr(shapes, "RANK_SHARE", 0.3)
    matrix = generator.normal(size=(2, 16, 10))
    found = shapes.principal_mask(matrix)
    for member in range(2):
        u, s, v = scipy.linalg.svd(matrix[member])
        kept = np.abs(u[:, :3] @ np.diag(s[:3]) @ v[:3])
        np.testing.assert_array_equal(found[member], kept > np.median(kept))
    assert shapes.principal_rank((16, 10)) == 3


def test_the_low_magnitude_mask_is_the_lower_half(generator):
    matrix = generator.normal(size=(3, 8, 6))
    expected = np.abs(matrix) < np.median(np.abs(matrix), axis=(1, 2))[:, None, None]
    np.testing.assert_array_equal(shapes.low_magnitude_mask(matrix), expected)


def test_where_a_mask_lies_against_its_baseline(generator):
    before = {"a": generator.normal(size=(3, 100, 80)), "zero": np.zeros((3, 4, 4)), "norm": np.ones((3, 7))}
    low, principal = shapes.low_magnitude_mask(before["a"]), shapes.principal_mask(before["a"])
    mask = {name: np.zeros(x.shape, bool) for name, x in before.items()}
    mask["a"][0], mask["a"][1] = low[0], generator.random((100, 80)) < 0.5
    found = shapes.location(before, {"m": mask})
    assert set(found) == {"a", "zero"}
    assert found["a"]["baseline"].tolist() == [0.5] * 3
    assert found["a"]["m_low_magnitude"][0] == 1
    assert found["a"]["m_principal"][0] == (low[0] & principal[0]).sum() / low[0].sum() < 0.5
    np.testing.assert_allclose([found["a"][name][1] for name in ("m_principal", "m_low_magnitude")], 0.5, atol=0.03)
    assert np.isnan(found["a"]["m_principal"][2])  # an empty mask lies nowhere
    assert all(np.isnan(values).all() for values in found["zero"].values())
