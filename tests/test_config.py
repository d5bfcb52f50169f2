"""Configs: what is refused, and that JSON brings them back; nothing in a document is executed."""

import dataclasses
import itertools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import envs
import train
from agents import runs
from agents.learning import hyperparameters
from agents.learning.imitation import PretrainConfig
from agents.learning.rl import RLConfig
from agents.runs import config as configs
from agents.runs.config import Config, ConfigError
from envs import rooms
from tests import tiny


@pytest.mark.parametrize("scale", configs.SCALES)
def test_scales_are_sound_and_come_back_from_json(scale):
    config = configs.SCALES[scale]
    configs.check(config)
    assert config.scale == scale
    assert configs.from_dict(json.loads(json.dumps(configs.to_dict(config)))) == config


def test_float_fields_are_data_and_all_others_are_static():
    config = RLConfig()
    leaves = jax.tree.leaves(config)
    assert len(leaves) == len(hyperparameters.names(RLConfig))
    assert all(isinstance(leaf, float) for leaf in leaves)
    same = jax.tree.structure(config)
    assert jax.tree.structure(dataclasses.replace(config, learning_rate=1.0)) == same
    assert jax.tree.structure(dataclasses.replace(config, epochs=3)) != same


def test_a_sweep_gives_every_member_its_value():
    config = tiny.changed(population={"seeds": 2, "sweep": ("rl.clip_low=0.1,0.3", "world.wind_probability=0,1")})
    assert len(config.members) == 8
    np.testing.assert_allclose(config.per_member("rl").clip_low, np.repeat([0.1, 0.3], 4), rtol=1e-6)
    np.testing.assert_allclose(config.per_member("rl").clip_high, np.full(8, 0.2), rtol=1e-6)
    np.testing.assert_array_equal(config.world_params().wind_probability, np.tile(np.repeat([0.0, 1.0], 2), 2))


BAD = [
    ({"population": {"sweep": ("rl.epochs=1,2",)}}, r"rl\.epochs shapes the compiled program and cannot be swept"),
    ({"population": {"sweep": ("rl.learnin_rate=1",)}}, r"did you mean rl\.learning_rate\?"),
    ({"population": {"sweep": ("rl.learning_rate=1,x",)}}, "values must be numbers"),
    ({"population": {"sweep": ("rl.learning_rate",)}}, "write FIELD=VALUE,VALUE"),
    ({"population": {"sweep": ("rl.clip_low=-1",)}}, r"--rl\.clip_low=-1: use 0 or more"),
    ({"population": {"sweep": ("pretrain.slip=0,0.1",)}}, r"add --pretrain\.no-shared"),
    ({"population": {"seeds": 0}}, r"--population\.seeds=0: use 1 or more"),
    ({"population": {"at_once": -1}}, r"--population\.at_once=-1"),
    ({"world": {"size": 8}}, r"--world\.size=8: too small for turns=4"),
    ({"world": {"turns": 0}}, r"--world\.turns=0"),
    ({"world": {"wind_probability": -0.1}}, r"--world\.wind_probability=-0\.1: not a probability"),
    ({"world": {"wind_probability": 1.5}}, r"--world\.wind_probability=1\.5: not a probability"),
    ({"world": {"gold_ratio": 9.0}}, r"--world\.gold_ratio=9"),
    ({"world": {"gold_reward": float("nan")}}, r"--world\.gold_reward=nan: use a finite number"),
    ({"rl": {"episodes": 15}}, r"--rl\.episodes=15: use a multiple of rl\.minibatches=2"),
    ({"rl": {"updates": 3, "chunk": 2}}, r"--rl\.updates=3: use a multiple of rl\.chunk=2"),
    ({"rl": {"learning_rate": float("inf")}}, r"--rl\.learning_rate=inf: use a finite number"),
    ({"rl": {"temperature": 0.0}}, r"--rl\.temperature=0: use 0\.0001 or more"),
    ({"rl": {"temperature": 1e-38}}, r"--rl\.temperature=1e-38: use 0\.0001 or more"),
    ({"rl": {"temperature": 1e38}}, r"--rl\.temperature=1e\+38: use 10000 at most"),
    ({"rl": {"reward_scale": 1e-60}}, r"--rl\.reward_scale=1e-60: use 1e-20 or more"),
    ({"rl": {"max_gradient_norm": 1e-60}}, r"--rl\.max_gradient_norm=1e-60: use 1e-20 or more"),
    ({"rl": {"learning_rate": 1e-60}}, r"--rl\.learning_rate=1e-60: too small for 32 bits"),
    ({"rl": {"learning_rate": 1e60}}, r"--rl\.learning_rate=1e\+60: use a finite number of 32 bits"),
    ({"seed": 2**31 - 1}, r"--seed=2147483647: members have the seeds from there on; use at most 2147483646"),
    ({"pretrain": {"seed": -1}}, r"--pretrain\.seed=-1: use 0 or more"),
    ({"pretrain": {"seed": 5_000_000_000}}, r"--pretrain\.seed=5000000000: use a 32-bit integer"),
    ({"policy": {"width": 2**40}}, r"--policy\.width=\d+: use a 32-bit integer"),
    ({"population": {"seeds": 1_000_000_000}}, r"--population\.seeds=1000000000: 1,000,000,000 members; use at most"),
    ({"population": {"sweep": ("rl.learning_rate=1e-3,1e-3",)}}, "two values are the same number of 32 bits"),
    ({"population": {"sweep": ("rl.learning_rate=0.1,0.1000000001",)}}, "two values are the same number of 32 bits"),
    (
        {"population": {"sweep": ("rl.learning_rate=1e-3,2e-3", "rl.learning-rate=1e-4,3e-4")}},
        r"rl\.learning_rate is swept already; give all of its values at once",
    ),
    ({"rl": {"shuffle_rewards": True, "group": 16}}, r"--rl\.episodes=16: nobody else to be paid for; use at least 32"),
    ({"pretrain": {"badge_probability": 2.0}}, r"--pretrain\.badge_probability=2: use a value from 0 to 1"),
    ({"evaluation_episodes": 100}, r"--evaluation_episodes=100: use 1024 or more"),
    ({"seed": 2**40}, r"--seed=\d+: use a 32-bit integer"),
    ({"population": {"sweep": ("sft.slip=0,0.3",)}}, r"--population\.sweep sft\.slip: nobody is fine-tuned; add --sft"),
    (
        {"population": {"sweep": ("sft.slip=0,0.3",)}, "sft": {"updates": 10}, "rl": {"imitation": "sft"}},
        r"--population\.sweep sft\.slip: RL imitates alike in all members; start one run per value",
    ),
    ({"rl": {"clip_dual": 0.5}}, r"--rl\.clip_dual=0\.5: undoes the objective itself; use 0 for none, or"),
    ({"population": {"sweep": ("rl.clip_dual=3,1",)}}, r"--rl\.clip_dual=1: undoes"),
    (
        {"rl": {"advantage": "outcome", "reference": "reward"}},
        r"--rl\.reference=reward: an outcome is what .*; use loss",
    ),
    ({"world": {"towns": 2}}, r"--world\.town=0: say in which of the towns members play, 1 to 2"),
    ({"sft": {"choices": "plan"}}, r"--sft\.choices=plan: nothing is said before the first move in EmojiMaze-v0; use"),
]


@pytest.mark.parametrize(("change", "message"), BAD, ids=[message for _, message in BAD])
def test_configs_that_cannot_run_are_refused_in_one_line(change, message):
    with pytest.raises(ConfigError, match=message) as caught:
        configs.check(tiny.changed(**change))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.update(extra=1), r"config\.extra: unknown field"),
        (lambda d: d.update(seed="__import__('os')"), r"config\.seed=.*not a valid value"),
        (lambda d: d.update(seed=True), r"config\.seed=True: not a valid value"),
        (lambda d: d.update(rl=[]), r"config\.rl: expected an object"),
        (lambda d: d["rl"].update(epochs=1.5), r"config\.rl\.epochs=1\.5"),
        (lambda d: d["world"].update(layout="spiral"), r"config\.world\.layout='spiral'"),
        (lambda d: d["population"].update(sweep="rl"), r"config\.population\.sweep='rl'"),
        (lambda d: d["policy"].update(heads=3), r"policy\.width=64: use a multiple of 2 \* policy\.heads = 6"),
    ],
)
def test_documents_that_are_no_config_are_refused(change, message):
    document = json.loads(json.dumps(configs.to_dict(Config())))
    change(document)
    with pytest.raises(ConfigError, match=message):
        configs.from_dict(document)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--bogus"], "Unrecognized options: --bogus"),
        (["--rl.learnin-rate", "1"], r"did you mean --rl\.learning-rate\?"),
        (["--rl.learning-rate", "fast"], r"--rl\.learning-rate: could not convert string to float: 'fast'"),
        (["--scale", "huge"], "--scale huge: unknown; choose one of smoke, laptop, paper"),
        (["--seed"], "--seed: its value is missing"),
        (["--resume", "runs/x", "--seed", "1"], "takes the run's own config"),
        (["--sft.persona", "Larry"], r"--sft\.persona: nobody is fine-tuned; add --sft\.updates"),
        (["--rl.reference-weight", "0.5"], r"--rl\.reference-weight: there is no reference; add --rl\.reference loss"),
        (["--rl.imitation_focus"], r"--rl\.imitation_focus: RL imitates nobody; add --rl\.imitation sft"),
        (["--sft.updates=0", "--sft.learning_rate=1e-4"], r"--sft\.learning_rate: nobody is fine-tuned"),
    ],
)
def test_command_lines_that_make_no_sense_are_refused_in_one_line(arguments, message):
    with pytest.raises(ConfigError, match=message) as caught:
        train.parse(arguments)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("also", [["--sft.updates", "8"], ["--rl.imitation", "sft"]])
def test_what_shall_be_imitated_is_read_where_somebody_imitates(also):
    assert train.parse(["--scale", "smoke", "--sft.persona", "Larry", *also]).config.sft.persona == "Larry"


@pytest.mark.parametrize(("persona", "priors"), [("all", [[1, 0, 0], [0, 0.5, 0.5]]), ("Bob", [[0, 1, 0]] * 2)])
def test_a_base_that_was_shown_one_persona_holds_no_other(persona, priors):
    config = Config(
        world=rooms.RoomsOptions(towns=2, town=2), pretrain=PretrainConfig(persona=persona, prior=("1,0,0", "0,.5,.5"))
    )
    assert config.pretrain.priors(2).tolist() == priors
    assert config.prior.tolist() == priors[1]
    nowhere = dataclasses.replace(config, world=rooms.RoomsOptions(towns=2))
    assert nowhere.prior.tolist() == np.mean(priors, axis=0).tolist()


@pytest.mark.parametrize(
    "change",
    [{"world": {"towns": 2}}, {"rl": {"clip_dual": 0.5}}, {"rl": {"advantage": "outcome", "reference": "reward"}}],
)
def test_a_run_that_is_there_is_opened_though_none_like_it_would_begin(tmp_path, change):
    changed = {name: dataclasses.replace(getattr(tiny.CONFIG, name), **fields) for name, fields in change.items()}
    config = tiny.changed(**changed)
    with pytest.raises(ConfigError):
        configs.check(config)
    run = runs.create(tmp_path / "run", configs.to_dict(config), members=len(config.members))
    assert runs.open(run.path).config == config


def test_members_of_settings_that_differ_in_the_seventh_digit_are_apart():
    sweep = ("rl.learning_rate=0.0010000001,0.0010000003,0.002",)
    config = tiny.changed(population={"seeds": 1, "sweep": sweep})
    assert len({member.label for member in config.members}) == 3
    assert config.members[2].label == "rl.learning_rate=0.002"


def test_options_change_the_scale_they_name():
    command = train.parse(
        ["--scale", "smoke", "--rl.learning-rate", "0.5", "--population.sweep", "rl.clip_low=0.1,0.2"]
    )
    expected = configs.SCALES["smoke"]
    assert command.config.rl == dataclasses.replace(expected.rl, learning_rate=0.5)
    assert command.config.policy == expected.policy
    assert len(command.config.members) == 2 * expected.population.seeds


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": 5}, "size=5: too small for turns=15"),
        ({"colour": 1}, "colour=1: unknown option"),
        ({"wind_probability": -1}, "wind_probability=-1: not a probability"),
        ({"rewards": [1, 2]}, r"rewards=\[1, 2\]: not a float32 array"),
        ({"layout": "spiral"}, "layout='spiral': unknown"),
        ({"size": "big"}, "size='big': use a value of type int"),
        ({"shuffle": 1}, "shuffle=1: use a value of type bool"),
        ({"tile_map": [0, 1, 2, 3, 99]}, "tile_map"),
    ],
)
def test_make_refuses_what_makes_no_world(options, message):
    with pytest.raises(ValueError, match=message):
        envs.make("EmojiMaze-v0", **options)


def test_make_takes_options_and_parameters():
    world, params = envs.make("EmojiMaze-v0", size=41, turns=10, wind_probability=0.25)
    assert (world.size, world.turns, float(params.wind_probability)) == (41, 10, 0.25)
    assert params.wind_probability.dtype == jnp.float32
    with pytest.raises(ValueError, match="no such world"):
        envs.make("Nowhere-v0")


def test_a_field_that_an_older_run_lacks_takes_its_default():
    document = json.loads(json.dumps(configs.to_dict(tiny.CONFIG)))
    del document["policy"]["family"], document["rl"]["staleness"], document["sft"]
    assert configs.from_dict(document) == tiny.CONFIG


def test_permuted_tile_maps_use_every_order_and_leave_the_rest():
    config = tiny.changed(population={"seeds": 6, "tile_maps": "permuted", "sweep": ("rl.learning_rate=1e-3,1e-4",)})
    maps = np.asarray(config.world_params().tile_map)
    default = np.asarray(config.world.make()[1].tile_map)
    assert {tuple(row) for row in maps[:6, :3].tolist()} == set(itertools.permutations(default[:3].tolist()))
    np.testing.assert_array_equal(maps[:6], maps[6:])  # every point of a grid has the same six
    np.testing.assert_array_equal(maps[:, 3:], np.broadcast_to(default[3:], (12, 2)))


def test_members_are_twins_before_rl_where_base_world_and_tuning_are_the_same():
    def starts(**changes):
        population = {"seeds": 2} | changes.pop("population", {})
        return tiny.changed(population=population, **changes).starts.tolist()

    rates = {"sweep": ("rl.learning_rate=1e-3,1e-4",)}
    assert starts() == [0, 0]
    assert starts(population=rates) == [0, 0, 0, 0]
    assert starts(population=rates, pretrain={"shared": False}) == [0, 1, 0, 1]
    assert starts(population={"seeds": 8, "tile_maps": "permuted"}) == [0, 1, 2, 3, 4, 5, 0, 1]
    assert starts(population={"sweep": ("world.wind_probability=0.1,0.2",)}) == [0, 0, 2, 2]
    assert starts(population=rates, sft={"updates": 10}) == [0, 1, 2, 3]


def test_thousands_of_members_are_told_apart_at_once():
    """Compared pair by pair it would take minutes."""
    config = tiny.changed(pretrain={"shared": False}, sft={"updates": 10}, population={"seeds": 20_000})
    assert len(config.bases) == 20_000
    for found in (config.base_of, config.starts):
        np.testing.assert_array_equal(found, np.arange(20_000))
