"""Figures of the update: its curves, where it lies, how far members agree, and how it comes about."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.lines import Line2D

from analysis import drawing, updates, weights
from ground import statistics

_LINES = ("-", (0, (4, 1.6)))
_STATES = dict(zip(updates.STATES, (drawing.GREY, drawing.ORANGE, drawing.BLUE), strict=True))
_CHANCES = {
    "independent": ("o", drawing.SKY, "chance: anywhere"),
    "within_matrix": ("s", drawing.GREEN, "chance: within each matrix"),
    "weight_matched": ("D", drawing.ORANGE, "chance: within each matrix, |w| matched"),
}
_OUTSIDE = ("embedding.used", "embedding.unused", "norm", "value")
_WORDS = {
    "embedding.used": "embedding,\nused rows", "embedding.unused": "embedding,\nunused rows",
    "embedding_used": "embedding, used rows", "embedding_unused": "embedding, unused rows",
    "attention_norm": "attention\nnorm", "attention.qkv": "attention\nq, k, v", "attention.out": "attention\nout",
    "mlp_norm": "MLP\nnorm", "up": "MLP\nup", "down": "MLP\ndown", "norm": "final\nnorm", "value": "value\nhead",
    "given_norm": "input\nnorm", "given": "input\nto gates", "given.bias": "gates'\nbias",
    "recurrent": "state\nto gates", "out": "state\nout", "bias": "biases", "kernel": "kernels", "all": "all parameters",
}  # fmt: skip


def colours(labels: Sequence[str]) -> dict[str, str]:
    """A colour per group of members: blue for one, else along a scale that is safe for colour-blind readers."""
    if len(labels) == 1:
        return {labels[0]: drawing.BLUE}
    scale = matplotlib.colormaps["viridis"](np.linspace(0.05, 0.85, len(labels)))
    return {label: to_hex(colour) for label, colour in zip(labels, scale, strict=True)}


def curves(
    stem: Path,
    groups: Mapping[str, np.ndarray],
    control: Mapping[str, np.ndarray],
    dtype: str,
    meaning: str,
    footer: str = "",
) -> list[Path]:
    """The fraction of parameters that moved, against the tolerance.

    Args:
        stem: path without an ending.
        groups: label → float64[M, views, scales, tolerances], fractions of all parameters.
        control: the same of an update to compare with, drawn grey; may be empty.
        dtype: in which parameters are stored.
        meaning: what was compared, for the line under the title.
        footer: small print.
    """
    figure = drawing.figure(
        9.2, 4.5, "How many parameters an update changes depends on what counts as a change", meaning
    )
    palette = colours(list(groups)) | dict.fromkeys(control, drawing.GREY)
    views = _views(dtype)
    names = ("tolerance on |Δ|", "tolerance on |Δ| / max(|w|, |w'|)")
    marks = ((1e-5, "arXiv 2505.11711"), (1e-3, "η of arXiv 2511.08567"))
    at = np.concatenate([[10**-9.6], updates.TOLERANCES[1:]])
    for scale, (name, (mark, source)) in enumerate(zip(names, marks, strict=True)):
        axes = figure.add_axes((0.07 + 0.485 * scale, 0.255, 0.43, 0.545))
        drawing.plain(axes, name, "" if scale else "parameters beyond the tolerance (%)")
        for label, values in {**groups, **control}.items():
            for view, line in zip(views, _LINES, strict=False):
                _band(axes, at, 100 * values[:, updates.VIEWS.index(view), scale].T, palette[label], line)
        axes.axvline(mark, color=drawing.INK, linewidth=0.8, linestyle=":")
        above = {"transform": axes.get_xaxis_transform(), "va": "bottom", "ha": "center"}
        axes.text(mark, 1.015, source, fontsize=7.5, color=drawing.INK, **above)
        axes.set_xscale("log")
        axes.set_xticks(
            [at[0], *(10.0 ** np.arange(-8, 1, 2))], ["0", *(f"1e{power}" for power in range(-8, 0, 2)), "1"]
        )
        axes.minorticks_off()
        axes.set_xlim(at[0] / 1.5, 1.5)
        axes.set_ylim(0, 105)
    handles = [
        Line2D([], [], color=drawing.INK, linestyle=line, label=words)
        for line, words in zip(_LINES, views.values(), strict=False)
    ]
    handles += [Line2D([], [], color=palette[label], linewidth=3, label=label) for label in {**groups, **control}]
    _legend(figure, handles)
    return drawing.save(figure, stem, footer)


def heat_map(stem: Path, panels: Mapping[str, Mapping[str, float]], meaning: str, footer: str = "") -> list[Path]:
    """A number per layer and matrix, a panel per question.

    Args:
        stem: path without an ending.
        panels: title → name of a matrix → percent.
        meaning: the line under the title.
        footer: small print.
    """
    every = list(next(iter(panels.values())))
    layers = sorted({layer for name in every if (layer := weights.layer(name)) is not None})
    roles = list(dict.fromkeys(weights.role(name) for name in every if weights.layer(name) is not None))
    outside = [name for name in _OUTSIDE if name in every]
    rows = [*(f"block {layer}" for layer in layers), "outside"]
    step = 0.42 + 0.36 * len(rows)
    height = 1.3 + step * len(panels)
    figure = drawing.figure(9.2, height, "Where the update lies", meaning)
    for index, (title, values) in enumerate(panels.items()):
        grid = np.full((len(rows), len(roles) + len(outside)), np.nan)
        for name, value in values.items():
            layer = weights.layer(name)
            place = (len(layers), len(roles) + outside.index(name)) if layer is None else (
                layers.index(layer), roles.index(weights.role(name))
            )  # fmt: skip
            grid[place] = value
        bottom = 0.55 + step * (len(panels) - 1 - index)
        axes = figure.add_axes((0.085, bottom / height, 0.895, 0.36 * len(rows) / height))
        axes.imshow(np.ma.masked_invalid(grid), cmap="Blues", vmin=0, vmax=100, aspect="auto")
        for (row, column), value in np.ndenumerate(grid):
            if np.isfinite(value):
                shown = f"{value:.0f}" if value >= 10 or value == 0 else f"{value:.1f}"
                ink = "white" if value > 60 else drawing.INK
                axes.text(column, row, shown, ha="center", va="center", fontsize=8.5, color=ink)
        axes.spines[:].set_visible(False)
        axes.set_title(title, fontsize=9.5, color=drawing.INK, loc="left")
        axes.set_yticks(range(len(rows)), rows, fontsize=8.5)
        last = index == len(panels) - 1
        labels = [_WORDS.get(name, name) for name in [*roles, *outside]]
        axes.set_xticks(range(len(labels)), labels if last else [""] * len(labels), fontsize=8)
        axes.tick_params(length=0)
    return drawing.save(figure, stem, footer)


def overlaps(
    stem: Path,
    panels: Mapping[str, Mapping[str, tuple[np.ndarray, Sequence[float], Mapping[str, float]]]],
    meaning: str,
    footer: str = "",
) -> list[Path]:
    """The overlap of pairs of masks beside what chance gives.

    Args:
        stem: path without an ending.
        panels: which masks → row → Jaccard index of every pair, its mean with both ends of its interval, and the
            value of each chance.
        meaning: the line under the title.
        footer: small print.
    """
    rows = list(next(iter(panels.values())))
    height = 2.1 + 0.42 * len(rows)
    figure = drawing.figure(9.2, height, "Do different members update the same parameters?", meaning)
    generator = np.random.default_rng(0)
    left = 0.02 + 0.0085 * max(len(_words(row)) for row in rows)
    width = (0.985 - left - 0.03 * (len(panels) - 1)) / len(panels)
    for index, (title, found) in enumerate(panels.items()):
        place = (left + index * (width + 0.03), 1.03 / height, width, 0.42 * len(rows) / height)
        axes = drawing.plain(figure.add_axes(place), "Jaccard index of a pair of members", "", title)
        for at, row in enumerate(rows):
            values, (mean, low, high), chances = found[row]
            values = values[np.isfinite(values)]
            scatter = at - 0.16 + 0.1 * generator.uniform(-1, 1, len(values))
            axes.plot(values, scatter, ".", color=drawing.VERMILION, markersize=5, alpha=0.4, markeredgewidth=0)
            if np.isfinite(low):
                axes.plot([low, high], [at - 0.16, at - 0.16], color=drawing.VERMILION, linewidth=2.5)
            axes.plot([mean], [at - 0.16], "|", color=drawing.VERMILION, markersize=13, markeredgewidth=2.2)
            for shift, (chance, (marker, colour, _)) in zip((0.05, 0.17, 0.29), _CHANCES.items(), strict=True):
                axes.plot([chances[chance]], [at + shift], marker, color=colour, markersize=5)
            if not np.isfinite(mean):
                axes.text(0.02, at, "empty masks", fontsize=8, color=drawing.GREY, va="center")
        axes.set_yticks(range(len(rows)), [_words(row) for row in rows] if index == 0 else [""] * len(rows))
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.set_xlim(-0.02, 1.02)
        axes.grid(axis="x", color="#e8e8ec", linewidth=0.6)
        axes.set_axisbelow(True)
    handles = [
        Line2D([], [], color=drawing.VERMILION, linewidth=2.5, marker=".", label="seen: pairs, mean, 95 % interval")
    ]
    handles += [
        Line2D([], [], color=colour, marker=marker, linestyle="none", markersize=5, label=words)
        for marker, colour, words in _CHANCES.values()
    ]
    _legend(figure, handles)
    return drawing.save(figure, stem, footer)


def course(
    stem: Path, names: Sequence[str], groups: Mapping[str, np.ndarray], dtype: str, meaning: str, footer: str = ""
) -> list[Path]:
    """What has become of the parameters at each checkpoint.

    Args:
        stem: path without an ending.
        names: of the C checkpoints; the first is the start.
        groups: label → float64[C, M, views, states], shares of all parameters.
        dtype: in which parameters are stored.
        meaning: the line under the title.
        footer: small print.
    """
    views = _views(dtype)
    step = 2.55
    height = 1.65 + step * len(groups)
    figure = drawing.figure(9.2, height, "Touched, cancelled, changed: the update over training", meaning)
    width = 0.91 / len(views) - 0.03
    for row, (label, values) in enumerate(groups.items()):
        bottom = 1.0 + step * (len(groups) - 1 - row)
        for column, (view, words) in enumerate(views.items()):
            axes = figure.add_axes((0.07 + column * (width + 0.045), bottom / height, width, (step - 0.6) / height))
            heading = words + (f"; {label}" if len(groups) > 1 else "")
            drawing.plain(axes, "", "" if column else "parameters (%)", heading)
            for state, colour in _STATES.items():
                shares = 100 * values[:, :, updates.VIEWS.index(view), updates.STATES.index(state)]
                _band(axes, np.arange(len(names)), shares, colour, "-", marker="o")
            last = row == len(groups) - 1
            axes.set_xticks(range(len(names)), [_checkpoint(name) for name in names] if last else [""] * len(names))
            axes.set_ylim(-3, 103)
            axes.grid(axis="y", color="#e8e8ec", linewidth=0.6)
            if last:
                axes.set_xlabel("checkpoint (after this many updates)", fontsize=9.5, color=drawing.INK)
    meanings = ("never seen to differ from the start", "differed before, equal again", "differs from the start")
    handles = [
        Line2D([], [], color=colour, marker="o", markersize=4, label=text)
        for colour, text in zip(_STATES.values(), meanings, strict=True)
    ]
    _legend(figure, handles)
    return drawing.save(figure, stem, footer)


def _views(dtype: str) -> dict[str, str]:
    """The views that differ for parameters stored in this dtype, with what to call them."""
    if dtype == "bfloat16":
        return {"stored": "as stored, in bfloat16"}
    return {"stored": f"as stored, in {dtype}", "bf16": "rounded to bfloat16"}


def _band(axes: Axes, x: np.ndarray, values: np.ndarray, colour: str, line, marker: str | None = None) -> None:
    """The mean over members of values [X, M] with its bootstrap interval."""
    if values.shape[1] > 1:
        low, high = statistics.bootstrap_interval(values, statistic=np.mean)
        axes.fill_between(x, low, high, color=colour, alpha=0.25, linewidth=0)
    axes.plot(x, values.mean(axis=1), color=colour, linestyle=line, linewidth=1.7, marker=marker, markersize=3.5)


def _legend(figure, handles) -> None:
    figure.legend(
        handles=handles, loc="lower left", bbox_to_anchor=(0.01, 0.0), ncols=4, frameon=False, fontsize=8,
        columnspacing=1.4, handlelength=2.4,
    )  # fmt: skip


def _words(row: str) -> str:
    return "norm scales" if row == "norm" else _WORDS.get(row, row)  # the kind, not the last norm


def _checkpoint(name: str) -> str:
    stage, dash, update = name.partition("-")
    return f"{stage}\n{int(update)}" if dash else f"{stage}\nend" if stage != "init" else stage
