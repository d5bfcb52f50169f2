"""The figure of the subnetwork alone: what each mask reaches, and how near it comes to the full run."""

from collections.abc import Mapping

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis import drawing
from analysis.figures import learning_curve
from analysis.subnetworks import Definition
from ground import statistics

ARMS = {
    "learned": ("what RL\nchanged", drawing.VERMILION),
    "random": ("random", drawing.BLUE),
    "complement": ("all\nothers", drawing.GREEN),
    "smallest": ("smallest\n|weight|", drawing.PURPLE),
}
"""Name and colour of the arms, in every panel."""
_CHANGED = {"top": "moved farthest", "bf16": "changed in bfloat16", "paper": "changed by more than 1e-5 in bfloat16"}
_BOTTOM, _HEIGHT = 0.20, 0.56


def subnetwork(
    returns: Mapping[str, np.ndarray],
    agreement: Mapping[str, Mapping[str, np.ndarray]],
    strata: np.ndarray,
    definition: Definition,
) -> Figure:
    """Return of each arm beside the model before RL and the full run; cosine and agreement inside the mask.

    Args:
        returns: arm, and each policy of the run → mean returns float[draws, N].
        agreement: measure → arm → float[draws, N], from `subnetworks.agreement`.
        strata: int[N], for the intervals.
        definition: of the learned mask.
    """
    members, density = len(strata), np.mean(agreement["density"]["learned"])
    made = drawing.figure(
        9.6,
        4.4,
        f"RL of a subnetwork alone: the {density:.0%} of the parameters that {_CHANGED[definition]}",
        f"dots: {members} {'member' if members == 1 else 'members'}, of each draw where masks are random    "
        "bars: mean over members and its 95 % bootstrap interval",
    )
    places = [(left, _BOTTOM, width, _HEIGHT) for left, width in ((0.07, 0.30), (0.515, 0.205), (0.785, 0.205))]
    reward, cosine, near = (made.add_axes(place) for place in places)
    drawing.plain(
        reward, "trained parameters\n(random, smallest: as many in each matrix)", "return per episode (reward)"
    )
    _draw_arms(reward, returns, strata)
    _draw_references(reward, {name: float(x.mean()) for name, x in returns.items() if name not in ARMS})

    drawing.plain(cosine, "", "cosine", "update beside the full run's,\ninside the mask")
    _draw_arms(cosine, agreement["inside_cosine"], strata)
    cosine.axhline(0, color=drawing.PALE, linewidth=0.8, zorder=0)
    drawing.plain(near, "", "share of the mask", "within 1e-4 of the full run,\ninside the mask")
    _draw_arms(near, agreement["inside_1e-4"], strata)
    start = [float(agreement["start_1e-4"][name].mean()) for name in ARMS]
    near.scatter(range(len(ARMS)), start, marker="_", s=420, color=drawing.INK, zorder=4)
    near.annotate("black: before RL", (0.03, 0.94), xycoords="axes fraction", fontsize=7.5, color=drawing.INK)
    for axes in (cosine, near):
        axes.set_ylim(min(-0.02, axes.get_ylim()[0]), 1.08)
    return made


def _draw_arms(axes: Axes, values: Mapping[str, np.ndarray], strata: np.ndarray) -> None:
    """A dot per draw and member, and beside them the mean with its interval."""
    for place, (name, (_, colour)) in enumerate(ARMS.items()):
        draws = values[name]
        spread = np.linspace(-0.2, 0.2, draws.shape[1]) if draws.shape[1] > 1 else np.zeros(1)
        for draw in draws:
            axes.scatter(place - 0.08 + 0.6 * spread, draw, s=13, color=colour, alpha=0.55, linewidth=0, zorder=2)
        members = draws.mean(axis=0)
        low, high = statistics.bootstrap_interval(members, statistic=np.mean, strata=strata)
        bar = {"color": colour, "solid_capstyle": "butt", "zorder": 3}
        axes.plot([place + 0.25] * 2, [low, high], linewidth=3, **bar)
        axes.plot([place + 0.15, place + 0.35], [members.mean()] * 2, linewidth=2, **bar)
    axes.set_xticks(range(len(ARMS)), [label for label, _ in ARMS.values()], fontsize=7.5)
    axes.set_xlim(-0.6, len(ARMS) - 0.4)


def _draw_references(axes: Axes, means: Mapping[str, float]) -> None:
    """Lines at the returns of the run's own policies, named to the right."""
    for value, dashes in zip(means.values(), ((0, (1, 1.4)), (0, (5, 2))), strict=True):
        axes.axhline(value, color=drawing.INK, linewidth=1.2, linestyle=dashes, zorder=1)
    low, high = axes.get_ylim()
    wanted = np.array(list(means.values()))
    heights = np.full(len(wanted), 0.14 * (high - low))
    for (name, value), place in zip(means.items(), learning_curve.spread(wanted, heights, low, high), strict=True):
        text = f"{name}\n{learning_curve.signed(value)}"
        axes.text(len(ARMS) - 0.32, place, text, fontsize=8.5, color=drawing.INK, va="center", linespacing=1.1)
