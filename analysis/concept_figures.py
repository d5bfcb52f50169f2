"""Figures of the concept analysis: every effect beside its controls, every member shown."""

from collections.abc import Mapping
from pathlib import Path

import jax
import numpy as np
from matplotlib.axes import Axes
from numpy.typing import ArrayLike

from analysis import concepts, drawing, findings
from analysis.drawing import BLUE, GREEN, GREY, INK, ORANGE, PALE, PURPLE, SKY, VERMILION
from analysis.figures import learning_curve
from analysis.findings import Arm
from envs import tokens
from ground import statistics

TILES = ((tokens.MOLD, "Mold", PURPLE), (tokens.PATH, "Path", GREY), (tokens.GOLD, "Gold", ORANGE))
_COLOURS = (VERMILION, GREEN, SKY, INK, PURPLE, ORANGE)
_MARKERS = ("o", "s", "^", "D", "v", "P", "X")


def draw(
    stem: Path,
    arms: Mapping[str, Arm],
    against: Mapping[str, Mapping[str, Arm]],
    course: Mapping[str, np.ndarray],
    returns: tuple[np.ndarray, np.ndarray] | None,
    footer: str,
) -> list[Path]:
    """All figures of the analysis, PNG and PDF, at `stem` and a suffix; returns their paths.

    Args:
        stem: path without an ending.
        arms: of the run.
        against: of every control run.
        course: how the axis turned during RL, see `analysis.commands.concepts`.
        returns: updates int[U] and the members' mean returns float[U, M] during RL; None draws no course of it.
        footer: names the run.
    """
    every = {**arms, **{f"{run}: {name}": arm for run, parts in against.items() for name, arm in parts.items()}}
    figures = {
        "axis": _axis(arms),
        "cosine": _cosine(every),
        "tracking": _tracking(arms),
        "narrator": _narrator(every),
        "lens": _lens(findings.effect(arms)[1]),
        "trace": _trace(findings.effect(arms)[1]),
    }
    if returns:
        figures["rotation"] = _rotation(course, returns)
    paths = []
    for name, figure in figures.items():
        paths += drawing.save(figure, stem.with_name(f"{stem.name}_{name}"), footer)
    return paths


def _styles(every: Mapping[str, Arm]) -> dict[str, tuple[str, str]]:
    """Colour and marker of each arm: the effect blue, its own controls grey shades, other runs apart."""
    styles = {findings.before(every)[0]: (INK, "s"), findings.effect(every)[0]: (BLUE, "o")}
    styles[findings.UNTRAINED] = (GREY, "^")
    others = [name for name in every if name not in styles]
    for index, name in enumerate(others):
        styles[name] = (_COLOURS[index // 2 % len(_COLOURS)], _MARKERS[(index + 3) % len(_MARKERS)])
    return styles


def _dots(axes: Axes, x: float, members: ArrayLike, colour: str, marker: str, *, filled: bool = True, across=True):
    """Members as faint dots, and their mean with its bootstrap interval."""
    values = np.asarray(members)
    values = values[np.isfinite(values)]
    if not len(values):
        return
    places = np.full(len(values), x)
    if len(values) > 1:
        spread = np.linspace(-0.03, 0.03, len(values))
        pair = (places + spread, values) if across else (values, places + spread)
        axes.plot(*pair, linestyle="", marker=".", color=colour, alpha=0.45, markersize=4, zorder=2)
        low, high = statistics.bootstrap_interval(values, statistic=np.mean)
        ends = ([x, x], [low, high]) if across else ([low, high], [x, x])
        axes.plot(*ends, color=colour, linewidth=2, zorder=3, solid_capstyle="butt")
    at = ([x], [values.mean()]) if across else ([values.mean()], [x])
    axes.plot(
        *at, linestyle="", marker=marker, color=colour, markersize=7, zorder=4,
        markerfacecolor=colour if filled else "white",
    )  # fmt: skip


def _axis(arms: Mapping[str, Arm]):
    """The reward axis: class means of every member, and where the policy's own moves stand on it."""
    shown = list(arms)[::-1]
    figure = drawing.figure(
        3.6 * len(shown) + 0.4, 4.6, "The reward axis: where Path stands between Mold and Gold",
        "above: class means of the extraction set, a dot per member    below: the policy's own moves, by the tile that "
        "they lead to; the mean of each of the four moves is taken out",
    )  # fmt: skip
    moves = {name: arms[name].at_layer(_moves(arms[name])) for name in shown}
    widths = [np.abs(at).ravel() for at in moves.values()]
    reach = max(2.5, float(max(np.quantile(width, 0.98) for width in widths[1:] or widths)))
    edges = np.linspace(-reach, reach, 61)
    grid = figure.add_gridspec(
        2, len(shown), left=0.07, right=0.985, bottom=0.12, top=0.80, hspace=0.08, wspace=0.08, height_ratios=[0.32, 1]
    )
    top = 0.0
    panels = []
    for column, name in enumerate(shown):
        arm = arms[name]
        above, below = figure.add_subplot(grid[0, column]), figure.add_subplot(grid[1, column])
        means = np.asarray(jax.vmap(findings.class_coordinates)(arm.found))
        for role, label, colour in TILES:
            values = arm.at_layer(means[:, role])
            height = np.linspace(0.25, 0.75, len(values)) if len(values) > 1 else np.array([0.5])
            above.plot(values, height, linestyle="", marker="o", markersize=4.5, color=colour, alpha=0.8)
            landed = arm.tracked.landed
            curves = [
                np.histogram(x[at == role], edges)[0] / ((at == role).sum() * (edges[1] - edges[0]))
                for x, at in zip(moves[name], landed, strict=True) if (at == role).sum() >= 20
            ]  # fmt: skip
            if curves:
                middle = (edges[1:] + edges[:-1]) / 2
                curves = [np.convolve(curve, [0.25, 0.5, 0.25], "same") for curve in curves]
                for curve in curves:
                    below.plot(middle, curve, color=colour, linewidth=0.5, alpha=0.5)
                below.plot(middle, np.mean(curves, axis=0), color=colour, linewidth=2)
                top = max(top, float(np.max(curves)))
                below.plot([], [], color=colour, linewidth=2, label=f"{label}, {(landed == role).mean():.0%} of moves")
        drawing.plain(above, title=name).set_ylim(0, 1)
        above.set_yticks([])
        above.tick_params(labelbottom=False)
        above.spines["left"].set_visible(False)
        drawing.plain(below, "position (−1 Mold's mean, +1 Gold's mean)", "density of moves" if not column else "")
        below.legend(fontsize=8, frameon=False, loc="upper left", handlelength=1.2)
        panels.append(below)
        for axes in (above, below):
            axes.set_xlim(-reach, reach)
            for line in (-1, 1):
                axes.axvline(line, color=PALE, linewidth=1, zorder=0)
        if column:
            below.tick_params(labelleft=False)
    for axes in panels:
        axes.set_ylim(0, 1.35 * top)
    return figure


def _moves(arm: Arm) -> np.ndarray:
    """Positions float32[M, N, T, L] of the policy's own moves, each less the mean of its direction, plus all's."""
    at, moves = arm.tracked.coordinate[:, 1], arm.tracked.moves
    same = moves[..., None] == np.arange(len(tokens.MOVES))
    sums = np.einsum("mntl,mnta->mal", at, same)
    means = sums / np.maximum(same.sum(axis=(1, 2)), 1)[..., None]
    mean = at.mean(axis=(1, 2), keepdims=True)
    return at - np.einsum("mal,mnta->mntl", means, same) + mean


def _cosine(every: Mapping[str, Arm]):
    """cos(v_Gold, v_Mold) by layer, with its nulls, for every arm."""
    figure = drawing.figure(
        10, 4.6, "Gold against Mold: cosine of the two concept vectors",
        "big: mean of members, line: 95 % interval, dots: members    grey band: 95 % of cosines when class labels are "
        "dealt at random",
    )  # fmt: skip
    styles = _styles(every)
    layers = next(iter(every.values())).found.opposition.shape[-1]
    for column, (title, null) in enumerate(
        (("each class against the other two (Eq. 1)", concepts.NULL), ("each class against Path", concepts.PATH_NULL))
    ):
        axes = figure.add_axes((0.075 + 0.36 * column, 0.12, 0.33, 0.68))
        draws = np.concatenate([arm.found.permuted[:, :, column].reshape(-1, layers) for arm in every.values()])
        low, high = np.quantile(draws, [0.025, 0.975], axis=0)
        for layer in range(layers):
            axes.fill_between([layer + 0.6, layer + 1.4], low[layer], high[layer], color=PALE, alpha=0.6, linewidth=0)
        axes.axhline(null, color=INK, linewidth=1, linestyle=(0, (4, 2)))
        axes.text(
            1.5 if layers > 1 else 1.45, null, f"null {learning_curve.signed(null)}", fontsize=8, va="center",
            ha="center", color=INK, zorder=9, bbox={"facecolor": "white", "edgecolor": "none", "pad": 1.5},
        )  # fmt: skip
        axes.axhline(0, color=PALE, linewidth=1, zorder=0)
        for index, (name, arm) in enumerate(every.items()):
            offset = (index - (len(every) - 1) / 2) * 0.72 / len(every)
            colour, marker = styles[name]
            for layer in range(layers):
                values = arm.found.opposition[:, column, layer]
                _dots(axes, layer + 1 + offset, values, colour, marker, filled="before" not in name)
        drawing.plain(axes, "after block", "cosine" if not column else "", title)
        axes.set_xticks(range(1, layers + 1))
        axes.set_xlim(0.55, layers + 0.45)
        axes.set_ylim(-1.05, 1.05)
        if column:
            axes.tick_params(labelleft=False)
    _legend(figure, styles, 0.775)
    return figure


def _legend(figure, styles: Mapping[str, tuple[str, str]], left: float) -> None:
    axes = figure.add_axes((left, 0.12, 0.99 - left, 0.68))
    axes.axis("off")
    for name, (colour, marker) in styles.items():
        axes.plot(
            [], [], linestyle="", marker=marker, color=colour, label=name, markersize=7,
            markerfacecolor="white" if "before" in name else colour,
        )  # fmt: skip
    axes.legend(fontsize=8.5, frameon=False, loc="upper left", borderaxespad=0, handletextpad=0.3)


_ROWS = {
    "axis": "axis, Mold to Gold",
    "gold": "v_Gold",
    "mold": "v_Mold",
    "path": "v_Path",
    "axis before": "axis of the model before",
    "axis without emoji": "axis without the tiles' embeddings",
    "axis without value head": "axis without the value head",
    "random": "random directions",
    "orthogonal": "random, orthogonal to the axis",
}


def _tracking(arms: Mapping[str, Arm]):
    """Cohen's d of every direction at both sites, for the next tile and the rest, beside random directions."""
    figure = drawing.figure(
        12.6, 5.4, "Goal tracking: does a direction foretell what the policy will be paid?",
        "Cohen's d on the policy's own play    filled: next tile Gold rather than Mold    open: rest of the episode "
        "above its median    dots: members    ticks: random directions",
    )  # fmt: skip
    names = [name for name in _ROWS if name in findings.effect(arms)[1].tracked.tracking]
    styles = _styles(arms)
    shown = {name: styles[name] for name in arms}
    panels = (
        (1, (0, 1), "at the move"),
        (1, (2,), "at the move, among equal moves"),
        (0, (2, 1), "before choosing, equal moves"),
    )
    for column, (site, outcomes, title) in enumerate(panels):
        axes = figure.add_axes((0.2 + 0.265 * column, 0.105, 0.245, 0.66))
        for row, name in enumerate(names):
            for index, (arm_name, (colour, marker)) in enumerate(shown.items()):
                arm, place = arms[arm_name], len(names) - 1 - row + 0.24 - 0.24 * index
                for outcome in outcomes:
                    d = arm.at_layer(arm.tracked.tracking[name].d[:, :, site, outcome])
                    if d.shape[1] == 1:
                        _dots(axes, place, d[:, 0], colour, marker, filled=outcome != 1, across=False)
                    elif outcome != 1:
                        some = d.reshape(-1)[:512]
                        axes.plot(some, np.full(len(some), place), "|", color=colour, alpha=0.25, markersize=5)
        axes.axvline(0, color=PALE, linewidth=1, zorder=0)
        drawing.plain(axes, "Cohen's d (pooled standard deviations)", "", title)
        axes.set_ylim(-0.6, len(names) - 0.4)
        axes.set_yticks(range(len(names)), [_ROWS[name] for name in reversed(names)] if not column else [])
        axes.tick_params(axis="y", length=0)
        for line in range(len(names) - 1):
            axes.axhline(line + 0.5, color=PALE, linewidth=0.5, zorder=0)
    handles = [
        figure.axes[0].plot([], [], linestyle="", marker=marker, color=colour, label=name)[0]
        for name, (colour, marker) in shown.items()
    ]
    figure.legend(
        handles=handles, fontsize=8.5, frameon=False, loc="upper left", bbox_to_anchor=(0.005, 0.84), handletextpad=0.3
    )
    return figure


def _narrator(every: Mapping[str, Arm]):
    """Alignment with the narrator's words, and agreement between members with other tiles."""
    figure = drawing.figure(
        10, 4.4, "Is the reward axis the narrator's good − bad?",
        "cosines at the rule's layer; big: mean, line: 95 % interval, dots: members (last panel: pairs of members)",
    )  # fmt: skip
    styles = _styles(every)
    cosines = {name: findings.narrator_cosines(arm) for name, arm in every.items()}
    panels = {"heard": "at the word itself", "foretold": "at the move before it", "said": "in saying it"}
    for column, (way, title) in enumerate([*panels.items(), ("agreement", "axes of members\nwith other tiles")]):
        axes = figure.add_axes((0.075 + 0.178 * column, 0.08, 0.16, 0.66))
        for index, (name, arm) in enumerate(every.items()):
            colour, marker = styles[name]
            if way == "agreement":
                pairs = findings.agreement(arm) or {}
                values = pairs["other_tiles"]["pairs"] if "other_tiles" in pairs else np.zeros(0)
            else:
                values = cosines[name][way]
            _dots(axes, index, np.asarray(values), colour, marker, filled="before" not in name)
        axes.axhline(0, color=PALE, linewidth=1, zorder=0)
        if way == "agreement":
            axes.axhline(-0.2, color=INK, linewidth=1, linestyle=(0, (4, 2)))
            axes.text(-0.6, -0.22, "an emoji's\nown", fontsize=7.5, ha="left", va="top", color=INK)
        drawing.plain(axes, "", "cosine with the axis" if not column else "", title)
        axes.set_xticks([])
        axes.set_xlim(-0.7, len(every) - 0.3)
        axes.set_ylim(-1.05, 1.05)
        if column:
            axes.tick_params(labelleft=False)
    _legend(figure, styles, 0.785)
    return figure


def _lens(arm: Arm):
    """What the axis does to each token's logit, read at once."""
    values = arm.lens[:, -1]
    order = np.argsort(values.mean(axis=0))
    chosen = np.concatenate([order[:8], order[-8:]])
    figure = drawing.figure(
        8.4, 4.0, "Logit lens: the tokens that the axis speaks for and against",
        "the axis after the last block times each token's unembedding; bars: mean of members, lines: 95 % interval; "
        f"8 lowest and 8 highest of {values.shape[1]} tokens",
    )  # fmt: skip
    axes = figure.add_axes((0.09, 0.14, 0.89, 0.64))
    means = values.mean(axis=0)[chosen]
    axes.bar(range(len(chosen)), means, color=[PURPLE if mean < 0 else ORANGE for mean in means], width=0.7)
    if len(values) > 1:
        low, high = statistics.bootstrap_interval(values[:, chosen], axis=0, statistic=np.mean)
        axes.vlines(range(len(chosen)), low, high, color=INK, linewidth=1.5)
    axes.axhline(0, color=INK, linewidth=0.8)
    axes.axvline(len(chosen) / 2 - 0.5, color=PALE, linewidth=1)
    drawing.plain(axes, "", "change of logit per unit of axis")
    drawing.emoji_ticks(axes, chosen.tolist(), size=17)
    return figure


def _trace(arm: Arm):
    """The projection turn by turn under one typical episode of one typical member."""
    d = arm.at_layer(arm.tracked.tracking["axis"].d[:, 0, 1, 2])
    member = int(np.nanargmin(np.abs(d - np.nanmedian(d))))
    position = _moves(arm)[member, ..., arm.layer[member]]
    rewards, landed = arm.tracked.rewards[member], arm.tracked.landed[member]
    sums = rewards.sum(axis=1)
    both = (landed == tokens.GOLD).any(axis=1) & (landed == tokens.MOLD).any(axis=1)
    distance = np.abs(sums - np.median(sums)) + np.where(both, 0, 1e6 if both.any() else 0)
    episode = int(np.argmin(distance))
    turns = np.arange(rewards.shape[1])
    figure = drawing.figure(
        10.4, 4.4, "One episode on the reward axis",
        f"member {member}, of median goal tracking; return {sums[episode]:+.1f}, nearest the median among episodes "
        "with Gold and Mold; each move's own mean is taken out",
    )  # fmt: skip
    axes = figure.add_axes((0.08, 0.30, 0.82, 0.50))
    axes.plot(turns, position[episode], color=BLUE, marker="o", linewidth=1.5)
    for level, label in ((-1, "Mold's mean"), (1, "Gold's mean")):
        axes.axhline(level, color=PALE, linewidth=1, zorder=0)
        axes.text(turns[-1] + 0.6, level, label, fontsize=8.5, va="center", color=GREY)
    axes.axhline(0, color=PALE, linewidth=0.6, zorder=0)
    drawing.plain(axes, "", "position on the axis")
    axes.set_xlim(-0.5, turns[-1] + 0.5)
    axes.set_xticks(turns, [""] * len(turns))
    chosen = arm.tile_maps[member][landed[episode]]
    actions = arm.tracked.moves[member, episode] + tokens.MOVES[0]
    for turn in turns:
        for depth, token in ((22, actions[turn]), (46, chosen[turn])):
            drawing.emoji(axes, float(turn), int(token), depth, size=18)
        axes.annotate(
            learning_curve.signed(float(rewards[episode, turn]), "+.0f") if abs(rewards[episode, turn]) > 1 else "·",
            (float(turn), 0), xycoords=axes.get_xaxis_transform(), xytext=(0, -70), textcoords="offset points",
            ha="center", va="center", fontsize=8.5, color=INK,
        )  # fmt: skip
    for depth, word in ((22, "move"), (46, "onto"), (70, "paid")):
        axes.annotate(
            word, (0, 0), xycoords="axes fraction", xytext=(-12, -depth), textcoords="offset points", ha="right",
            va="center", fontsize=8.5, color=GREY,
        )  # fmt: skip
    return figure


def _rotation(course: Mapping[str, np.ndarray], returns: tuple[np.ndarray, np.ndarray]):
    """How the axis turns while the return rises."""
    figure = drawing.figure(
        10.4, 3.9, "The axis during RL", "thin: members    thick: mean    update 0 is the model before RL"
    )
    update = course["update"]
    parts = (
        ("with the axis at the end", "cosine", course["cosine_with_end"], update),
        ("v_Gold with v_Mold", "cosine", course["opposition"], update),
        ("length of the axis", "length", course["norm"], update),
        ("return per episode", "reward", returns[1], returns[0]),
    )
    for column, (title, name, values, at) in enumerate(parts):
        axes = figure.add_axes((0.055 + 0.245 * column, 0.15, 0.185, 0.60))
        axes.plot(at, values, color=BLUE, linewidth=0.6, alpha=0.5)
        axes.plot(at, values.mean(axis=1), color=BLUE, linewidth=2, marker="o" if len(at) < 12 else None, markersize=4)
        drawing.plain(axes, "PPO update", name, title)
        if column == 1:
            axes.axhline(concepts.NULL, color=INK, linewidth=1, linestyle=(0, (4, 2)))
            axes.text(update[-1], concepts.NULL, "null", fontsize=8, ha="right", va="bottom")
            axes.set_ylim(-1.05, 1.05)
        if column == 0:
            axes.set_ylim(min(0, float(values.min())) - 0.05, 1.05)
    return figure
