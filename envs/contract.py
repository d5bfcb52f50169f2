"""What every world must do, as a test to run on a world of one's own: `envs.api_test(env, params, key)`."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from envs import base, personas, tokens
from envs.personas import Traits

BATCH = 8
"""Episodes played at once."""


class ContractError(AssertionError):
    """What a world does wrong, in one line."""


def _require(condition: Any, message: str) -> None:
    if not bool(condition):
        raise ContractError(message)


def _kinds(tree: Any) -> Any:
    return jax.tree.map(lambda leaf: (jnp.shape(leaf), str(jnp.asarray(leaf).dtype)), tree)


def _same(left: Any, right: Any, message: str) -> None:
    """Equal structure, shapes, dtypes and bits."""
    _require(jax.tree.structure(left) == jax.tree.structure(right), f"{message}: the structures differ")
    pairs = zip(jax.tree.leaves_with_path(left), jax.tree.leaves(right), strict=True)
    for (path, one), other in pairs:
        where = jax.tree_util.keystr(path)
        _require(_kinds(one) == _kinds(other), f"{message}: {where} is {_kinds(one)} and {_kinds(other)}")
        _require(np.array_equal(one, other, equal_nan=True), f"{message}: {where} differs")


def api_test(env: base.World, params: base.WorldParams, key: jax.Array, *, scripted: bool = True) -> None:
    """Play a few random episodes of a world in every way that JAX allows, and check what they show.

    One compiled call a turn and a `scan` of a `vmap` must agree to the bit; the same keys must give the same
    episodes and other keys others; states must keep their shapes and dtypes, and the prompt its tokens; token ids,
    roles, flags, spaces and lengths must be what the world declares.

    Args:
        env, params: the world and parameters that its `check` lets pass.
        key: a typed key.
        scripted: whether the personas and the planner must have probabilities in it too.

    Raises:
        ContractError: for the first breach; the message says which.
    """
    env.check(params)
    keys = jax.random.split(jax.random.fold_in(key, 1), BATCH)
    actions = jax.random.randint(jax.random.fold_in(key, 2), (BATCH, env.turns), 0, env.num_actions)
    batch = jax.jit(jax.vmap(functools.partial(_episode, env), in_axes=(None, 0, 0)))
    first, turns = batch(params, keys, actions)
    _declarations(env, params, first, turns)
    _flags(env, params, turns)
    _same((first, turns), batch(params, keys, actions), "played twice with the same keys")
    others = batch(params, jax.random.split(jax.random.fold_in(key, 3), BATCH), actions)
    _require(
        env.board
        or not np.array_equal(first["tiles"], others[0]["tiles"])
        or not np.array_equal(turns["obs"], others[1]["obs"]),
        "other keys give the same episodes",
    )
    _same(
        _episode_by_hand(env, params, keys[0], actions[0]), jax.tree.map(lambda x: x[0], (first, turns)), "turn by turn"
    )
    _automatic_reset(env, params, keys[0])
    _equality(env)
    _replay(env, params, actions[0], *jax.tree.map(lambda x: np.asarray(x[0]), (first, turns)))
    if scripted:
        _scripts(env, params, keys)


def _show(env, params, state, obs) -> dict[str, Any]:
    return {
        "obs": obs,
        "state": state,
        "tiles": env.tiles(state, params),
        "neighbours": env.neighbours(state, params),
        "prompt": env.prompt(state, params),
        "truncated": env.is_truncated(state, params),
    }


def _turn(env, params, state, inputs):
    obs, state, reward, terminated, info = env.step_env(*inputs[:1], state, inputs[1], params)
    return state, {"reward": reward, "terminated": terminated, "info": info} | _show(env, params, state, obs)


def _episode(env, params, key, actions):
    obs, state = env.reset_env(key, params)
    inputs = (jax.random.split(key, len(actions)), actions)
    _, turns = jax.lax.scan(functools.partial(_turn, env, params), state, inputs)
    return _show(env, params, state, obs), turns


def _episode_by_hand(env, params, key, actions):
    """The same without vmap and scan: one compiled call a turn."""
    obs, state = env.reset(key, params)
    show, step = (jax.jit(functools.partial(call, env, params)) for call in (_show, _turn))
    first, turns = show(state, obs), []
    for inputs in zip(jax.random.split(key, len(actions)), actions, strict=True):
        state, shown = step(state, inputs)
        turns.append(shown)
    return first, jax.tree.map(lambda *leaves: jnp.stack(leaves), *turns)


def _declarations(env, params, first, turns) -> None:
    """Shapes, dtypes and ranges, [B] before the first turn and [B, T] after each."""
    _require(env.num_actions == len(tokens.DIRECTIONS), f"num_actions={env.num_actions}: use North, East, South, West")
    grid = first["tiles"].shape[1:]
    expected = {
        "obs": ((env.observation_length,), jnp.int32),
        "prompt": ((env.prompt_length,), jnp.int32),
        "neighbours": ((4,), jnp.int8),
        "tiles": (grid, jnp.int8),
        "truncated": ((), jnp.bool_),
        "reward": ((), jnp.float32),
        "terminated": ((), jnp.bool_),
    }
    for name, (shape, dtype) in expected.items():
        for axes, shown in ((1, first), (2, turns)):
            if name in shown:
                found = (shown[name].shape[axes:], shown[name].dtype)
                _require(found == (shape, dtype), f"{name}: {found} instead of {(shape, jnp.dtype(dtype))}")
    _require(len(grid) == 2, f"tiles: shape {grid}; they must be a grid")
    for shown in (first, turns):
        for name, limit in (("obs", env.vocabulary), ("prompt", env.vocabulary)):
            inside = (np.asarray(shown[name]) >= 0) & (np.asarray(shown[name]) < limit)
            _require(inside.all(), f"{name}: token ids outside the vocabulary")
        for name in ("tiles", "neighbours"):
            inside = (np.asarray(shown[name]) >= 0) & (np.asarray(shown[name]) < len(tokens.ROLES))
            _require(inside.all(), f"{name}: roles outside {tokens.ROLES}")
        position = np.asarray(shown["state"].position)
        _require(
            position.shape[-1] == 2 and position.dtype == np.int32, "state.position: must be int32[2], row and column"
        )
        _require(((position >= 0) & (position < np.array(grid))).all(), "state.position: lies off the tiles")
    _require(np.isfinite(turns["reward"]).all(), "reward: not finite")
    _require((np.asarray(first["state"].time) == 0).all(), "state.time: must be 0 after a reset")
    _same(
        np.broadcast_to(np.asarray(first["prompt"])[:, None], turns["prompt"].shape), turns["prompt"], "prompt by turn"
    )
    one = jax.tree.map(lambda x: x[:, 0], turns["state"])
    _require(_kinds(one) == _kinds(first["state"]), "state: a step changes a shape or dtype")
    _require(env.observation_space(params).contains(first["obs"][0]), "obs: not in observation_space")
    _require(env.action_space(params).n == env.num_actions, "action_space: must have as many actions as num_actions")
    length = env.prompt_length + env.opening_length + env.turns * (env.observation_length + 1)
    _require(env.episode_length() == length, f"episode_length(): {env.episode_length()} instead of {length}")


def _flags(env, params, turns) -> None:
    """An episode ends once, by itself or by its time limit; what comes after its own end pays nothing."""
    terminated, time = np.asarray(turns["terminated"]), np.asarray(turns["state"].time)
    over = np.cumsum(terminated, axis=1) - terminated > 0
    _require((terminated | ~over).all(), "terminated: an episode that has ended goes on")
    _require((np.asarray(turns["reward"])[over] == 0).all(), "reward: a turn after the end pays")
    counted = np.where(over, time, np.arange(1, env.turns + 1)) == time
    _require(counted.all(), "state.time: must count the turns")
    truncated, last = np.asarray(turns["truncated"]), int(params.max_steps_in_episode) - 1
    _require(not truncated[:, :last].any(), "truncated: before the last turn")
    _require((truncated | over)[:, last:].all(), "truncated: not set by the last turn")


def _automatic_reset(env, params, key) -> None:
    """gymnax's own step starts a new episode exactly where one ends."""
    obs, state = env.reset(key, params)
    kinds = _kinds((obs, state))
    for turn in range(env.turns + 1):
        turn_key = jax.random.fold_in(key, turn)
        action = jax.random.randint(turn_key, (), 0, env.num_actions)
        before = int(state.time)
        obs, state, _, terminated, truncated, _ = env.step(turn_key, state, action, params)
        done = bool(terminated) or bool(truncated)
        _require(int(state.time) == (0 if done else before + 1), "step: does not reset where the episode ends")
        _require(_kinds((obs, state)) == kinds, "step: changes the shape or dtype of an observation or a state")


def _equality(env) -> None:
    twin = type(env)(**env.options()).speaking(env.badge, env.towns)
    _require(env == twin and hash(env) == hash(twin), "options(): do not make the same world again")


def _scripts(env, params, keys) -> None:
    """Plans of the world's length, and probabilities that sum to one and leave nothing out."""
    _, states = jax.jit(jax.vmap(env.reset_env, in_axes=(0, None)))(keys, params)

    def script(key, state):
        plan = env.write_plan(key, jnp.int32(personas.ALICE), state, params, Traits())
        written = env.plan_log_probabilities(plan, state, params, Traits())
        return plan, written, env.script_log_probabilities(state, plan, params, Traits())

    plan, written, actions = jax.jit(jax.vmap(script))(keys, states)
    for name, value, shape in (
        ("write_plan", plan, (env.plan_length,)),
        ("plan_log_probabilities", written, (len(personas.PERSONAS),)),
        ("script_log_probabilities", actions, (len(personas.SCRIPTS), env.num_actions)),
    ):
        _require(value.shape[1:] == shape, f"{name}: shape {value.shape[1:]} instead of {shape}")
        _require(np.isfinite(value).all(), f"{name}: a choice has probability 0 or is not a number")
    _require(np.allclose(np.exp(actions).sum(-1), 1, atol=1e-5), "script_log_probabilities: do not sum to one")


def _replay(env, params, actions, first, turns) -> None:
    """An episode can be shown."""
    states = jax.tree.map(lambda start, after: np.concatenate([start[None], after]), first["state"], turns["state"])
    fields = {
        "tiles": np.concatenate([first["tiles"][None], turns["tiles"]]),
        "tile_map": np.asarray(params.tile_map),
        "actions": np.asarray(actions),
        "rewards": np.asarray(turns["reward"]),
    }
    replay = env.replay(states, **fields)
    if replay.labels is None:
        _require(np.array_equal(replay.positions, states.position), "replay: positions are not the state's")
        return
    # A picture of the world's own: a place for each position, and on it the role of the tile.
    here, there = states.position, replay.positions
    places = [len(np.unique(cells, axis=0)) for cells in (here, there, np.concatenate([here, there], axis=1))]
    turns = np.arange(len(here))
    roles = fields["tiles"][turns, *here.T], replay.tiles[turns, *there.T]
    _require(len(set(places)) == 1 and np.array_equal(*roles), "replay: positions do not stand for the state's")
