"""Recruitment: what pushes do to what a base would say equals pushes made by hand, and a planted axis is found."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from agents.policies import Intervention
from analysis import directions, measures
from analysis.measures.concepts import narrated
from envs import tokens
from ground.terminal import ConfigError
from tests import tiny, untrained
from tests.test_planted_networks import sees
from tests.thrift import some

OPTIONS = {"episodes": 6, "extraction_episodes": 120}
CONFIG = tiny.changed(policy={"layers": 2}, pretrain={"narration": 0.5, "tile_maps": "balanced"})


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return untrained.write(tmp_path_factory.mktemp("runs") / "run", CONFIG, scale=2.0)


@pytest.mark.slow
@pytest.mark.parametrize("layer", [1, 2])
def test_a_swing_is_that_of_pushes_made_by_hand(run, layer):
    measured = measures.recruitment(run, "rl", **OPTIONS).isel(checkpoint=0).sel(layer=layer)
    known = measures.concepts(run, ["pretrain", "rl"], episodes=OPTIONS["extraction_episodes"])
    told = narrated(CONFIG.world, CONFIG.pretrain, 0)[: OPTIONS["episodes"]]
    slots = run.world.action_positions()[:-1]
    policy = run.policy

    @jax.jit
    def say(parameters, steering):
        hidden = policy.forward(parameters, told, intervention=Intervention(steering=steering)).hidden
        return policy.heads(parameters, hidden)[0][:, slots]

    for member in range(run.members):
        base = jax.tree.map(lambda x, member=member: x[member], run.parameters("pretrain"))
        vectors = known["vectors"].sel(checkpoint="rl", layer=layer).values[member]
        axis = vectors[tokens.GOLD] - vectors[tokens.MOLD]
        table = np.asarray(base["embedding"]["embedding"]) * np.asarray(base["norm"]["scale"])
        plain = np.asarray(say(base, jnp.zeros((3, axis.size))), np.float64)
        for name, along in {"axis": axis, "said": table[tokens.GOOD] - table[tokens.BAD]}.items():
            push = 4.0 * np.linalg.norm(axis) / 3 * along / np.linalg.norm(along)
            steering = np.zeros((3, len(push)), np.float32)
            logits = []
            for sign in (-1, -0.25, 0, 0.25, 1):
                steering[layer] = sign * push
                logits.append(np.asarray(say(base, jnp.asarray(steering)), np.float64))
            feeling = [(x[..., tokens.GOOD] - x[..., tokens.BAD]).mean() for x in logits]
            row = measured.isel(member=member).sel(direction=name)
            np.testing.assert_allclose(row["swing"], feeling[4] - feeling[0], rtol=2e-3, atol=1e-4)
            said = [x - np.log(np.exp(x).sum(axis=-1, keepdims=True)) for x in logits]
            spent = [(np.exp(said[2]) * (said[2] - x)).sum(axis=-1).mean() for x in said]
            np.testing.assert_allclose(row["kl"], np.mean([spent[0], spent[4]]), rtol=5e-3, atol=1e-5)
            weak = (feeling[3] - feeling[1]) / (np.sqrt(spent[1]) + np.sqrt(spent[3]))
            np.testing.assert_allclose(row["by_kl"], weak, rtol=2e-2, atol=1e-3)
        word, difference = np.asarray(told)[:, slots + 1], plain[..., tokens.GOOD] - plain[..., tokens.BAD]
        speaks = difference[word == tokens.GOOD].mean() - difference[word == tokens.BAD].mean()
        np.testing.assert_allclose(measured["speaks"][member], speaks, rtol=1e-3, atol=1e-4)
    assert (measured["p"] >= 1 / 129).all()
    limits = np.quantile(abs(measured["random_swing"]), 0.975, axis=measured["random_swing"].dims.index("draw"))
    np.testing.assert_allclose(measured["limit"], limits)


@pytest.mark.slow
def test_fewer_random_directions_change_nothing_else(run):
    many, one = (measures.recruitment(run, "rl", **OPTIONS, draws=draws).isel(checkpoint=0) for draws in (128, 1))
    assert (many.sizes["draw"], one.sizes["draw"]) == (128, 1)
    for name in ("swing", "by_kl", "kl", "speaks"):
        np.testing.assert_allclose(one[name], many[name], rtol=1e-4, atol=1e-5, err_msg=name)


@pytest.mark.parametrize(("gold", "sign"), some([(1, 1), (-1, -1)]))
def test_an_axis_that_a_base_speaks_along_is_found(tmp_path, gold, sign):
    run = untrained.write(tmp_path / "run", CONFIG)
    for name, sees_gold in (("pretrain", 1), ("rl", gold)):
        run.save_parameters(name, sees(sees_gold, -sees_gold)(run.parameters("init"), run))
    found = measures.recruitment(run, "rl", **OPTIONS).isel(checkpoint=0)
    axis = found["swing"].sel(direction="axis")
    assert (sign * axis > 1).all()
    assert (found["swing"].sel(direction="axis before") > 1).all()
    assert (sign * found["by_kl"].sel(direction="axis") > 0).all()


def test_random_directions_have_the_covariance_of_the_stream(key):
    mixing = jax.random.normal(jax.random.fold_in(key, 0), (2, 5, 5))
    stream = 3 + jnp.einsum("nld,lde->nle", jax.random.normal(jax.random.fold_in(key, 1), (400, 2, 5)), mixing)
    drawn = np.asarray(directions.matched(jax.random.fold_in(key, 2), 20_000, stream))
    for layer in range(2):
        expected = np.cov(np.asarray(stream)[:, layer].T, bias=True)
        np.testing.assert_allclose(np.cov(drawn[:, layer].T), expected, atol=0.05 * np.abs(expected).max())


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"episodes": 0}, "--episodes=0: use 1 to"),
        ({"episodes": 2048}, "--episodes=2048: use 1 to 1024"),
        ({"strength": 0.0}, "--strength=0"),
        ({"draws": 0}, "--draws=0: use 1 to"),
        ({"extraction_episodes": 100}, "--extraction-episodes=100"),
    ],
)
def test_what_it_cannot_do_is_refused(run, options, words):
    with pytest.raises(ConfigError, match=words):
        measures.recruitment(run, "rl", **OPTIONS | options)
