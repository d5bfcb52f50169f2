"""Worlds in others' loops: Gymnasium's checker, and a loop of PureJaxRL's shape."""

import copy
import functools
import itertools

import flax.linen as nn
import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import struct
from flax.training.train_state import TrainState
from gymnasium.utils import env_checker

import envs
from envs import tokens
from tests.thrift import some

MAZE = ("EmojiMaze-v0", {"size": 7, "turns": 3})
LABYRINTH = ("EmojiLabyrinth-v0", {"size": 2, "turns": 5, "view": "bump", "plan_length": 2})
ROOMS = ("EmojiRooms-v0", {})


@pytest.mark.parametrize("prompt", [False, True])
@pytest.mark.parametrize(("name", "options"), [MAZE, LABYRINTH])
@pytest.mark.filterwarnings("ignore:.*The environment EmojiMaze-v0 is out of date.*")
def test_gymnasium_s_checker_finds_nothing(name, options, prompt):
    env_checker.check_env(envs.gymnasium(name, prompt=prompt, render_mode="rgb_array", **options))


@pytest.mark.parametrize(("name", "options"), some([ROOMS, LABYRINTH, MAZE]))
def test_an_episode_is_that_of_the_world(name, options):
    """Turn by turn against the world itself, and shown in both ways."""
    env = envs.gymnasium(name, prompt=True, render_mode="rgb_array", **options)
    board = envs.gymnasium(name, render_mode="ansi", **options)
    world, params = envs.make(name, **options)
    obs, info = env.reset(seed=5)
    bare, _ = board.reset(seed=5)
    np.testing.assert_array_equal(obs, np.concatenate([info["prompt"], bare]))
    state = env._state
    np.testing.assert_array_equal(info["prompt"], world.prompt(state, params))
    frames, step = [env.render()], jax.jit(world.step_env)
    ended, turn = False, 0
    while not ended:
        key, turn = jax.random.fold_in(env._key, turn + 1), turn + 1
        expected, state, paid, terminated, _ = step(key, state, jnp.int32(turn % 4), params)
        obs, reward, *ends, _ = env.step(turn % 4)
        np.testing.assert_array_equal(obs, np.concatenate([info["prompt"], expected]))
        assert (reward, ends) == (float(paid), [bool(terminated), turn == world.turns])
        ended = any(ends)
        frames.append(env.render())
    assert {(frame.shape, frame.dtype) for frame in frames} == {((512, 856, 3), np.dtype(np.uint8))}
    assert all((one != other).any() for one, other in itertools.pairwise(frames))
    assert tokens.VOCABULARY[tokens.AGENT] in board.render()
    if name == ROOMS[0]:  # named on a map
        facts = {token for token in info["prompt"].tolist() if token in tokens.ROOMS}
        assert len(facts & set(tokens.encode(board.render()))) >= len(facts) - 2  # hidden by agent and goal
    else:
        assert board.render().count("\n") + 1 == world.tiles(state, params).shape[0]


def test_wrong_requests_are_refused():
    with pytest.raises(ValueError, match="render_mode='human': unknown"):
        envs.gymnasium("EmojiMaze-v0", render_mode="human")
    for make in (envs.gymnasium, envs.legacy):
        with pytest.raises(ValueError, match="no such world"):
            make("EmojiMaze-v9")
        with pytest.raises(ValueError, match="colour=3: unknown option"):
            make("EmojiMaze-v0", colour=3)


def test_gymnasium_makes_it_from_its_specification():
    env = envs.gymnasium("EmojiMaze-v0", prompt=True, render_mode="ansi", size=7, turns=3)
    again = gymnasium.make(env.spec)
    assert again.render_mode == "ansi"
    assert again.observation_space == env.observation_space
    np.testing.assert_array_equal(again.reset(seed=1)[0], env.reset(seed=1)[0])


# gymnax before 1.0


@pytest.mark.parametrize("one_hot", [False, True])
@pytest.mark.parametrize("prompt", some([True, False]))
def test_five_of_a_step_and_a_new_episode_after_the_last(prompt, one_hot, key):
    env = envs.legacy(LABYRINTH[0], prompt=prompt, one_hot=one_hot, **LABYRINTH[1])
    world, params = env.world, env.default_params
    space = env.observation_space(params)
    obs, state = jax.jit(env.reset)(key)
    step = jax.jit(env.step)
    for turn in range(1, 2 * world.turns):
        turn_key = jax.random.fold_in(key, turn)
        expected = world.step(turn_key, state, jnp.int32(turn % 4), params)
        obs, state, reward, done, info = step(turn_key, state, jnp.int32(turn % 4))
        assert (obs.shape, obs.dtype) == (space.shape, space.dtype)
        assert bool(done) == bool(expected[3] | expected[4])
        assert float(reward) == float(expected[2])
        assert float(info["discount"]) == 1 - bool(expected[3])
        ids = np.asarray(obs).reshape(-1, world.vocabulary).argmax(axis=1) if one_hot else np.asarray(obs)
        told = [np.asarray(world.prompt(state, params))] if prompt else []
        np.testing.assert_array_equal(ids, np.concatenate([*told, expected[0]]))
        assert int(state.time) == (0 if done else int(expected[1].time))


def test_it_is_copied_and_told_by_its_parameters(key):
    """rejax copies what it is given; gymnax' own wrapper recurses there."""
    env = envs.legacy("EmojiMaze-v0", size=7, turns=3, wind_probability=0.0)
    other = copy.deepcopy(env)
    assert other.default_params.wind_probability == 0.0
    assert (other.name, other.num_actions, other.action_space().n) == ("EmojiMaze-v0", 4, 4)
    assert not hasattr(other, "no_such_thing")
    np.testing.assert_array_equal(other.reset(key)[0], env.reset(key)[0])


# PureJaxRL's wrapper and loop, as its ppo.py has them.


@struct.dataclass
class LogEnvState:
    env_state: object
    episode_returns: float
    episode_lengths: int
    returned_episode_returns: float
    returned_episode_lengths: int
    timestep: int


class LogWrapper:
    def __init__(self, env):
        self._env = env

    def __getattr__(self, name):
        return getattr(self._env, name)

    @functools.partial(jax.jit, static_argnums=(0,))
    def reset(self, key, params=None):
        obs, env_state = self._env.reset(key, params)
        return obs, LogEnvState(env_state, 0.0, 0, 0.0, 0, 0)

    @functools.partial(jax.jit, static_argnums=(0,))
    def step(self, key, state, action, params=None):
        obs, env_state, reward, done, info = self._env.step(key, state.env_state, action, params)
        returns, lengths = state.episode_returns + reward, state.episode_lengths + 1
        state = LogEnvState(
            env_state=env_state,
            episode_returns=returns * (1.0 - done.astype(jnp.float32)),
            episode_lengths=lengths * (1 - done.astype(jnp.int32)),
            returned_episode_returns=jnp.where(done, returns, state.returned_episode_returns),
            returned_episode_lengths=jnp.where(done, lengths, state.returned_episode_lengths),
            timestep=state.timestep + 1,
        )
        info["returned_episode_returns"] = state.returned_episode_returns
        info["returned_episode_lengths"] = state.returned_episode_lengths
        info["returned_episode"] = done
        return obs, state, reward, done, info


class ActorCritic(nn.Module):
    action_dim: int

    @nn.compact
    def __call__(self, x):
        hidden = nn.tanh(nn.Dense(32)(x))
        return nn.Dense(self.action_dim)(hidden), nn.Dense(1)(nn.tanh(nn.Dense(32)(x)))[..., 0]


def make_train(config, env, env_params):
    env = LogWrapper(env)
    network = ActorCritic(env.action_space(env_params).n)

    def train(rng):
        rng, init, reset = jax.random.split(rng, 3)
        parameters = network.init(init, jnp.zeros(env.observation_space(env_params).shape))
        state = TrainState.create(apply_fn=network.apply, params=parameters, tx=optax.adam(config["LR"]))
        obsv, env_state = jax.vmap(env.reset, in_axes=(0, None))(
            jax.random.split(reset, config["NUM_ENVS"]), env_params
        )

        def update_step(runner, _):
            def env_step(runner, _):
                state, env_state, last_obs, rng = runner
                rng, act, step = jax.random.split(rng, 3)
                logits, _ = network.apply(state.params, last_obs)
                action = jax.random.categorical(act, logits)
                obsv, env_state, reward, done, info = jax.vmap(env.step, in_axes=(0, 0, 0, None))(
                    jax.random.split(step, config["NUM_ENVS"]), env_state, action, env_params
                )
                return (state, env_state, obsv, rng), (done, action, reward, last_obs, info)

            runner, (done, action, reward, obs, info) = jax.lax.scan(env_step, runner, None, config["NUM_STEPS"])
            state, env_state, last_obs, rng = runner

            def returns(after, step):
                done, reward = step
                total = reward + jnp.where(done, 0.0, after)
                return total, total

            _, targets = jax.lax.scan(returns, jnp.zeros(config["NUM_ENVS"]), (done, reward), reverse=True)

            def loss(parameters):
                logits, value = network.apply(parameters, obs)
                chosen = jnp.take_along_axis(jax.nn.log_softmax(logits), action[..., None], axis=-1)[..., 0]
                advantage = jax.lax.stop_gradient(targets - value)
                advantage = (advantage - advantage.mean()) / (advantage.std() + 1e-8)
                return -(chosen * advantage).mean() + 0.5 * ((targets - value) ** 2).mean()

            state = state.apply_gradients(grads=jax.grad(loss)(state.params))
            return (state, env_state, last_obs, rng), info

        return jax.lax.scan(update_step, (state, env_state, obsv, rng), None, config["NUM_UPDATES"])

    return train


def test_a_loop_of_purejaxrl_trains_a_population():
    config = {"LR": 0.01, "NUM_ENVS": 32, "NUM_STEPS": 6, "NUM_UPDATES": 60}
    env = envs.legacy("EmojiMaze-v0", one_hot=True, size=7, turns=3, wind_probability=0.0)
    train = jax.jit(jax.vmap(make_train(config, env, env.default_params)))
    _, info = train(jax.random.split(jax.random.key(3), 2))
    assert info["returned_episode_returns"].shape == (2, 60, 6, 32)
    assert set(np.unique(info["returned_episode_lengths"][:, 1:])) == {3}
    assert float(info["returned_episode"].mean()) == pytest.approx(1 / 3)
    earned = np.asarray(info["returned_episode_returns"]).mean(axis=(2, 3))
    assert (earned[:, -10:].mean(axis=1) > earned[:, 1:11].mean(axis=1) + 5).all()


def test_rejax_trains_in_the_labyrinth():
    rejax = pytest.importorskip("rejax")
    env = envs.legacy(LABYRINTH[0], prompt=True, one_hot=True, **LABYRINTH[1])
    # It was not written for strict promotion.
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        algorithm = rejax.get_algo("ppo").create(
            env=env, env_params=env.default_params, total_timesteps=512, num_envs=8, num_steps=16, num_minibatches=2,
            eval_freq=256,
        )  # fmt: skip
        _, (lengths, returns) = jax.jit(algorithm.train)(jax.random.key(0))
    assert np.isfinite(returns).all()
    assert (np.asarray(lengths) <= LABYRINTH[1]["turns"]).all()
