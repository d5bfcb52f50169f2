"""Punishment alone keeps what the base can do: pass@k after eight ways to learn the labyrinth (arXiv 2506.01347)."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from matplotlib.axes import Axes

from agents import runs
from agents.learning import algorithms
from agents.runs import config as configs
from agents.runs.config import Config
from analysis import drawing, passes
from studies import plots
from studies.claims import Criterion, Estimate, Question
from studies.store import Store
from studies.study import Findings, Scale, Study

WORLD = "EmojiLabyrinth-v0"
ARMS: dict[Scale, tuple[configs.Algorithm, ...]] = {
    "smoke": ("ppo", "psr", "nsr"),
    "laptop": ("ppo", "grpo", "reinforce", "lite_ppo", "psr", "nsr"),
    "paper": ("ppo", "grpo", "reinforce", "lite_ppo", "psr", "nsr", "w_reinforce"),
}
ATTEMPTS: dict[Scale, dict[str, int]] = {
    "smoke": {"samples": 16, "mazes": 8},
    "laptop": {"samples": 256, "mazes": 64},
    "paper": {"samples": 256, "mazes": 256},
}
"""Options of `analysis pass-at-k`."""

MARGIN = 0.02
"""How much of pass@k may be lost and still count as kept."""
GAIN = 0.20
"""What RL must add to success to count as learning."""
LEARNERS = ("ppo", "grpo", "reinforce", "lite_ppo")


def arms(scale: Scale) -> dict[str, Config]:
    """The same base, trained further in several ways."""
    return {name: configs.start(scale, WORLD, name) for name in ARMS[scale]}


def measure(store: Store, made: Mapping[str, runs.Run], scale: Scale) -> Findings:
    """Success before and after, and pass@k of every arm on the same held-out mazes."""
    options = ATTEMPTS[scale]
    ks = passes.powers(options["samples"])
    most = f"pass@{ks[-1]}"
    solved: dict[str, np.ndarray] = {}
    estimates: dict[str, Estimate] = {}
    for name, run in made.items():
        store.analysis(run, "pass_at_k", **options)
        rows = pq.read_table(store.table(run, "pass_at_k", **options)).to_pydict()
        of_stage = np.array(rows["checkpoint"])
        counts = np.array(rows["successes"]).astype(np.int64)
        base, after = (counts[of_stage == stage].reshape(-1, options["mazes"]) for stage in ("pretrain", "rl"))
        solved[name] = passes.pass_at_k(after, options["samples"], ks)
        solved.setdefault("base", passes.pass_at_k(base, options["samples"], ks))
        success = run.summary()["success"]
        gain = np.array(success["after_rl"]) - np.array(success["before_rl"])
        title = algorithms.TITLES[name]
        estimates[f"success_of_{name}"] = Estimate.of(
            success["after_rl"], f"share of mazes whose goal {title} reaches at one attempt", "success_of_base"
        )
        estimates.setdefault(
            "success_of_base", Estimate.of(success["before_rl"][:1], "share of mazes whose goal the base reaches")
        )
        estimates[f"success_gained_by_{name}"] = Estimate.of(gain, f"success after {title} less success of the base")
        estimates[f"many_attempts_gained_by_{name}"] = _over_both(
            (solved[name] - solved["base"])[..., -1], f"{most} after {title} less {most} of the base"
        )
    estimates["many_attempts_psr_less_nsr"] = _over_both(
        (solved["psr"] - solved["nsr"])[..., -1], f"{most} after PSR less {most} after NSR"
    )
    curves = {name: passes.estimate(x, np.ones(x.shape[:2], bool)) for name, x in solved.items()}
    return Findings(estimates, _tables(made, curves, ks), _alt(estimates, curves, ks, made))


def _over_both(values: np.ndarray, meaning: str) -> Estimate:
    """Mean over members and mazes float[M, mazes]; the interval reaches as far as that over either."""
    found = passes.estimate(values[..., None], np.ones(values.shape, bool))
    ends = [x[:, 0] for x in (found["over_members"], found["over_mazes"]) if x is not None]
    low, high = (min(x[0] for x in ends), max(x[1] for x in ends)) if len(values) > 1 else (np.nan, np.nan)
    of_members = tuple(values.mean(axis=1).tolist())
    return Estimate(float(found["mean"][0]), float(low), float(high), len(values), meaning, of_members)


def _tables(made: Mapping[str, runs.Run], curves: Mapping[str, Any], ks: np.ndarray) -> dict[str, dict[str, list]]:
    success: dict[str, list] = {"arm": [], "member": [], "before": [], "after": []}
    for name, run in made.items():
        found = run.summary()["success"]
        for member, pair in enumerate(zip(found["before_rl"], found["after_rl"], strict=True)):
            for column, value in zip(success.values(), (name, member, *pair), strict=True):
                column.append(value)
    sides = [f"{end}_{which}" for which in ("over_members", "over_mazes") for end in ("low", "high")]
    passed: dict[str, list] = {name: [] for name in ("arm", "k", "mean", *sides)}
    for name, found in curves.items():
        for index, k in enumerate(ks):
            pairs = [found[which] for which in ("over_members", "over_mazes")]
            ends = ["" if pair is None else float(pair[side, index]) for pair in pairs for side in range(2)]
            for column, value in zip(passed.values(), (name, int(k), float(found["mean"][index]), *ends), strict=True):
                column.append(value)
    return {"success": success, "pass_at_k": passed}


def _alt(estimates: Mapping[str, Estimate], curves: Mapping[str, Any], ks: np.ndarray, made: Mapping[str, Any]) -> str:
    told = [
        f"{algorithms.TITLES[name]}: success {100 * estimates[f'success_of_{name}'].mean:.0f} %, "
        f"pass@{ks[-1]} {100 * curves[name]['mean'][-1]:.0f} %"
        for name in made
    ]
    base = (
        f"the base reaches {100 * estimates['success_of_base'].mean:.0f} % and {100 * curves['base']['mean'][-1]:.0f} %"
    )
    return (
        "Left, success at one attempt after each algorithm beside the base; right, pass@k against k. "
        f"{base.capitalize()}. {'; '.join(told)}."
    )


_STYLES = {
    "base": (drawing.INK, "s"),
    "ppo": (drawing.BLUE, "o"),
    "grpo": (drawing.SKY, "v"),
    "reinforce": (drawing.GREEN, "^"),
    "lite_ppo": (drawing.GREY, "P"),
    "psr": (drawing.VERMILION, "D"),
    "nsr": (drawing.PURPLE, "X"),
    "w_reinforce": (drawing.ORANGE, "*"),
}
"""Colour and marker of each arm."""


def draw(findings: Findings, headline: str, stem: Path, footer: str) -> list[Path]:
    """Left, success at one attempt; right, pass@k against k with the base."""
    names = [name.removeprefix("success_of_") for name in findings.estimates if name.startswith("success_of_")]
    names = ["base", *(name for name in names if name != "base")]
    titles = {name: algorithms.TITLES.get(name, "base") for name in names}
    meaning = (
        "one pretrained base, trained further in several ways; bars and darker bands: 95 % interval over members; "
    )
    figure = drawing.figure(11.0, 4.7, headline, meaning + "paler bands: over mazes; dots: members")
    left, right = (figure.add_axes(place) for place in ((0.105, 0.135, 0.33, 0.67), (0.51, 0.135, 0.355, 0.67)))
    _draw_success(left, findings, titles)
    _draw_passes(right, findings, titles)
    return drawing.save(figure, stem, footer)


def _draw_success(axes: Axes, findings: Findings, titles: Mapping[str, str]) -> None:
    drawing.plain(axes, "success at one attempt (% of held-out mazes)", "")
    shown = [
        (title, findings.estimates[f"success_of_{name}"], _STYLES[name])
        for name, title in titles.items()
        if name != "base"
    ]
    base = findings.estimates["success_of_base"].mean
    plots.rows(axes, shown, 100, ".0f", {f"base {100 * base:.0f}": base})
    axes.set_xlim(0, 100)


def _draw_passes(axes: Axes, findings: Findings, titles: Mapping[str, str]) -> None:
    drawing.plain(axes, "k, attempts at a maze", "pass@k (% of held-out mazes)")
    table = {key: np.array(values, dtype=object) for key, values in findings.tables["pass_at_k"].items()}
    ks = np.unique(table["k"].astype(int))
    for name, title in titles.items():
        mine, (colour, marker) = table["arm"] == name, _STYLES[name]
        for which, alpha in (("over_mazes", 0.06), ("over_members", 0.28)):
            low, high = (table[f"{end}_{which}"][mine] for end in ("low", "high"))
            if "" not in low:
                low, high = 100 * low.astype(float), 100 * high.astype(float)
                axes.fill_between(ks, low, high, color=colour, alpha=alpha, linewidth=0)
        means, dashes = 100 * table["mean"][mine].astype(float), "--" if name == "base" else "-"
        axes.plot(ks, means, dashes, color=colour, marker=marker, markersize=4.5, linewidth=1.5, label=title)
    axes.set_xscale("log", base=2)
    axes.set_xticks(ks, [str(k) for k in ks])
    axes.minorticks_off()
    axes.set_ylim(None, 102)
    axes.grid(axis="y", color="#e8e8ec", linewidth=0.6)
    axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False, fontsize=8.5)


STUDY = Study(
    name="negative_reinforcement",
    title="Punishment alone keeps pass@k",
    claim="Learning from failures alone keeps or raises pass@k at every k, while learning from successes alone narrows "
    "what a policy still tries.",
    source="arXiv 2506.01347; arXiv 2504.13837",
    method="One base pretrained on three personas of EmojiLabyrinth-v0, 7 × 7 cells, is trained further by each "
    "algorithm with the same number of episodes; every member then makes up to 256 attempts at each of the same "
    "held-out mazes.",
    limits=(
        "All members start from one base: the intervals say nothing of other bases.",
        "A model of some hundred thousand parameters that speaks of mazes is no language model that does mathematics.",
        "Every algorithm runs at its own defaults, untuned; a ranking at one setting is no ranking of the algorithms.",
        "Mazes that the base never solves in 256 attempts may still be within its reach.",
    ),
    questions=(
        Question(
            "nsr_keeps",
            "Does punishment alone (NSR) keep what the base solves in many attempts?",
            f"pass@n after NSR is no more than {MARGIN:g} below the base's.",
            f"It is more than {MARGIN:g} below.",
            (Criterion("many_attempts_gained_by_nsr", "above", -MARGIN),),
            leading=True,
        ),
        Question(
            "psr_narrows",
            "Does reward alone (PSR) end below punishment alone at many attempts?",
            "pass@n after PSR is below that after NSR.",
            "It is above.",
            (Criterion("many_attempts_psr_less_nsr", "below", 0.0),),
            leading=True,
        ),
        Question(
            "nsr_learns",
            "Does punishment alone raise success at one attempt?",
            "Success after NSR is above the base's.",
            "It is below.",
            (Criterion("success_gained_by_nsr", "above", 0.0),),
        ),
        Question(
            "rl_learns",
            "Do PPO, GRPO, REINFORCE and Lite PPO each raise success by 20 points?",
            "Success rises by at least 0.20 with each.",
            "It rises by less with one of them.",
            tuple(Criterion(f"success_gained_by_{name}", "above", GAIN) for name in LEARNERS),
        ),
        Question(
            "rl_narrows",
            "Does RL leave less to find in many attempts than the base had (arXiv 2504.13837)?",
            "pass@n after PPO is below the base's.",
            "It is above.",
            (Criterion("many_attempts_gained_by_ppo", "below", 0.0),),
        ),
    ),
    arms=arms,
    measure=measure,
    draw=draw,
)
"""The study."""
