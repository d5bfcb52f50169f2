"""Whether thoughts carry: what becomes of a model that plays the same mazes after a thought that it did not choose.

Such a thought is read token by token like one of its own, whoever wrote it, so that all that differs is what it says.
Mazes, the model's name and the chance of its actions are the same for every kind of thought.
"""

from collections.abc import Mapping
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr

from agents.learning import rollout
from agents.policies import Parameters, Policy
from agents.runs import Run
from analysis import estimates, passes
from analysis.figures.panels import Curve, Curves, Panel
from analysis.measure import AT_ONCE, check_episodes, each, measure, variable
from envs import base, personas, tokens
from envs.personas import Traits
from ground import seeds
from ground.terminal import ConfigError

KINDS = ("own", "another's", "none", "right", "shuffled")
"""The model's thought; that of the next maze, of the last of `AT_ONCE` that of the first; the end at once; Alice's; its
own tokens up to the end in any order."""

_RIGHT = Traits(thinking=(1.0, 1.0, 1.0), skill=1.0, plan_slip=0.0)


def panels(arms: Mapping[str, xr.Dataset]) -> list[Panel]:
    """Success by distance, one line for each kind of thought; a panel for each arm, checkpoint and grid point."""
    shown = list[Panel]()
    for label, part in estimates.columns(arms).items():
        met = part.isel(distance=np.flatnonzero((part["episodes"] > 0).all("member").values))
        success, x = met["success"].transpose("thought", "distance", "member"), met["distance"].values
        curves = {str(y["thought"].values): Curve(x, y.values, part["unit"].values) for y in success}
        if len(x):
            shown.append(Curves(curves, "moves from start to goal", f"{label}: success (%)", percent=True))
    return shown


@measure(panels=panels)
def thoughts(
    run: Run,
    checkpoint: str,
    *,
    episodes: int = 1024,
    speaker: Literal["none", "Larry", "Bob", "Alice"] = "Alice",
    shuffled: bool = False,
) -> xr.Dataset:
    """Whether thoughts carry: the model's own, another maze's, none, a right one.

    Args:
        episodes: of each member with each kind of thought, the same mazes for all; a multiple of 64 if more.
        speaker: who the model is told to be, by its badge; with none it chooses, once for all kinds of thought.
        shuffled: whether it also plays with the tokens of its own thought in another order.

    Returns:
        `success` float64[member, thought, distance], the share of episodes that reach the goal where it is so many
        moves of the planner away, NaN where there are none, of `episodes` int32[member, distance]; `overall`
        float64[member, thought], whatever the distance. A thought's worth is a difference of kinds, paired by member.
    """
    check_episodes(episodes)
    if not run.world.plan_length:
        raise ConfigError(f"{run.path}: nobody thinks in its world; give a run with --world.plan-length above 0")
    if run.world.badge == "null" and speaker != "none":
        raise ConfigError(f"--speaker={speaker}: no badge is told in the run's world; use none")
    who = jnp.int32(("none", *personas.PERSONAS).index(speaker) - 1)
    kinds = KINDS if shuffled else KINDS[:-1]
    succeeded, moves = each(played, run, checkpoint, shared=(who,), kinds=len(kinds), episodes=episodes)
    distance = np.arange(1, int(np.nan_to_num(moves).max()) + 1, dtype=np.int32)
    away = moves[:, None] == distance[:, None]
    count = away.sum(axis=-1, dtype=np.int32)
    share = (succeeded[:, :, None] & away[:, None]).sum(axis=-1) / np.where(count > 0, count, np.nan)[:, None]
    goal = "reach the goal" if run.world.has_goal else "have a return above 0"
    return xr.Dataset(
        {
            "success": variable("member thought distance", share, f"episodes that {goal}", "share"),
            "overall": variable("member thought", succeeded.mean(axis=-1), f"all that {goal}", "share"),
            "episodes": variable("member distance", count, "episodes at this distance", table=0),
        },
        {"thought": list(kinds), "distance": distance},
    )


def played(
    policy: Policy,
    world: base.World,
    parameters: Parameters,
    params: base.WorldParams,
    speaker: jax.Array,
    kinds: int,
    episodes: int,
) -> tuple[jax.Array, jax.Array]:
    """Which episodes of a member succeed, bool[kinds, episodes], and the planner's way in moves, float32[episodes].

    `speaker` int32[] is as in `rollout.told`.
    """
    count = min(episodes, AT_ONCE)
    named, opening = rollout.told(world, params, speaker, count)

    def part(key):
        maze_key, turn_key, other_key = jax.random.split(key, 3)
        keys = jax.random.split(maze_key, count)

        def play(opening):
            driver = rollout.policy_driver(policy, parameters, world, opening=opening)
            episodes, _, _ = rollout.play(world, named, keys, turn_key, driver, rollout.gumbel(count))
            return rollout.succeeded(world, episodes), world.opening(episodes.tokens)

        own, said = play(opening)
        plans = others(world, params, keys, said[:, world.spoken :], other_key)[: kinds - 1]
        openings = jnp.broadcast_to(said, (kinds - 1, *said.shape)).at[..., world.spoken :].set(plans)
        success = jnp.concatenate([own[None], jax.lax.map(lambda said: play(said)[0], openings)])
        return success, passes.moves(world, params, keys, turn_key)

    success, moves = jax.lax.map(part, jax.random.split(seeds.held_out("thoughts"), max(episodes // AT_ONCE, 1)))
    return jnp.moveaxis(success, 1, 0).reshape(kinds, -1), moves.reshape(-1)


def others(world: base.World, params, keys: jax.Array, plans: jax.Array, key: jax.Array) -> jax.Array:
    """Thoughts of the other four `KINDS`, int32[4, B, L], in mazes of keys [B] in which one thinks `plans` oneself."""
    right_key, order_key = jax.random.split(key)

    def write(key, maze):
        return world.write_plan(key, jnp.int32(personas.ALICE), world.reset_env(maze, params)[1], params, _RIGHT)

    right = jax.vmap(write)(jax.random.split(right_key, len(keys)), keys)
    # Draws are below 1, where the end stays.
    order = jnp.where(plans == tokens.PLAN_END, 1.0, jax.random.uniform(order_key, plans.shape))
    mixed = jnp.take_along_axis(plans, jnp.argsort(order, axis=1), axis=1)
    return jnp.stack([jnp.roll(plans, -1, axis=0), jnp.full_like(plans, tokens.PLAN_END), right, mixed])
