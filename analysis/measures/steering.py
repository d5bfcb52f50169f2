"""Steering: what pushing along the reward axis does to behaviour, or removing it, beside every control."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr

from agents.runs import Run
from analysis import directions, estimates, extraction
from analysis import steering as steered
from analysis.figures.panels import Curve, Curves, Panel
from analysis.measure import at_least, ends, mapped, measure, variable
from analysis.measures.concepts import concepts
from envs import base, tokens
from ground import seeds
from ground.terminal import ConfigError

DIRECTIONS = (*directions.NAMES, "random")
"""As in `directions.of_member`; `random` is the mean over all of them."""
EFFECTS = (*steered.EFFECTS, "return")
EMOJI = ("own", "unseen")
"""In the world that the member knows, and with three emoji for the tiles that it has never met."""


def panels(measured: Mapping[str, xr.Dataset]) -> Sequence[Panel]:
    """What the axis, Path and random directions do to each behaviour at the last checkpoint, by strength."""
    parts = estimates.columns({arm: dataset.isel(checkpoint=-1) for arm, dataset in measured.items()})

    def curves(effect: str) -> Curves:
        lines = {}
        for column, dataset in parts.items():
            part = dataset["steered"].sel(emoji="own", effect=effect)
            for name in ("axis", "path", "random"):
                values = part.sel(direction=name).transpose("strength", "member").values
                line = Curve(part["strength"].values, values, dataset["unit"].values)
                lines[f"{column}, {name}" if len(parts) > 1 else name] = line
        return Curves(lines, "strength, half-distances from Mold to Gold", effect.replace("_", " "))

    return [curves(effect) for effect in EFFECTS]


@measure(also=("steer",), panels=panels, made_of=(concepts,))
def steering(
    run: Run,
    checkpoint: str,
    *,
    strengths: tuple[float, ...] = steered.STRENGTHS,
    extraction_episodes: int = extraction.EPISODES,
    episodes: int = 32,
    play_episodes: int = 128,
    layer: int = 0,
    seed: int = 0,
) -> xr.Dataset:
    """What pushing a policy along the reward axis of the trained one does to its behaviour, or removing it.

    Args:
        strengths: in units of half the distance between the class means of Mold and Gold.
        extraction_episodes: of the extraction set that the axis is taken from; a multiple of 12.
        episodes: own episodes of each member in which its choices are asked for.
        play_episodes: behind each return; the same mazes for every direction, strength and member.
        layer: the block after which to push; 0 for the layer that the paper's rule chooses for each member.
        seed: of all chance; the same as for `concepts` gives the same vectors.

    Returns:
        `steered` float32[member, emoji, direction, strength, effect] at `layer`, see `DIRECTIONS`, `EFFECTS`, `EMOJI`;
        `swing`, its change from the lowest strength to the highest, and of the axis alone `axis`; `limit`, below which
        97.5 % of random directions' |swing| are, of `random_swing`; `removed`, behaviour without a direction, and
        `random_removed`; `plain`, behaviour as it is. Only `steering.PLAYED` random directions have returns.
    """
    extraction.check("extraction-episodes", extraction_episodes)
    at_least(1, episodes=episodes, play_episodes=play_episodes)
    if 0.0 not in strengths or len(np.unique(np.array(strengths, np.float32))) < max(3, len(strengths)):
        raise ConfigError(f"--strengths={list(strengths)}: give at least three different numbers, 0 among them")
    if not 0 <= layer <= run.config.policy.layers:
        raise ConfigError(f"--layer={layer}: use 0 for the rule's, or a block from 1 to {run.config.policy.layers}")
    start, end = ends(run)[0], ends(run)[-1]
    known = concepts(run, dict.fromkeys((start, end)), episodes=extraction_episodes, seed=seed)
    vectors, before = (known["vectors"].sel(checkpoint=name).values for name in (end, start))
    rule = known["rule_layer"].sel(checkpoint=end).values
    blocks = np.full_like(rule, layer) if layer else rule
    name_key, key = jax.random.split(seeds.held_out("steering", seed))
    parameters, trained = (run.kept_parameters(name) for name in (checkpoint, end))
    tried = np.asarray(steered.named_directions(trained, vectors, before, run.params.tile_map, name_key))
    levels = tuple(sorted(map(float, strengths)))
    options = (("strengths", levels), ("episodes", episodes), ("play_episodes", play_episodes))

    def steer(params: base.WorldParams) -> dict[str, np.ndarray]:
        members = (parameters, params, tried, blocks - 1)
        return _arrays(mapped(steered.steer, run.policy, run.world, options, members, (key,)))

    others = jnp.array(tokens.UNSEEN_TILES[:3], jnp.int32)[None]
    unseen = dataclasses.replace(run.params, tile_map=run.params.tile_map.at[:, :3].set(others))
    both = jax.tree.map(lambda *parts: np.stack(parts, axis=1), steer(run.params), steer(unseen))
    dims = "member emoji direction effect"
    return xr.Dataset(
        {
            "plain": variable("member emoji effect", both["plain"], "not steered, emoji"),
            "axis": variable("member emoji effect", both["swing"][:, :, 0], "swing along the axis, emoji"),
            "limit": variable("member emoji effect", both["limit"], "97.5 % of random |swings| lie below, emoji"),
            "layer": variable("member", blocks, "steered after block", table=0),
            "swing": variable(dims, both["swing"], "swing", table=0),
            "removed": variable(dims, both["removed"], "without the direction", table=0),
            "steered": variable("member emoji direction strength effect", both["steered"], "steered", table=0),
            "random_swing": variable("member emoji draw effect", both["random_swing"], "swing", table=0),
            "random_removed": variable("member emoji draw effect", both["random_removed"], "without it", table=0),
        },
        {"emoji": list(EMOJI), "direction": list(DIRECTIONS), "strength": list(levels), "effect": list(EFFECTS)},
    )


def _arrays(found: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The arrays of one world, axis 0 the member, by the names of variables."""
    count = len(directions.NAMES)

    def joined(choose: Callable[[np.ndarray], np.ndarray], effects: Any, returns: Any) -> np.ndarray:
        """Effects and returns on one last axis, after something was done to each of them."""
        return np.concatenate([choose(effects), choose(returns[..., None])], axis=-1)

    def by_name(values: np.ndarray) -> np.ndarray:
        return np.concatenate([values[:, :count], values[:, count:].mean(axis=1, keepdims=True)], axis=1)

    def padded(values: np.ndarray) -> np.ndarray:
        """Returns float32[M, K, 1] of the random directions, NaN where none was played."""
        rest = found["effects"].shape[1] - count - values.shape[1]
        return np.pad(values, ((0, 0), (0, rest), (0, 0)), constant_values=np.nan)

    pushed, played = (x[:, count:, -1] - x[:, count:, 0] for x in (found["effects"], found["returns"]))
    values = joined(by_name, found["effects"], found["returns"])
    return {
        "plain": np.concatenate([found["plain"], found["plain_return"][:, None]], axis=-1),
        "steered": values,
        "swing": values[..., -1, :] - values[..., 0, :],
        "limit": joined(lambda x: np.quantile(np.abs(x), 0.975, axis=1), pushed, played),
        "removed": joined(by_name, found["ablated"], found["ablated_returns"]),
        "random_swing": joined(padded, pushed, played),
        "random_removed": joined(padded, found["ablated"][:, count:], found["ablated_returns"][:, count:]),
    }
