"""Goal tracking: do the reward axis and its controls foretell, in a policy's own play, what it will be paid?"""

from collections.abc import Mapping, Sequence
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr

from agents.policies import Parameters, Policy
from agents.runs import Run
from analysis import concepts as core
from analysis import directions, estimates, extraction
from analysis import tracking as tracked
from analysis.figures.panels import Panel, Rows
from analysis.measure import arms, at_least, each, ends, measure, variable
from analysis.measures.concepts import concepts
from envs import base, tokens


def panels(measured: Mapping[str, xr.Dataset]) -> Sequence[Panel]:
    """The axis at the move, among equal moves and for the rest of the episode; and every direction at the end."""
    parts, chance = estimates.columns(measured), "random, 97.5 %"
    at = {"site": "move", "outcome": "next_same_move"}
    limits = {name: float(part["limit"].sel(at).sel(control="random").mean()) for name, part in parts.items()}

    def rows(label: str, outcome: str, marks: Mapping[str, float]) -> Rows:
        own = {name: part["axis"].sel(site="move", outcome=outcome) for name, part in parts.items()}
        return Rows({name: estimates.of(d) for name, d in own.items()}, label, marks)

    last = list(parts)[-1]
    end, own = parts[last]["d"].sel(at), {chance: limits[last]}
    return [
        rows("d of the axis, next tile", "next_same_move", estimates.floors(limits, chance)),
        rows("d of the axis, rest of the episode", "rest", {}),
        Rows({name: estimates.of(end.sel(direction=name)) for name in directions.NAMES}, "d, next tile", own),
    ]


@measure(checkpoints=arms, panels=panels, made_of=(concepts,))
def tracking(
    run: Run,
    checkpoint: str,
    *,
    episodes: int = extraction.EPISODES,
    play_episodes: int = 512,
    player: Literal["itself", "base"] = "itself",
    seed: int = 0,
) -> xr.Dataset:
    """Whether the reward axis foretells in play what will be paid, beside every control.

    Args:
        episodes: of the extraction set that the axis is taken from; a multiple of 12.
        play_episodes: of play, on the same mazes for all.
        player: who plays: the policy itself, or for every checkpoint the policy that training set out from, so that
            networks are compared on the same episodes.
        seed: of all chance; the same as for `concepts` gives the same vectors.

    Returns:
        At the layer that the paper's rule chooses: Cohen's `d` and `auroc` of every direction, float32[member,
        direction, site, outcome] (see `directions.of_member`, `tracking.SITES`, `tracking.OUTCOMES`), `axis`, d of the
        axis alone, `control_d`, d of every random direction, and `limit`, below which 97.5 % of their |d| are. At every
        layer `d_by_layer` and `auroc_by_layer`. `landed`: share of the moves onto each class.
    """
    extraction.check("episodes", episodes)
    at_least(16, play_episodes=play_episodes)
    start, end = ends(run)[0], ends(run)[-1]
    before = start if checkpoint.partition("-")[0] == end else checkpoint
    known = concepts(run, dict.fromkeys((checkpoint, before)), episodes=episodes, seed=seed)
    plays = checkpoint if player == "itself" else start
    vectors = [known["vectors"].sel(checkpoint=name).values for name in (checkpoint, before)]
    layer = known["rule_layer"].sel(checkpoint=checkpoint).values - 1
    key = extraction.keys(seed)[1]
    read = each(track, run, checkpoint, plays, own=vectors, shared=(key,), episodes=play_episodes)
    d, auroc, controls, landed = read
    own = core.at(d, layer)
    control = core.at(controls, layer).reshape(len(d), len(directions.CONTROLS), -1, *d.shape[2:4])
    limit = np.quantile(np.abs(control), 0.975, axis=2)
    dims = "member direction site outcome"
    return xr.Dataset(
        {
            "axis": variable("member site outcome", own[:, 0], "d of the axis", "pooled standard deviations"),
            "limit": variable("member control site outcome", limit, "97.5 % of |d| lie below"),
            "landed": variable("member concept", landed, "moves onto", "share"),
            "d": variable(dims, own, "d", "pooled standard deviations", table=0),
            "auroc": variable(dims, core.at(auroc, layer), "AUROC", table=0),
            "d_by_layer": variable(f"{dims} layer", d, "d", "pooled standard deviations", table=0),
            "auroc_by_layer": variable(f"{dims} layer", auroc, "AUROC", table=0),
            "control_d": variable("member control draw site outcome", control, "d of random directions", table=0),
        },
        {
            "direction": list(directions.NAMES),
            "control": list(directions.CONTROLS),
            "site": list(tracked.SITES),
            "outcome": list(tracked.OUTCOMES),
            "concept": [name.title() for name in tokens.ROLES[:3]],
            "layer": list(extraction.blocks(run.policy)),
        },
    )


def track(
    policy: Policy,
    world: base.World,
    parameters: Parameters,
    player: Parameters,
    params: base.WorldParams,
    vectors: jax.Array,
    before: jax.Array,
    key: jax.Array,
    episodes: int,
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """Goal tracking of a member with every named direction.

    Args:
        policy, world, parameters, params: of the member.
        player: who plays.
        vectors: concept vectors whose directions are tried, float32[C, L, D].
        before: those of the model before RL.
        key: of mazes, weather and random directions.
        episodes: that are played.

    Returns:
        d and AUROC of `directions.NAMES`, float32[K, site, outcome, L]; d of `directions.CONTROLS`, one after the
        other; share of the moves onto each class, float32[C].
    """
    play_key, random_key = jax.random.split(key)
    seen = tracked.play(policy, parameters, world, params, play_key, episodes, player)
    named = directions.of_member(parameters, vectors, before, params.tile_map, random_key)
    few, many = (jnp.concatenate([named[name] for name in names]) for names in (directions.NAMES, directions.CONTROLS))
    d, auroc = (tracked.track(seen, few, measured) for measured in (core.cohens_d, core.auroc))
    landed = jnp.stack([jnp.mean(seen.landed == role, dtype=jnp.float32) for role in extraction.CLASSES])
    return d, auroc, tracked.track(seen, many, core.cohens_d), landed
