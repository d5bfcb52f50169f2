"""Linear probes: what of the world can be read off the residual stream before each move, on episodes held out."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr

from agents.learning import rollout
from agents.policies import Parameters, Policy
from agents.runs import Run
from analysis import estimates
from analysis.figures.panels import Curve, Curves, Panel
from analysis.measure import LIMIT, each, measure, variable
from envs import base, tokens
from ground import seeds
from ground.precise import product
from ground.terminal import ConfigError

LABELS = ("own", "another's")
"""The targets of the episode itself, and those of another one at the same turn: what the turn alone tells."""


def panels(arms: Mapping[str, xr.Dataset]) -> list[Panel]:
    """What a probe cannot tell of each target, by entry of the stream, beside targets of other episodes."""
    parts, shown = estimates.columns(arms), list[Panel]()
    for target in dict.fromkeys(name for part in parts.values() for name in part["target"].values):
        told = {label: part["error"].sel(target=target) for label, part in parts.items() if target in part["target"]}
        own, others = ({label: x.sel(labels=whose) for label, x in told.items()} for whose in LABELS)
        lines = own | estimates.floors(others, "another episode's")
        curves = {
            label: Curve(x["entry"].values, x.transpose("entry", "member").values, x["unit"].values)
            for label, x in lines.items()
        }
        shown.append(Curves(curves, "read after block", f"{target}: error on held-out episodes", {"the mean": 1.0}))
    return shown


@measure(panels=panels)
def probes(run: Run, checkpoint: str, *, episodes: int = 512, ridge: float = 1e-3) -> xr.Dataset:
    """What of the world can be read off the residual stream before each move by a linear probe.

    Half of a member's own episodes fit a ridge regression at each entry of the stream, the other half tell its error.
    What a probe can read need not be what the policy uses; see `patching`.

    Args:
        episodes: of each member, the same held-out mazes for all; an even number.
        ridge: penalty, as a share of the variance of the features, which are standardised.

    Returns:
        `error` float32[member, entry, labels, target], the squared error on held-out episodes by what the mean of the
        fitted ones leaves there, 1 for a probe that knows nothing; and `hits` float32[member, entry, labels], how often
        the move that the probe of `planner` likes best is one of the planner's. Entry 0 is the embedding, l the output
        of block l. Targets: `planner`, the planner's chances of each move; `distance`, its moves from here to the goal;
        `walls`, whether each neighbour is a wall; `return`, what is still to be earned; `place`, row and column. A
        world has those that mean something there; NaN where nothing varies.
    """
    if episodes < 4 or episodes % 2:
        raise ConfigError(f"--episodes={episodes}: use an even number from 4 to {LIMIT}")
    if not ridge > 0:
        raise ConfigError(f"--ridge={ridge:g}: use a number above 0")
    error, hits = each(_told, run, checkpoint, shared=(ridge,), episodes=episodes)
    names = targets_of(run.world)
    units = "share of the variance"
    return xr.Dataset(
        {
            "error": variable("member entry labels target", error, "error on held-out episodes", units),
            "hits": variable("member entry labels", hits, "moves of the planner's that the probe names", "share"),
        },
        {"entry": np.arange(run.policy.config.layers + 1), "labels": list(LABELS), "target": names},
    )


def targets_of(world: base.World) -> list[str]:
    """The targets that mean something in a world."""
    params = world.default_params
    board = jax.eval_shape(lambda key: world.tiles(world.reset_env(key, params)[1], params), seeds.key(0))
    return ["planner", "walls", "return", *(["distance"] * world.has_goal), *(["place"] * (board.shape[0] > 1))]


def errors(
    features: jax.Array, targets: jax.Array, counted: jax.Array, fitted: jax.Array, ridge: jax.Array | float
) -> tuple[jax.Array, jax.Array]:
    """Ridge regression on some rows, and what it says of all of them.

    Args:
        features: float32[R, D].
        targets: float32[R, O].
        counted: bool[R], rows that mean something.
        fitted: bool[R], those that it is fitted on; the others are held out.
        ridge: penalty by the variance of a feature.

    Returns:
        The squared error of each target on held-out rows by what the mean of the fitted ones leaves there, float32[O],
        NaN where nothing is left; and the predictions, float32[R, O].
    """
    train, test = ((counted & rows).astype(jnp.float32)[:, None] for rows in (fitted, ~fitted))
    count = jnp.maximum(train.sum(), 1.0)
    mean = jnp.sum(features * train, axis=0, keepdims=True) / count
    spread = jnp.sqrt(jnp.sum(jnp.square(features - mean) * train, axis=0, keepdims=True) / count)
    x = (features - mean) / jnp.where(spread > 1e-6, spread, 1.0)
    centre = jnp.sum(targets * train, axis=0, keepdims=True) / count
    gram = product("rd,re->de", x * train, x) / count + ridge * jnp.eye(x.shape[1], dtype=jnp.float32)
    weights = jnp.linalg.solve(gram, product("rd,ro->do", x * train, targets - centre) / count)
    told = product("rd,do->ro", x, weights) + centre
    left, all_of_it = (jnp.sum(jnp.square(targets - guess) * test, axis=0) for guess in (told, centre))
    return left / jnp.where(all_of_it > 1e-6, all_of_it, jnp.nan), told


def _distance(world: base.World, params: base.WorldParams, states: base.WorldState, key: jax.Array) -> jax.Array:
    """The planner's moves to the goal from states [N], float32[N]; NaN where it does not come there in time."""
    step = jax.vmap(world.step_env, in_axes=(None, 0, 0, None))

    def turn(carry, index):
        states, moves = carry
        there = jax.vmap(world.is_terminated, in_axes=(0, None))(states, params)
        action = jnp.argmax(jax.vmap(world.planner_scores, in_axes=(0, None))(states, params), axis=-1)
        _, states, _, _, _ = step(jax.random.fold_in(key, index), states, action.astype(jnp.int32), params)
        return (states, moves + (~there).astype(jnp.int32)), None

    start = (states, jnp.zeros(states.time.shape, jnp.int32))
    (states, moves), _ = jax.lax.scan(turn, start, jnp.arange(world.turns))
    there = jax.vmap(world.is_terminated, in_axes=(0, None))(states, params)
    return jnp.where(there, moves.astype(jnp.float32), jnp.nan)


def _told(
    policy: Policy, world: base.World, parameters: Parameters, params: base.WorldParams, ridge: jax.Array, episodes: int
) -> tuple[jax.Array, jax.Array]:
    """`error` float32[L + 1, 2, targets] and `hits` float32[L + 1, 2] of `probes`."""
    maze_key, turn_key, goal_key = jax.random.split(seeds.held_out("inside"), 3)
    driver = rollout.policy_driver(policy, parameters, world)
    keys, noise = jax.random.split(maze_key, episodes), rollout.gumbel(episodes)
    seen, states, _ = rollout.play(world, params, keys, turn_key, driver, noise, observe=lambda states, scores: states)
    stream = policy.forward(parameters, seen.tokens[:, :-1], capture=(world.action_positions() - 1).tolist()).residual
    assert stream is not None
    targets = _targets(world, params, seen, jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1), states), goal_key)
    fitted = jnp.broadcast_to((jnp.arange(episodes) < episodes // 2)[:, None], seen.played.shape).reshape(-1)

    def dealt(x):
        """Each episode has the next one's, within its half, so that no target is seen before."""
        return jnp.roll(x.reshape(2, episodes // 2, *x.shape[1:]), 1, axis=1).reshape(x.shape)

    def probe(features):
        features = features.reshape(-1, features.shape[-1])
        error, hits = [], []
        for deal in (lambda x: x, dealt):
            flat = {
                name: (deal(values).reshape(len(features), -1), (there & deal(there)).reshape(-1))
                for name, (values, there) in targets.items()
            }
            told = {name: errors(features, *pair, fitted, ridge) for name, pair in flat.items()}
            error.append(jnp.stack([jnp.nanmean(one) for one, _ in told.values()]))
            chances, there = flat["planner"]
            best = jnp.argmax(told["planner"][1], axis=1)
            hit = jnp.take_along_axis(chances, best[:, None], axis=1)[:, 0] >= chances.max(axis=1) - 1e-6
            hits.append(jnp.mean(hit.astype(jnp.float32), where=there & ~fitted))
        return jnp.stack(error), jnp.stack(hits)

    return jax.lax.map(probe, jnp.moveaxis(stream, 2, 0))


def _targets(
    world: base.World, params: base.WorldParams, seen: rollout.Episodes, states: base.WorldState, key: jax.Array
) -> dict[str, tuple[jax.Array, jax.Array]]:
    """Targets float32[B, T, …] by name, and where they mean something, bool[B, T]; `states` [B, T] before each turn."""
    to_go = jnp.cumsum(seen.pay[:, ::-1], axis=1)[:, ::-1]
    planned = jax.vmap(jax.vmap(lambda state: jax.nn.softmax(world.planner_scores(state, params))))(states)
    targets = {
        "planner": (planned, seen.played),
        "walls": ((seen.neighbours == tokens.WALL).astype(jnp.float32), seen.played),
        "return": (to_go, seen.played),
    }
    names = targets_of(world)
    if "distance" in names:
        flat = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), states)
        distance = _distance(world, params, flat, key).reshape(seen.played.shape)
        targets["distance"] = (jnp.nan_to_num(distance), seen.played & jnp.isfinite(distance))
    if "place" in names:
        targets["place"] = (states.position.astype(jnp.float32), seen.played)
    return targets
