"""Training without a directory is the same training; so is the function of a key."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import train
from agents.learning import population
from agents.runs import memory
from agents.runs.config import ConfigError
from analysis import measures
from ground.files import RunError
from tests import tiny
from tests.equality import TIMING

ONE = tiny.changed(population={"seeds": 1}, seed=3)


pytestmark = pytest.mark.slow  # compiled as users have it, three times


@pytest.fixture(scope="module")
def alone():
    """One device for everything, and programs as users have them: here the last bit matters."""

    def compiled(chunk, *arguments):
        chunk.program = chunk.program.lower(*arguments).compile(compiler_options=tiny.AS_USERS)

    with pytest.MonkeyPatch.context() as patch:
        mesh, one = population.mesh, jax.devices()[:1]
        patch.setattr(population.Chunk, "compile", compiled)
        patch.setattr(population, "mesh", lambda members, episodes, devices=None: mesh(members, episodes, one))
        yield


@pytest.fixture(scope="module")
def held(alone, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("nothing"))
        run = train.train(ONE)
        assert not list(run.path.parent.iterdir())
    return run


@pytest.fixture(scope="module")
def written(alone, tmp_path_factory):
    return train.train(ONE, tmp_path_factory.mktemp("runs") / "run", figures=False)


def same(one, other):
    jax.tree.map(np.testing.assert_array_equal, one, other)


def test_it_is_the_run_on_disk_to_the_bit(held, written):
    assert held.checkpoints() == written.checkpoints()
    for name in held.checkpoints():
        same(held.parameters(name), written.parameters(name))
    assert held.metrics().equals(written.metrics())
    summaries = [{k: v for k, v in run.summary().items() if k not in TIMING} for run in (held, written)]
    assert summaries[0] == summaries[1]
    assert held.ended() == ["pretrain", "rl"]
    assert held.config == ONE
    np.testing.assert_array_equal(held.metric("rl", "return"), written.metric("rl", "return"))


def test_it_can_be_measured(held, written):
    assert len({held, written}) == 2  # handles, by which measurements remember what they know of a run
    one, other = (measures.updates(run, "rl") for run in (held, written))
    assert one["norm"].dims == other["norm"].dims
    np.testing.assert_array_equal(one["norm"], other["norm"])
    np.testing.assert_array_equal(one["seed"], other["seed"])


def test_it_is_retrained_where_it_was_trained(held):
    assert measures.subnetwork(held, draws=1, episodes=1024).attrs["devices"] == "as in the run"


def test_it_has_no_files(held, tmp_path):
    for call in (held.figure, held.analysis):
        with pytest.raises(RunError, match=r"kept in memory and has no files; give train.train a run_dir"):
            call("x.png")
    with pytest.raises(RunError, match="memory: no checkpoint 'sft'; there are init, pretrain"):
        held.parameters("sft")
    with pytest.raises(ConfigError, match="nobody watches it; give a run_dir"):
        train.train(ONE, track="tensorboard")
    assert memory.Held.of(ONE).checkpoints() == []
    with pytest.raises(RunError, match="not trained to its end"):
        memory.Held.of(ONE).summary()


def test_a_run_has_a_short_name_and_a_face(held, written):
    assert repr(written) == f"<Run {written.path}: 1 member, EmojiMaze-v0, ppo; trained: pretrain, rl>"
    for run in (held, written):
        shown = run._repr_html_()
        assert "after RL" in shown
        assert "<img" not in shown
    written.figure("learning_curve.png").write_bytes(b"picture")
    assert 'src="data:image/png;base64,cGljdHVyZQ=="' in written._repr_html_()
    assert "after RL" not in memory.Held.of(ONE)._repr_html_()


# A function of a key


@pytest.fixture(scope="module")
def function():
    return train.make_train(ONE)


def test_the_function_gives_the_bits_of_the_run(function, held):
    key = jax.random.key(ONE.seed)
    program = function.func.lower(*function.args, key).compile(compiler_options=tiny.AS_USERS)
    told = program(*function.args, key)
    assert list(told["parameters"]) == ["init", "pretrain", "rl"]
    for name, tree in told["parameters"].items():
        same(tree, jax.tree.map(lambda x: x[0], held.parameters(name)))
    for stage, metrics in told["metrics"].items():
        for name, values in metrics.items():
            np.testing.assert_array_equal(values, held.metric(stage, name)[:, 0].astype(np.asarray(values).dtype))


@pytest.mark.long
def test_old_keys_do_as_well(function):
    with jax.legacy_prng_key("allow"):
        key = jax.random.PRNGKey(1)
    same(function(key)["metrics"], function(jax.random.key(1))["metrics"])


@pytest.mark.long
def test_it_is_mapped_over_keys_and_values(function):
    keys = jax.random.split(jax.random.key(9), 2)
    rates = jnp.array([0.0, 1e-2])
    told = jax.vmap(lambda key, rate: function(key, {"rl.learning_rate": rate}))(keys, rates)
    pretrained, trained = (told["parameters"][name]["embedding"]["embedding"] for name in ("pretrain", "rl"))
    moved = np.asarray(jnp.abs(trained - pretrained).max(axis=(1, 2)))
    assert moved[0] == 0 < moved[1]
    alone = function(keys[1], {"rl.learning_rate": rates[1]})["parameters"]["rl"]["embedding"]["embedding"]
    np.testing.assert_allclose(trained[1], alone, atol=2e-4)


def test_what_one_member_cannot_do_is_refused(function):
    for change, words in (
        ({"sweep": ("rl.learning_rate=1e-3,1e-2",)}, "--population.sweep=.*: this trains one member"),
        ({"tile_maps": "permuted"}, "--population.tile_maps=permuted"),
    ):
        config = dataclasses.replace(ONE, population=dataclasses.replace(ONE.population, **change))
        with pytest.raises(ConfigError, match=words):
            train.make_train(config)
    with pytest.raises(ConfigError, match=r"rl\.epochs: no number that may be given; there are pretrain"):
        function(jax.random.key(0), {"rl.epochs": 3.0})
    with pytest.raises(ConfigError, match=r"sft\.slip: no number that may be given"):  # there is no such stage
        function(jax.random.key(0), {"sft.slip": 0.3})
