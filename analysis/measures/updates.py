"""How many parameters training changed, by every definition in use, beside how far its steps could have gone."""

from collections.abc import Mapping

import numpy as np
import xarray as xr

from agents.runs import Run
from analysis import changes, estimates, stretches, weights
from analysis.estimates import of
from analysis.figures.panels import Curve, Curves, Map, Panel, Rows
from analysis.measure import end, measure, variable

_SHARES = {name: meaning for name, (*_, meaning) in changes.DEFINITIONS.items()} | changes.CONCENTRATIONS
MEANINGS = _SHARES | changes.LENGTHS
SHOWN = ("changed_bf16", "paper", "relative", "changed_stored", "holding_90", *changes.LENGTHS)
"""Those of `MEANINGS` that tables show."""
UNITS = dict.fromkeys(("participation_ratio", *changes.LENGTHS), "")


def panels(arms: Mapping[str, xr.Dataset]) -> list[Panel]:
    """Shares at the last checkpoint, by the paper's definition and along tolerances; the course; where changes lie."""
    columns = estimates.columns({arm: x.isel(checkpoint=-1) for arm, x in arms.items()})
    words = f"parameters that {MEANINGS['paper']} (%)"
    shares = {name: of(x["paper"].sel(kind="all")) for name, x in columns.items()}
    drawn: list[Panel] = [Rows(shares, words, percent=True)]
    for view, words in (("bf16", "in bfloat16"), ("stored", "as stored")):
        curves = {name: x["curve"].sel(kind="all", view=view, scale="absolute") for name, x in columns.items()}
        lines = {name: Curve(changes.TOLERANCES[1:], y.values[1:], y["unit"].values) for name, y in curves.items()}
        drawn.append(Curves(lines, f"tolerance on |Δ|, {words}", "parameters beyond it (%)", percent=True, log_x=True))
    for arm, dataset in arms.items():
        for point, x in dataset.groupby("point"):
            if x.sizes["checkpoint"] > 1:
                steps = estimates.last_stage(x)
                course = steps["course"].sel(kind="all", view="stored").transpose("state", "checkpoint", "member")
                lines = {
                    name.replace("_", " "): Curve(
                        steps["update"].values, course.sel(state=name).values, steps["unit"].values
                    )
                    for name in changes.STATES
                }
                label = ", ".join(["updates", *filter(None, [arm if len(arms) > 1 else "", str(point)])])
                drawn.append(Curves(lines, label, "parameters as stored (%)", percent=True))
    return drawn + [where(x["by_matrix"].sel(measure="changed_bf16"), name) for name, x in columns.items()]


def where(values: xr.DataArray, name: str) -> Map:
    """A number of every matrix, in its layer's row and the column of what it does there."""
    names = values["matrix"].values.tolist()
    rows, columns = ([*dict.fromkeys(map(part, names))] for part in (_row, weights.role))
    grid = np.full((len(rows), len(columns)), np.nan)
    for matrix, value in zip(names, values.mean("member").values, strict=True):
        grid[rows.index(_row(matrix)), columns.index(weights.role(matrix))] = value
    label = f"{name}: parameters that {MEANINGS['changed_bf16']} (%)"
    return Map(grid, tuple(rows), tuple(columns), label, percent=True)


@measure(checkpoints=end, panels=panels)
def updates(run: Run, checkpoint: str, *, since: str = "") -> xr.Dataset:
    """How many parameters training has changed, by every definition in use.

    Args:
        since: checkpoint that changes are counted from; by default the one that training set out from.

    Returns:
        Shares of the parameters of each kind, float64[kind, member]: those changed by each of `changes.DEFINITIONS`,
        and `changes.CONCENTRATIONS`; and `changes.LENGTHS` of the update. Beside them `learning_rate_sum` [member] over
        the steps, `median_weight`, and over it [kind, member] how far steps of Adam could have gone: in one direction,
        `learning_rate_sum_over_median_weight`, and to and fro by chance, `learning_rate_root_over_median_weight`, the
        root of the summed squares. For figures
        `by_matrix` [measure, matrix, member], `curve` [tolerance, view, scale, kind, member], the share that moved by
        more than a tolerance, and `course` [state, view, kind, member], what has become of the parameters as seen at
        the checkpoints kept so far: what changed and was cancelled between two of them counts as never touched.
        `parameters` int[kind].
    """
    stretch = stretches.read(run, checkpoint, since)
    before, after, kinds = stretch.before, stretch.after, stretch.kinds
    counted, sizes = changes.curves(before, after), changes.sizes(before)

    def measured(names: list[str]) -> dict[str, np.ndarray]:
        shares = changes.fraction(counted, sizes, names)
        concentration, lengths = (f(before, after, names) for f in (changes.concentration, changes.lengths))
        return changes.defined(shares) | concentration | lengths

    def of_kinds(function) -> np.ndarray:
        return np.stack([function(names) for names in kinds.values()])

    *_, last = changes.course(stretch.course())
    rate, median = stretch.learning_rate(), of_kinds(lambda names: changes.median_weight(before, names))
    root, weight = np.sqrt(stretch.learning_rate(power=2)), np.where(median > 0, median, np.nan)
    dims, share = "kind member", "share of the parameters"
    moved = of_kinds(lambda names: changes.fraction(counted, sizes, names))
    became = of_kinds(lambda names: changes.fraction(last, sizes, names))
    dataset = stretches.dataset(
        {kind: measured(names) for kind, names in kinds.items()},
        {name: measured([name]) for name in before},
        MEANINGS, UNITS, SHOWN,
    )  # fmt: skip
    dataset = dataset.assign(
        learning_rate_sum=variable("member", rate, "learning rate summed over the steps"),
        median_weight=variable(dims, median, "median |w|", table=0),
        learning_rate_sum_over_median_weight=variable(dims, rate / weight, "that sum over the median |w|"),
        learning_rate_root_over_median_weight=variable(
            dims, root / weight, "root of the summed squares over the median |w|", table=0
        ),
        curve=variable(f"{dims} view scale tolerance", moved, "moved by more than a tolerance", share, table=0),
        course=variable(f"{dims} view state", became, "what has become of the parameters", share, table=0),
        parameters=("kind", of_kinds(lambda names: sum(sizes[name] for name in names))),
    )
    dataset = dataset.transpose("tolerance", "state", "view", "scale", "measure", "matrix", "kind", "member")
    labels = {"view": [*changes.VIEWS], "scale": [*changes.SCALES], "state": [*changes.STATES]}
    return dataset.assign_coords(labels | {"tolerance": changes.TOLERANCES}).assign_attrs(stretch.about)


def _row(matrix: str) -> str:
    layer = weights.layer(matrix)
    return "outside" if layer is None else f"block {layer}"
