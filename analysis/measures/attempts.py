"""Many attempts at held-out mazes: pass@k, Cover@τ, and how many ways to the goal a policy still tries.

pass@k at a large k counts mazes that luck solves too, a random player's among them; Cover@τ (arXiv 2510.08325), the
share of mazes of which at least a share τ of the attempts succeeds, does not. pass@k is its mean over τ, weighted by
k (1 − τ)^(k − 1), so most by the unreliable.
"""

from collections.abc import Mapping

import jax
import numpy as np
import xarray as xr

from agents.runs import Run
from agents.runs import config as configs
from analysis import estimates, passes
from analysis.figures.panels import Curve, Curves, Panel
from analysis.measure import at_least, measure, once, progress, variable

SLICES = ("near", "far")
"""See `slices`."""
TAUS = np.arange(1, 11) / 10
"""The τ at which Cover@τ is told."""


def panels(arms: Mapping[str, xr.Dataset]) -> list[Panel]:
    """pass@k and Cover@τ of every arm beside a random player's; and success at one attempt by distance."""
    parts = estimates.columns(arms)
    worlds = estimates.columns({arm: dataset.isel(checkpoint=-1) for arm, dataset in arms.items()})

    def curves(name: str, x: str) -> dict[str, Curve]:
        players = {label: part[name].transpose(x, "member") for label, part in parts.items()}
        drawn = {label: Curve(y[x].values, y.values, y["unit"].values) for label, y in players.items()}
        chance = {label: part.isel(member=0)[f"random_{name}"] for label, part in worlds.items()}
        floors = estimates.floors(chance, "random player")
        return drawn | {label: Curve(y[x].values, y.values) for label, y in floors.items()}

    shown: list[Panel] = [
        Curves(curves("pass_at_k", "k"), "k, attempts at a maze", "pass@k (% of mazes)", percent=True, log_x=True),
        Curves(curves("cover", "tau"), "τ, share of attempts", "Cover@τ (% of mazes)", percent=True),
    ]
    by_distance = {}
    for label, part in parts.items():
        if part["distance"].dims == ("maze",) and np.isfinite(part["distance"]).any():
            near = (part["successes"] / int(part["k"][-1])).groupby("distance").mean().transpose("distance", "member")
            by_distance[label] = Curve(near["distance"].values, near.values, part["unit"].values)
    if by_distance:
        shown.append(Curves(by_distance, "moves from start to goal", "success at one attempt (%)", percent=True))
    return shown


@measure(also=("pass-at-k",), panels=panels)
def attempts(
    run: Run, checkpoint: str, *, samples: int = 256, mazes: int = 128, temperature: float = 1.0
) -> xr.Dataset:
    """How often one of k attempts at a held-out maze succeeds, and of how many mazes most attempts do.

    Args:
        samples: attempts of each member at each maze, n; pass@k is told for k = 1, 2, 4 … n.
        mazes: how many, the same for every member and checkpoint; fewer are the first of more.
        temperature: of plans and actions.

    Returns:
        `successes` int32[member, maze], attempts of n that reach the goal, or have a return above 0 where there is
        none; `distinct` int32[member, maze], different sequences of actions among them, and `ways` float64[member],
        their mean; `pass_at_k` float64[member, k] without bias; `cover` float64[member, tau];
        `sliced_pass_at_k` float64[member, slice, k], of the mazes of `slices` alone. `random_successes`,
        `random_pass_at_k` and `random_cover` are those of a player that moves at random, without members, unless the
        world is swept and each has its own. `distance` of a maze is the planner's way to the goal in moves, NaN where
        it does not get there in time or there is none.
    """
    at_least(1, samples=samples, mazes=mazes)
    configs.check_range("temperature", temperature)
    first, again = once(run, checkpoint)
    ours = jax.tree.map(np.asarray, run.params)
    parameters, params = jax.tree.map(lambda x: x[first], (run.kept_parameters(checkpoint), ours))
    played = passes.measure(run.policy, parameters, run.world, params, mazes, samples, temperature, progress)

    of_worlds = [tuple(x for path, x in one.values.items() if path.startswith("world.")) for one in run.population]
    swept = [of_worlds.index(one) for one in of_worlds]
    _, worlds, of_world = np.unique(swept, return_index=True, return_inverse=True)
    params = jax.tree.map(lambda x: x[worlds], ours)
    chance = passes.measure(None, {}, run.world, params, mazes, samples).successes

    ks = passes.powers(samples)
    pass_at_k, cover = _told(played.successes, ks)
    random_pass, random_cover = _told(chance, ks)
    whose = "" if len(worlds) == 1 else "member "

    def floor(values: np.ndarray) -> np.ndarray:
        return values[0] if len(worlds) == 1 else values[of_world]

    counts, distinct = played.successes[again], played.distinct[again]
    distance, chances = floor(np.asarray(passes.distances(run.world, params, mazes))), floor(chance)
    goal, share = "reach the goal" if run.world.has_goal else "have a return above 0", "share of mazes"
    return xr.Dataset(
        {
            "successes": variable("member maze", counts, f"attempts that {goal}", table=0),
            "distinct": variable("member maze", distinct, "different ways among successes", table=0),
            "ways": variable("member", distinct.mean(axis=1), "different successful ways", "per maze"),
            "pass_at_k": variable("member k", pass_at_k[again], "pass@k", share),
            "cover": variable("member tau", cover[again], "Cover@τ", share),
            "sliced_pass_at_k": variable("member slice k", _sliced(counts, distance, chances, ks), "pass@k", share),
            "random_successes": variable(f"{whose}maze", chances, "a random player's", table=0),
            "random_pass_at_k": variable(
                f"{whose}k", floor(random_pass), "a random player's pass@k", share, independent="point"
            ),
            "random_cover": variable(
                f"{whose}tau", floor(random_cover), "a random player's Cover@τ", share, independent="point"
            ),
        },
        {
            "maze": np.arange(mazes),
            "k": ks,
            "tau": TAUS,
            "slice": list(SLICES),
            "distance": (f"{whose}maze".split(), distance),
        },
    )


def _told(successes: np.ndarray, ks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """pass@k float64[M, K] and Cover@τ float64[M, T] of successes int32[M, mazes]; the last k is how many attempts."""
    samples = int(ks[-1])
    return passes.pass_at_k(successes, samples, ks).mean(axis=-2), passes.cover(successes, samples, TAUS)


def slices(distance: np.ndarray, chance: np.ndarray) -> np.ndarray:
    """Which mazes are near, and which are far and beyond luck, bool[2, …, mazes], as `SLICES` names them.

    Near is where the planner's way is no longer than its median; far, where it is longer and a random player never
    succeeded, so that luck does not help; the rest is in neither. Where mazes have no distance, near is where that
    player succeeded, and far where it did not.

    Args:
        distance: the planner's way in moves, float[…, mazes], NaN where it does not get there.
        chance: successes of a player that moves at random, int[…, mazes].
    """
    solved = chance > 0
    if np.isnan(distance).all():
        return np.stack([solved, ~solved])
    middle = np.nanmedian(distance, axis=-1, keepdims=True)
    return np.stack([distance <= middle, (distance > middle) & ~solved])


def _sliced(successes: np.ndarray, distance: np.ndarray, chance: np.ndarray, ks: np.ndarray) -> np.ndarray:
    """pass@k float64[M, slices, K] of the mazes of each slice; NaN where there are none."""
    each = passes.pass_at_k(successes, int(ks[-1]), ks)
    inside = np.moveaxis(slices(distance, chance), 0, -2)  # [slices, mazes], or [M, slices, mazes]
    weight = inside / np.where(inside.any(axis=-1), inside.sum(axis=-1), np.nan)[..., None]
    return np.asarray(weight @ each)


def per_maze(dataset: xr.Dataset, k: int) -> xr.DataArray:
    """pass@k of each maze by itself, without bias: float64[…, member, maze], for intervals over both.

    Args:
        dataset: from `attempts`.
        k: attempts allowed, 1 to n.
    """
    successes, samples = dataset["successes"], int(dataset["k"][-1])
    values = passes.pass_at_k(successes.values, samples, [k])[..., 0]
    return successes.copy(data=values).assign_attrs(long_name=f"pass@{k}", units="chance")
