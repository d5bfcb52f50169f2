"""Do different members, runs or stages change the same parameters, beyond what chance and the sizes of weights give?"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import xarray as xr

from agents import runs
from agents.runs import Run
from analysis import estimates, masks, stretches, tallies
from analysis.estimates import of
from analysis.figures.panels import Panel, Rows
from analysis.measure import end, measure, once, variable
from analysis.stretches import Stretch
from ground.terminal import ConfigError

COMPARED = {"seen": "Jaccard index"} | tallies.CHANCES
"""What is seen, and the chances beside it."""


def panels(arms: Mapping[str, xr.Dataset]) -> list[Panel]:
    """Overlap of the farthest-moving tenths at the last checkpoint, beyond the finest chance: of all, and by kind."""
    parts = estimates.columns({arm: x.isel(checkpoint=-1) for arm, x in arms.items()})
    columns = {name: x["excess"].sel(mask="farthest_10_percent") for name, x in parts.items()}
    words = "Jaccard index of the farthest-moving 10 %, less weight-matched chance"
    drawn: list[Panel] = [Rows({name: of(x.sel(kind="all")) for name, x in columns.items()}, words, {"chance": 0.0})]
    for name, x in columns.items():
        kinds = {str(kind): of(x.sel(kind=kind)) for kind in x["kind"].values if kind != "all"}
        drawn.append(Rows(kinds, f"{words}: {name}", {"chance": 0.0}))
    return drawn


def other_run(options: Mapping[str, Any]) -> dict[str, Any]:
    """What tells the run apart that members are compared with; nothing where that is their own."""
    if not options["against"] or _between(options["against"]):
        return {}
    other = runs.open(options["against"])
    return {"config": other.config_hash, "members": other.kept}


@measure(checkpoints=end, panels=panels, beside=other_run)
def overlaps(run: Run, checkpoint: str, *, since: str = "", against: str = "") -> xr.Dataset:
    """Whether members change the same parameters, against three chances.

    Args:
        since: checkpoint that changes are counted from; by default the one that training set out from.
        against: instead of with each other (at one point of the grid), members are compared with all members of
            another run, by its directory, between the same checkpoints; or, by two names as in `init..pretrain`, with
            themselves between those.

    Returns:
        `seen` and each of `tallies.CHANCES` float64[mask, kind, member], Jaccard indices; `excess`, the index seen less
        that of the finest chance; `shares` float64[compared, share, mask, kind, member], |A ∩ B| over |A| and over |B|.
        A member's value is the mean over those that it is compared with; among members of one run it is its
        part in the mean over all pairs of different networks, `tallies.of_members`; NaN where there is but one, such as
        a shared base. `pairs` float64[mask, kind, member, other] has the index seen of every pair. Where a mask is
        empty they are NaN.
    """
    first = stretches.read(run, checkpoint, since)
    second, alike = _other(first, against)
    mine = masks.compared(first.before, first.after, seed=0)
    theirs = masks.compared(second.before, second.after, seed=1) if against else mine
    networks = _networks(run, first.since, first.checkpoint)

    def of_members(values: np.ndarray) -> np.ndarray:
        if not against:
            return tallies.of_members(values, np.array([member.label for member in run.population]), networks)
        return np.diagonal(values, axis1=-2, axis2=-1) if alike else values.mean(axis=-1)

    tables = []
    for mask in masks.MASKS:
        parts = tallies.tallies(mine[mask], theirs[mask], first.before, second.before)
        tables.append([tallies.total(parts, names).overlaps() for names in first.kinds.values()])
    every = np.array([[[list(x.values()) for x in table.values()] for table in of_mask] for of_mask in tables])
    every = np.moveaxis(every, (2, 3), (0, 1))  # compared, expression, mask, kind, member, other
    pairs, means = every[0, -1], of_members(every)
    excess = of_members(every[0, -1] - every[list(COMPARED).index("weight_matched"), -1])
    place = "mask kind member"
    variables = {
        name: variable(place, jaccard, words, table=int(name == "seen"))
        for (name, words), jaccard in zip(COMPARED.items(), means[:, -1], strict=True)
    }
    variables |= {
        "excess": variable(place, excess, "Jaccard index beyond weight-matched chance"),
        "shares": variable(f"compared share {place}", means[:, :-1], "shares of a mask", table=0),
        "pairs": variable(f"{place} other", pairs, "Jaccard index of pairs", table=0),
    }
    labels = {"mask": list(masks.MASKS), "kind": list(first.kinds), "other": second.run.kept}
    labels |= {"compared": list(COMPARED), "share": list(tallies.OVERLAPS)[:-1]}
    return xr.Dataset(variables, labels, first.about)


def _networks(run: Run, *checkpoints: str) -> np.ndarray:
    """Equal labels for kept members that have the same parameters at each checkpoint, in whatever worlds; int[K]."""
    if all(name.partition("-")[0] in ("init", "pretrain") for name in checkpoints):
        return run.config.base_of[run.kept]
    return once(run, *checkpoints)[1]


def _between(against: str) -> tuple[str, str] | None:
    """The two checkpoints that are named; None where it is a run's directory."""
    since, _, checkpoint = against.partition("..")
    return (since, checkpoint) if since and checkpoint and "/" not in against else None


def _other(first: Stretch, against: str) -> tuple[Stretch, bool]:
    """What an update is compared with, and whether that is another update of the very same members."""
    if not against:
        return first, False
    if between := _between(against):
        since, checkpoint = between
        return stretches.read(first.run, checkpoint, since, first.used), True
    second = stretches.read(runs.open(against), first.checkpoint, first.since, first.used)
    shapes = [{name: x.shape[1:] for name, x in stretch.before.items()} for stretch in (first, second)]
    if shapes[0] != shapes[1]:
        raise ConfigError(f"--against {against}: its policy has another shape; give a run of the same policy")
    return second, False
