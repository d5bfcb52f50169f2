"""What is said of an update: the document, the table of its matrices, and the lines for the terminal."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table

from agents.runs.config import Member
from analysis import changes, overlaps, spectra, updates, weights
from analysis.changes import Update

MEANINGS: dict[str, str] = {
    **{name: meaning for name, (_, _, _, meaning) in updates.DEFINITIONS.items()},
    **updates.CONCENTRATIONS,
    **spectra.MEASURES,
    **changes.MASKS,
    "*_principal": "share of the mask in the half of the matrix that is largest in the rank-r reconstruction of W",
    "*_low_magnitude": "share of the mask in the half of the matrix with the smallest |w|",
    "baseline": "what chance gives for both: the density of either half",
    **overlaps.CHANCES,
    **overlaps.OVERLAPS,
    "excess": "Jaccard index seen minus that of the weight-matched chance",
    "learning_rate_sum": "learning rate summed over the optimiser steps between the checkpoints",
}
"""Every measure of the document, by name."""


def measures(update: Update, members: Sequence[int]) -> dict[str, Any]:
    """Fractions and shape of an update per kind: every member's, and the mean over `members` with its interval."""
    kinds = updates.kinds(update.before)
    found = {"fractions": update.fractions, "shape": update.shape}
    of_kinds = {key: {kind: x[kind] for kind in kinds if kind in x} for key, x in found.items()}
    return of_kinds | {f"{key}_intervals": changes.estimates(x, members) for key, x in of_kinds.items()}


def steps(update: Update, rate: np.ndarray) -> dict[str, Any]:
    """How far the schedule could have carried a parameter, beside the size of one.

    Args:
        update: the update.
        rate: learning rate summed over its steps, float64[M].
    """
    median = {kind: updates.median_weight(update.before, names) for kind, names in updates.kinds(update.before).items()}
    return {
        "learning_rate_sum": rate,
        "median_weight": median,
        "learning_rate_sum_over_median_weight": {kind: rate / np.where(x > 0, x, np.nan) for kind, x in median.items()},
    }


def group(update: Update, rate: np.ndarray, members: list[int]) -> dict[str, Any]:
    """What is said of the members at one point of the grid."""
    told = measures(update, members)
    ratio = steps(update, rate)["learning_rate_sum_over_median_weight"]["all"]
    return {
        "members": members,
        "fractions": told["fractions_intervals"],
        "shape": told["shape_intervals"],
        "learning_rate_sum": float(rate[members].mean()),
        "learning_rate_sum_over_median_weight": float(ratio[members].mean()),
        "overlaps": changes.compare(update, update, members),
    }


def curves(update: Update) -> dict[str, Any]:
    """The curves of the fraction: view → scale → kind → mean over members, and the ends of its interval."""
    found: dict[str, Any] = {"tolerances": updates.TOLERANCES}
    for v, view in enumerate(updates.VIEWS):
        found[view] = {scale: {} for scale in updates.SCALES}
        for s, scale in enumerate(updates.SCALES):
            for kind in updates.kinds(update.before):
                values = update.curves[kind][:, v, s].T
                low, high = changes.interval(values)
                found[view][scale][kind] = {"mean": values.mean(axis=1), "low": low, "high": high}
    return found


def course(names: Sequence[str], shares: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """The time course: view → kind → state → [checkpoint][member].

    Args:
        names: of the C checkpoints.
        shares: kind → float64[C, M, views, states].
    """
    note = "as seen at these checkpoints: what changed and was cancelled between two of them counts as never touched"
    found: dict[str, Any] = {"note": note, "checkpoints": list(names)}
    for v, view in enumerate(updates.VIEWS):
        found[view] = {
            kind: dict(zip(updates.STATES, np.moveaxis(x[:, :, v], -1, 0), strict=True)) for kind, x in shares.items()
        }
    return found


def rows(update: Update, population: Sequence[Member]) -> dict[str, list]:
    """The table of an update, a row per member and matrix: column name → values."""
    of_kind = {name: kind for kind, names in updates.kinds(update.before).items() if kind != "all" for name in names}
    shapes = list(update.shape["all"])
    told = []
    for index, member in enumerate(population):
        for name, size in updates.sizes(update.before).items():
            shape = update.shape.get(name, {})
            told.append({
                "member": index, "seed": member.seed, **member.values, "matrix": name, "kind": of_kind[name],
                "layer": weights.layer(name), "role": weights.role(name), "parameters": size,
                **{key: float(values[index]) for key, values in update.fractions[name].items()},
                **{key: float(shape[key][index]) if key in shape else None for key in shapes},
            })  # fmt: skip
    return {key: [row[key] for row in told] for key in told[0]}


_COLUMNS = (
    "parameters", "changed\nin bf16\n%", "bf16\n> 1e-5\n%", "relative\n> 1e-3\n%", "holding\n90 % of\n‖Δ‖², %",
    "stable\nrank", "NSS\n10⁻³", "Jaccard\nof two\n%", "by\nchance\n%",
)  # fmt: skip


def show(console: Console, document: Mapping[str, Any]) -> None:
    """The tables that can be read in ten seconds, one per point of the grid."""
    for told in document["groups"]:
        title = f"{document['before']} → {document['after']}, stored in {document['stored_dtype']}, {told['label']}"
        table = Table(title=f"{title} ({len(told['members'])})", title_justify="left", box=box.SIMPLE_HEAD, padding=0)
        for index, name in enumerate(_COLUMNS):
            table.add_column(name, justify="right" if index else "left", overflow="fold")
        for kind, count in document["parameters"].items():
            fractions, shape = told["fractions"][kind], told["shape"].get(kind)
            cells = [_cell(fractions[key], 100) for key in ("changed_bf16", "paper", "relative", "holding_90")]
            cells += (
                [_cell(shape["stable_rank"]), _cell(shape["normalised_spectral_shift"], 1e3)] if shape else ["", ""]
            )
            overlap = told["overlaps"]["farthest_10_percent"][kind]
            cells += [_cell(overlap["seen"]["jaccard"], 100), _number(100 * overlap["weight_matched"]["jaccard"])]
            label = kind.replace("embedding_", "embedded, ")
            table.add_row(f"{label}\n[dim]{count:,}[/]", *cells, style="bold" if kind == "all" else "")
        console.print(table)
        console.print(
            f"learning rate summed over the steps: {told['learning_rate_sum']:.3g}, "
            f"that is {told['learning_rate_sum_over_median_weight']:.3g} of the median |w|"
        )
    console.print(
        "Second lines: 95 % interval over members. Jaccard: the 10 % of the parameters that moved farthest in two "
        "members; chance: drawn anew within each matrix among weights of similar size.",
        style="dim",
    )
    if "against" in document:
        overlap = document["against"]["overlaps"]["farthest_10_percent"]["all"]
        seen, chance = overlap["seen"]["jaccard"]["mean"], overlap["weight_matched"]["jaccard"]
        console.print(f"against {document['against']['run']}: Jaccard {seen:.2f}, chance {chance:.2f}")


def _cell(estimate: Mapping[str, float], scale: float = 1) -> str:
    """A mean and under it its interval."""
    mean, low, high = (_number(scale * estimate[key]) for key in ("mean", "low", "high"))
    return mean if low == "–" else f"{mean}\n[dim]{low}–{high}[/]"


def _number(value: float) -> str:
    if not np.isfinite(value):
        return "–"
    return (
        f"{value:.1g}"
        if value < 0.1
        else f"{value:.2g}"
        if value < 10
        else f"{value:.1f}"
        if 99 < value < 100
        else f"{value:.0f}"
    )
