"""Our worlds in others' loops: Gymnasium's classes, and the five-tuple of gymnax before 1.0."""

import functools
from typing import Any, ClassVar

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
from gymnasium.envs.registration import EnvSpec
from gymnax.environments import spaces

from envs import base, rendering, tokens
from ground import seeds


def observe(world: base.World, state: base.WorldState, params: base.WorldParams, obs: jax.Array, prompt: bool):
    """An observation int32[O], or after the episode's prompt int32[P + O]."""
    return jnp.concatenate([world.prompt(state, params), obs]) if prompt else obs


def _size(world: base.World, prompt: bool) -> int:
    return world.observation_length + world.prompt_length * prompt


@functools.partial(jax.jit, static_argnames=("world", "prompt"))
def _reset(world, params, key, prompt):
    obs, state = world.reset_env(key, params)
    return observe(world, state, params, obs, prompt), state, world.prompt(state, params)


@functools.partial(jax.jit, static_argnames=("world", "prompt"))
def _step(world, params, key, state, action, prompt):
    obs, state, reward, terminated, info = world.step_env(key, state, action, params)
    return (
        observe(world, state, params, obs, prompt),
        state,
        reward,
        terminated,
        world.is_truncated(state, params),
        info,
    )


@functools.partial(jax.jit, static_argnames="world")
def _tiles(world, params, states):
    return jax.vmap(world.tiles, in_axes=(0, None))(states, params)


class Gymnasium(gymnasium.Env):
    """A world as a `gymnasium.Env`, and its arguments: see `envs.gymnasium`."""

    metadata: ClassVar[dict[str, Any]] = {"render_modes": ["rgb_array", "ansi"], "render_fps": 2}

    def __init__(self, name: str, *, prompt: bool = False, render_mode: str | None = None, **options: Any):
        from envs import make  # the package imports this module late

        if render_mode not in (None, *self.metadata["render_modes"]):
            raise ValueError(f"render_mode={render_mode!r}: unknown; use rgb_array, ansi or None")
        self.world, self.params = make(name, **options)
        self.render_mode, self._prompt = render_mode, prompt
        self.spec = EnvSpec(id=name, entry_point=f"{__name__}:Gymnasium")
        self.spec.kwargs = {"name": name, "prompt": prompt, "render_mode": render_mode, **options}
        self.action_space = gymnasium.spaces.Discrete(self.world.num_actions)
        self.observation_space = gymnasium.spaces.Box(
            0, self.world.vocabulary - 1, (_size(self.world, prompt),), np.int32
        )
        self._state: Any = None
        self._states: list[Any] = []
        self._shown: dict[str, list[Any]] = {}
        self._ended = False

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        self._key = seeds.key(int(self.np_random.integers(2**31)))
        obs, self._state, prompt = _reset(self.world, self.params, jax.random.fold_in(self._key, 0), self._prompt)
        self._states, self._ended = [self._state], False
        self._shown = {"obs": [np.asarray(obs)[-self.world.observation_length :]], "actions": [], "rewards": []}
        return np.asarray(obs), {"prompt": np.asarray(prompt)}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        key = jax.random.fold_in(self._key, len(self._states))
        told = _step(self.world, self.params, key, self._state, jnp.int32(action), self._prompt)
        obs, self._state, reward, terminated, truncated, info = told
        self._ended = bool(terminated) or bool(truncated)
        self._states.append(self._state)
        for name, value in (("obs", obs[-self.world.observation_length :]), ("actions", action), ("rewards", reward)):
            self._shown[name].append(np.asarray(value))
        return np.asarray(obs), float(reward), bool(terminated), bool(truncated), jax.tree.map(np.asarray, info)

    def render(self) -> Any:
        """The episode as it stands: a picture uint8[512, 856, 3], or the board as lines of emoji.

        Nothing is hidden in the board: it shows what the agent may not see.
        """
        if self.render_mode is None:
            return None
        replay, turn = self._replay()
        if self.render_mode == "rgb_array":
            return np.asarray(rendering.frame(replay, turn))
        return rendering.text(replay.tiles[turn], replay.tile_map, replay.positions[turn], replay.labels)

    def _replay(self) -> tuple[Any, int]:
        """The episode so far as a replay of all of its turns, of which those to come are empty; and the turn."""
        world, turn = self.world, len(self._states) - 1
        rest = world.turns - turn
        states = jax.tree.map(lambda *leaves: np.stack(leaves), *self._states, *[self._state] * rest)
        obs = np.stack([*self._shown["obs"], *[np.zeros_like(self._shown["obs"][0])] * rest])[: world.turns]
        actions = np.array([*self._shown["actions"], *[-1] * rest], np.int32)
        prompt = np.asarray(world.prompt(self._state, self.params))
        said = np.full(world.opening_length, tokens.PLAN_END)
        replay = world.replay(
            states,
            tiles=np.asarray(_tiles(world, self.params, states)),
            tile_map=np.asarray(self.params.tile_map),
            actions=actions,
            rewards=np.array([*self._shown["rewards"], *[0.0] * rest]),
            title=world.name,
            tokens=np.concatenate([prompt, said, np.column_stack([obs, np.maximum(actions, 0)]).ravel()]),
            prompt_length=world.prompt_length + world.opening_length,
            observation_length=world.observation_length,
        )
        return (replay.until(turn) if self._ended else replay), turn


class Legacy:
    """A world with the API of gymnax before 1.0, which PureJaxRL and rejax were written for: see `envs.legacy`.

    `step` gives (obs, state, reward, done, info) and begins a new episode where one is done, whose observation it then
    gives. `info["discount"]` is 0 where the episode has ended by itself, as it was.
    """

    def __init__(self, world: base.World, params: base.WorldParams, prompt: bool = False, one_hot: bool = False):
        self.world, self.default_params, self.prompt, self.one_hot = world, params, prompt, one_hot

    @property
    def name(self) -> str:
        """Registered name of the world."""
        return self.world.name

    @property
    def num_actions(self) -> int:
        """Four: North, East, South, West."""
        return self.world.num_actions

    def reset(self, key: jax.Array, params: base.WorldParams | None = None) -> tuple[jax.Array, base.WorldState]:
        """A new episode."""
        params = self.default_params if params is None else params
        obs, state = self.world.reset_env(key, params)
        return self._told(obs, state, params), state

    def step(
        self, key: jax.Array, state: base.WorldState, action: jax.Array, params: base.WorldParams | None = None
    ) -> tuple[jax.Array, base.WorldState, jax.Array, jax.Array, dict[str, jax.Array]]:
        """A turn, and a new episode after the last one."""
        params = self.default_params if params is None else params
        obs, state, reward, terminated, truncated, info = self.world.step(key, state, action, params)
        del info["final_observation"]
        info["discount"] = 1.0 - terminated.astype(jnp.float32)
        return self._told(obs, state, params), state, reward, terminated | truncated, info

    def action_space(self, params: base.WorldParams | None = None) -> spaces.Discrete:
        """Actions 0 to 3."""
        return self.world.action_space(params)

    def observation_space(self, params: base.WorldParams | None = None) -> spaces.Box:
        """Token ids int32[O], or [P + O] with the prompt; with `one_hot` float32[V·O] or [V·(P + O)]."""
        size, last = _size(self.world, self.prompt), self.world.vocabulary - 1
        if self.one_hot:
            return spaces.Box(0.0, 1.0, (size * (last + 1),), jnp.float32)
        return spaces.Box(0, last, (size,), jnp.int32)

    def _told(self, obs: jax.Array, state: base.WorldState, params: base.WorldParams) -> jax.Array:
        obs = observe(self.world, state, params, obs, self.prompt)
        return jax.nn.one_hot(obs, self.world.vocabulary, dtype=jnp.float32).ravel() if self.one_hot else obs
