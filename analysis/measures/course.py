"""The course of a run: what training did along the way, the same panel for every arm.

Nothing is measured here. It brings together what other measurements say of each checkpoint, each of which is kept by
itself, so that a number of the course is the number of that measurement.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import xarray as xr

from agents.runs import Run, stages
from analysis import estimates, stretches
from analysis.figures.panels import Curve, Curves, Panel
from analysis.measure import Measurement, ends, measure, progress, variable
from analysis.measures.attempts import attempts
from analysis.measures.divergence import divergence
from analysis.measures.ledger import ledger
from analysis.measures.returns import returns
from analysis.measures.spectra import spectra
from analysis.measures.updates import updates

AXES = {
    "update": ("updates", 1.0, "update"),
    "tokens": ("tokens", 1e-6, "tokens of each member (millions)"),
    "kl": ("kl", 1.0, "KL from the base (nats per episode)"),
}
"""What the course can be drawn against: a variable, its factor, and what the axis says."""

FOLLOWED = ("checkpoint", "member")
"""The axes of a number that is followed through training."""
_PLACES = {"kind": "all", "policy": "model"}
"""Where something is measured in several places, which one the course shows."""


def stretch(run: Run) -> list[str]:
    """The checkpoint that the last stage set out from, and all of that stage."""
    first, last = ["init", *ends(run)][-2:]
    return [first, *(name for name in run.checkpoints() if name.partition("-")[0] == last)]


def panels(arms: Mapping[str, xr.Dataset]) -> list[Panel]:
    """Small multiples against what the course was asked to be drawn against; see `drawn`."""
    return drawn(arms, json.loads(next(iter(arms.values())).attrs["options"])["against"])


def drawn(arms: Mapping[str, xr.Dataset], against: str) -> list[Panel]:
    """Small multiples: a panel for each number, in it a line for each arm and point of the grid.

    What has several places, such as channels, is one panel with a line for each where there is one arm.

    Args:
        arms: datasets of numbers, with that of the horizontal axis among them.
        against: one of `AXES`.
    """
    axis, factor, across = AXES[against]
    parts = estimates.columns(arms, followed=True)
    shown: dict[tuple[str, str], tuple[xr.DataArray, dict[str, Curve]]] = {}
    for label, dataset in parts.items():
        x = factor * dataset[axis].transpose("checkpoint", "member").values
        within = np.ones(len(x), bool)
        if "updates" in dataset:  # other stages have a place by KL, and are no part of this one
            within = np.isfinite(dataset["updates"].transpose("checkpoint", "member").values).all(axis=1)
        for words, array in estimates.places(dataset.drop_vars(axis), FOLLOWED):
            values = array.transpose("checkpoint", "member").values
            steps = np.flatnonzero(within & np.isfinite(x).all(axis=1) & np.isfinite(values).any(axis=1))
            if not len(steps):
                continue
            steps = steps[np.argsort(x[steps].mean(axis=1), kind="stable")]
            place = ", ".join(words)
            panel, line = ("", place or label) if len(parts) == 1 else (place, label)
            _, curves = shown.setdefault((str(array.name), panel), (array, {}))
            curves[line] = Curve(x[steps], values[steps], dataset["unit"].values[steps])
    panels = list[Panel]()
    for (_, place), (array, curves) in shown.items():
        percent = array.attrs["units"].startswith("share")
        words = estimates.described(array.assign_attrs(units=array.attrs["units"].replace("share", "%", 1)))
        panels.append(Curves(curves, across, ", ".join(filter(None, [words, place])), percent=percent))
    return panels


def sources(
    run: Run, episodes: int, samples: int, mazes: int
) -> tuple[tuple[Measurement, dict[str, Any], tuple[str, ...]], ...]:
    """Where each number of a course comes from: a measurement, its options, the names of the numbers.

    Args:
        run: whose world says what there is.
        episodes, samples, mazes: as in `course`.
    """
    parts: Any = (
        (returns, {"episodes": episodes}, ("success", "return")),
        (divergence, {"episodes": min(episodes, 512)}, ("kl", "kl_by_channel", "entropy")),
        (updates, {}, ("paper", "norm")),
        (spectra, {}, ("rank_share_above_rounding", "stable_rank")),
        (attempts, {"samples": samples, "mazes": mazes}, ("sliced_pass_at_k", "ways")),
    )
    if run.world.badge != "null":
        sizes = {"mazes": min(max(mazes, 2), 32), "episodes": min(max(samples, 8), 64)}
        parts += ((ledger, sizes, ("survival", "told_success")),)
    return parts


def chosen(part: xr.Dataset, names: Iterable[str], samples: int) -> xr.Dataset:
    """Those of a measurement's numbers that a course shows, where it shows them."""
    part = part[[name for name in names if name in part]]
    part = part.sel({name: place for name, place in _PLACES.items() if name in part.dims}, drop=True)
    if "sliced_pass_at_k" in part:
        named = part["sliced_pass_at_k"].sel(k=samples, drop=True).assign_attrs(long_name=f"pass@{samples}")
        part = part.drop_dims("k").assign(sliced_pass_at_k=named)
    return part


def passed(run: Run, checkpoints: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Updates of the last stage behind each checkpoint, and tokens of each member in them, float64[C]; NaN before."""
    last, within = stages.make_stage(run.config, ends(run)[-1]), stretch(run)
    behind = [stretches.updates_behind(run, name, last.name) if name in within else np.nan for name in checkpoints]
    seen = np.array(behind, np.float64)
    return seen, last.tokens_per_update // last.members * seen


@measure(checkpoints=stretch, panels=panels, made_of=(returns, divergence, updates, spectra, attempts, ledger))
def course(
    run: Run,
    checkpoint: str,
    *,
    against: Literal["update", "tokens", "kl"] = "update",
    episodes: int = 1024,
    samples: int = 64,
    mazes: int = 128,
) -> xr.Dataset:
    """What training did along the way: skill, entropy, KL, weights, pass@k, distinct solutions, badges.

    Args:
        against: what the figure is drawn against: updates of the last stage, tokens trained on in it, or KL.
        episodes: behind returns, and up to 512 of them behind KL and entropy; a multiple of 64.
        samples: attempts at each maze, k of pass@k.
        mazes: that are attempted; up to 32 of them, with up to 64 episodes each, are behind what has become of badges.

    Returns:
        By member: `success` and `return` of `returns`; `kl`, `kl_by_channel` and `entropy` of `divergence`; of all
        parameters together `paper` and `norm` of `updates`, `rank_share_above_rounding` and `stable_rank` of `spectra`;
        `sliced_pass_at_k` of `attempts` at the most attempts, [slice], and `ways`; where there are badges `survival` of
        `ledger`, [persona], and `told_success` of the model. `updates` and `tokens` of the last
        stage so far, NaN before it.
    """
    parts = sources(run, episodes, samples, mazes)
    told = xr.Dataset()
    for done, (measurement, options, names) in enumerate(parts):
        part = measurement(run, [checkpoint], **options).isel(checkpoint=0, drop=True)
        part = chosen(part, names, samples).reset_coords(drop=True)
        told = told.assign(part.drop_vars("member").variables)
        progress((done + 1) / len(parts))
    seen, tokens = (np.repeat(x, len(run.kept)) for x in passed(run, [checkpoint]))
    return told.assign(
        updates=variable("member", seen, "updates of the last stage", table=0),
        tokens=variable("member", tokens, "tokens trained on in it", table=0),
    )
