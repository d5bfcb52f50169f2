"""Does RL recruit an axis of reward, Gold at one end and Mold at the other (arXiv 2605.30232)?"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from agents import runs
from agents.runs import config as configs
from agents.runs.config import Config
from analysis import drawing
from studies import plots
from studies.claims import Criterion, Estimate, Question
from studies.store import Store
from studies.study import Findings, Scale, Study

MEMBERS: dict[Scale, int] = {"smoke": 2, "laptop": 12, "paper": 48}
"""A multiple of six gives every order of the three tiles to as many members."""
CONCEPTS: dict[Scale, dict[str, int]] = {
    "smoke": {"episodes": 240, "play_episodes": 64, "permutations": 9},
    "laptop": {},
    "paper": {"play_episodes": 2048},
}
"""Options of `analysis concepts`."""
STEER: dict[Scale, dict[str, int]] = {"laptop": {}, "paper": {"episodes": 128}}
"""Options of `analysis steer`; without them nothing is steered, for that takes a minute to compile."""
SITE = "move_next_same_move"
"""Where tracking is judged: at the move, whether it will pay, among moves in the same direction."""
EFFECT = "enter_gold"
"""What steering is judged by."""
UNRELATED = -0.5
"""Cosine of Gold's and Mold's vectors when three class means are unrelated."""
ALIGNED = 0.25
"""Cosine with the narrator's direction beyond two standard deviations of a random one in 64 dimensions."""

_TITLES = {
    "ppo": "PPO",
    "dr_grpo": "Dr. GRPO",
    "reinforce": "REINFORCE",
    "sft": "SFT on Alice",
    "shuffled": "PPO, rewards shuffled",
    "unnarrated": "PPO, base without narrator",
}
_SMOKE = ("ppo",)


def arms(scale: Scale) -> dict[str, Config]:
    """One narrated base and six continuations or controls; every emoji plays every role in pretraining and in RL."""
    made = {}
    for name in _TITLES if scale != "smoke" else _SMOKE:
        algorithm: Any = name if name in ("dr_grpo", "reinforce") else "ppo"
        config = configs.start(scale, "EmojiMaze-v0", algorithm)
        narration = 0.0 if name == "unnarrated" else 0.5
        config = dataclasses.replace(
            config,
            pretrain=dataclasses.replace(config.pretrain, tile_maps="balanced", narration=narration),
            population=dataclasses.replace(config.population, seeds=MEMBERS[scale], tile_maps="permuted"),
        )
        if name == "shuffled":
            config = dataclasses.replace(config, rl=dataclasses.replace(config.rl, shuffle_rewards=True))
        if name == "sft":
            # As many episodes as RL plays, shown instead of tried.
            updates = config.rl.updates * config.rl.episodes // config.sft.episodes
            sft = dataclasses.replace(config.sft, updates=updates - updates % config.sft.chunk)
            config = dataclasses.replace(config, sft=sft, rl=dataclasses.replace(config.rl, updates=0))
        made[name] = config
    return made


def measure(store: Store, made: Mapping[str, runs.Run], scale: Scale) -> Findings:
    """Concept vectors of every arm before and after, and steering of the PPO arm."""
    found = {name: store.analysis(run, "concepts", **CONCEPTS[scale])["arms"] for name, run in made.items()}
    steered = {}
    if scale in STEER:
        steered = store.analysis(made["ppo"], "steer", **STEER[scale])["settings"]["after RL"]["steering"]
    return Findings(*estimate(found, steered))


def estimate(found: Mapping[str, Any], steered: Mapping[str, Any]) -> tuple[dict[str, Estimate], dict[str, Any], str]:
    """Estimates, tables and the figure's description, from the documents of the analyses.

    Args:
        found: arm of the study → what `analysis concepts` says of its run, the effect first.
        steered: what `analysis steer` says of the PPO arm after RL; empty where nothing was steered.
    """
    each: dict[str, Estimate] = {}
    places = {name: _effect(parts) for name, parts in found.items()}
    places |= {"before": _before(found["ppo"]), "untrained": found["ppo"]["untrained"]}
    places |= {"unnarrated_before": _before(found["unnarrated"])} if "unnarrated" in found else {}
    for name, part in places.items():
        what = _TITLES.get(name, name.replace("_", " "))
        control = "" if name in ("before", "untrained") else "before"
        cosine = part["cosine"]["other_classes"]["at_rule_layer"]["members"]
        each[f"cosine_{name}"] = _of(
            cosine, f"cosine of Gold's and Mold's vectors, {what}", control and "cosine_before"
        )
        d, _ = _tracking(part)
        each[f"tracking_{name}"] = _of(
            d, f"Cohen's d of the axis, Gold against Mold ahead, {what}", control and "tracking_untrained"
        )
        each[f"narrator_{name}"] = _of(
            part["narrator_cosine"]["foretold"]["members"], f"cosine of the axis with the narrator's, {what}",
            control and "narrator_before",
        )  # fmt: skip

    def less(one: str, other: str, meaning: str) -> Estimate:
        values, others = (np.array(each[name].values, np.float64) for name in (one, other))
        return _of(values - np.broadcast_to(others, values.shape), meaning)

    each["tracking_beyond_untrained"] = less("tracking_ppo", "tracking_untrained", "d after RL less d untrained")
    d, random = _tracking(_effect(found["ppo"]))
    each["tracking_beyond_random"] = _of(d - random, "d after RL less the 97.5 % quantile of random directions' |d|")
    each["tracking_before_beyond_untrained"] = less(
        "tracking_before", "tracking_untrained", "d before RL less untrained"
    )
    if "unnarrated" in found:
        each["narrator_beyond_unnarrated"] = less(
            "narrator_ppo", "narrator_unnarrated", "cosine with the narrator's less that without narration"
        )
        each["tracking_before_beyond_unnarrated"] = less(
            "tracking_before", "tracking_unnarrated_before", "d before RL less d before RL without narration"
        )
    for name in ("sft", "shuffled"):
        if name in found:
            each[f"tracking_beyond_{name}"] = less(
                "tracking_ppo", f"tracking_{name}", f"d after RL less d, {_TITLES[name]}"
            )
    if steered:
        each |= _steering(steered)
    tables = {
        name: _table({key: value for key, value in each.items() if key.startswith(f"{name}_")})
        for name in ("cosine", "tracking", "narrator", *(["steering"] if steered else []))
    }
    mean = {name: f"{found.mean:.2f}" for name, found in each.items()}
    alt = (
        "Four panels of estimates with intervals. "
        f"Cosine of Gold's and Mold's vectors: {mean['cosine_ppo']} after PPO, {mean['cosine_before']} before, "
        "null −0.5. "
        f"Tracking, Cohen's d: {mean['tracking_ppo']} after PPO, {mean['tracking_before']} before, "
        f"{mean['tracking_untrained']} untrained. Cosine with the narrator's: {mean['narrator_ppo']} after PPO. "
    )
    if steered:
        alt += (
            f"Steering: P(enter Gold) changes by {mean['steering_axis']} along the axis and by "
            f"{mean['steering_random_limit']} along 2.5 % of random directions."
        )
    return each, tables, alt


def _effect(parts: Mapping[str, Any]) -> Any:
    return next(iter(parts.values()))


def _before(parts: Mapping[str, Any]) -> Any:
    return next((part for name, part in parts.items() if name.startswith("before")), _effect(parts))


def _steering(steered: Mapping[str, Any]) -> dict[str, Estimate]:
    swing = {name: np.array(parts[EFFECT]["swing"]["members"], np.float64) for name, parts in steered.items()}
    limit = np.array(steered["random"][EFFECT]["quantile_97.5_size"]["members"], np.float64)
    each = {
        f"steering_{name}": _of(swing[name], f"change of P(enter Gold) from the lowest strength to the highest, {name}")
        for name in ("axis", "path", "random")
    }
    each["steering_random_limit"] = _of(limit, "97.5 % quantile of random directions' |change of P(enter Gold)|")
    each["steering_beyond_random"] = _of(swing["axis"] - limit, "change along the axis less random's 97.5 % quantile")
    each["steering_beyond_path"] = _of(swing["axis"] - np.abs(swing["path"]), "change along the axis less |Path's|")
    return each


def _of(values: Any, meaning: str, control: str = "") -> Estimate:
    numbers = [np.nan if value is None else value for value in np.asarray(values, dtype=object).ravel()]
    return Estimate.of(np.array(numbers, np.float64), meaning, control)


def _tracking(part: Mapping[str, Any]) -> tuple[np.ndarray, float]:
    """d of the members' axis at `SITE`, and how far random directions reach."""
    tracking = part["goal_tracking"]
    d = np.array(tracking["axis"][SITE]["d"]["members"], np.float64)
    return d, float(tracking["random"][SITE]["quantile_97.5_size"])


def _table(each: Mapping[str, Estimate]) -> dict[str, list]:
    columns: dict[str, list] = {"estimate": [], "member": [], "value": [], "mean": [], "low": [], "high": []}
    for name, found in each.items():
        for member, value in enumerate(found.values):
            row = (name, member, value, found.mean, found.low, found.high)
            for column, cell in zip(columns.values(), row, strict=True):
                column.append(cell)
    return columns


_STYLES: dict[str, plots.Style] = {
    "ppo": (drawing.BLUE, "o"),
    "dr_grpo": (drawing.SKY, "v"),
    "reinforce": (drawing.GREEN, "^"),
    "sft": (drawing.ORANGE, "D"),
    "shuffled": (drawing.PURPLE, "X"),
    "unnarrated": (drawing.VERMILION, "P"),
    "before": (drawing.INK, "s"),
    "unnarrated_before": (drawing.VERMILION, "s"),
    "untrained": (drawing.GREY, "s"),
}
_ROWS = _TITLES | {
    "before": "before RL",
    "unnarrated_before": "before RL, without narrator",
    "untrained": "untrained",
}


def draw(findings: Findings, headline: str, stem: Path, footer: str) -> list[Path]:
    """Four panels: opposition, tracking, alignment with the narrator, steering."""
    each = findings.estimates
    names = [name for name in _ROWS if f"cosine_{name}" in each]
    height = 2.4 + 0.34 * len(names)
    figure = drawing.figure(
        12.6, height, headline, "dots: members, each emoji in every role equally often; bars: 95 % bootstrap interval"
    )
    wide, bottom, tall = 0.185, 0.78 / height, (height - 1.75) / height
    panels = [figure.add_axes((0.155 + index * (wide + 0.012), bottom, wide, tall)) for index in range(3)]
    last = figure.add_axes(
        (0.155 + 3 * (wide + 0.012) + 0.085, bottom, 0.975 - 0.155 - 3 * (wide + 0.012) - 0.085, tall)
    )
    random = each["tracking_ppo"].mean - each["tracking_beyond_random"].mean
    for axes, (kind, label, nulls) in zip(
        panels,
        (
            ("cosine", "cosine of Gold's and\nMold's vectors", {"unrelated": UNRELATED}),
            ("tracking", "Cohen's d of the axis,\nGold against Mold ahead", {"random": random}),
            ("narrator", "cosine with the narrator's\ngood − bad", {"": 0.0}),
        ),
        strict=True,
    ):
        drawing.plain(axes, label)
        plots.rows(axes, [(_ROWS[name], each[f"{kind}_{name}"], _STYLES[name]) for name in names], nulls=nulls)
        axes.tick_params(labelleft=axes is panels[0])
    drawing.plain(last, "change of P(enter Gold)\nby steering")
    if "steering_axis" not in each:
        last.text(0.5, 0.5, "nothing steered", transform=last.transAxes, ha="center", color=drawing.GREY, fontsize=9)
        return drawing.save(figure, stem, footer)
    shown = [
        ("axis", each["steering_axis"], _STYLES["ppo"]),
        ("Path direction", each["steering_path"], (drawing.ORANGE, "D")),
        ("random, mean", each["steering_random"], (drawing.GREY, "s")),
        ("random, 97.5 %", each["steering_random_limit"], (drawing.GREY, "^")),
    ]
    plots.rows(last, shown, nulls={"": 0.0})
    return drawing.save(figure, stem, footer)


STUDY = Study(
    name="functional_welfare",
    title="RL recruits an axis of reward",
    claim="RL makes a model represent what pays and what costs as two ends of one axis, which foretells its choices, "
    "steers them, and was there before RL.",
    source="arXiv 2605.30232",
    method="A base pretrained on personas with every emoji in every role, its episodes half narrated, is trained "
    "further with the three tiles permuted across members. Concept vectors are means over synthetic episodes at the "
    "last move; the layer is chosen by the paper's rule on held-out episodes.",
    limits=(
        "All members start from one base, those of the control without a narrator from another: the intervals say "
        "nothing of other bases.",
        "The extraction set is synthetic and without wind; the axis is a difference of means and no more.",
        "A direction that steers need not be the one that the model uses.",
        "The narrator speaks of rewards in two tokens; whether that is anything like affect is not asked here.",
    ),
    questions=(
        Question(
            "antiparallel",
            "After RL, do the vectors of Gold and Mold oppose each other beyond what unrelated classes do?",
            "Their cosine at the rule's layer lies below −0.5.",
            "It lies above −0.5.",
            (Criterion("cosine_ppo", "below", UNRELATED),),
            leading=True,
        ),
        Question(
            "tracks",
            "Does the axis foretell what the chosen tile pays, beyond an untrained network and random directions?",
            "Cohen's d exceeds that of the untrained network and that of 97.5 % of random directions.",
            "It falls below one of them.",
            (Criterion("tracking_beyond_untrained", "above", 0.0), Criterion("tracking_beyond_random", "above", 0.0)),
            leading=True,
        ),
        Question(
            "steers",
            "Does pushing along the axis change what is entered, beyond random directions and the Path direction?",
            "P(enter Gold) changes by more than along 97.5 % of random directions, and by more than along Path's.",
            "It changes by less than along one of them.",
            (Criterion("steering_beyond_random", "above", 0.0), Criterion("steering_beyond_path", "above", 0.0)),
            leading=True,
        ),
        Question(
            "recruited",
            "Was the axis there before RL, as the narrator's, and is it absent without narration?",
            f"Its cosine with the narrator's direction exceeds {ALIGNED:g} and that without narration; before RL it "
            "tracks beyond an untrained network and beyond a base without narrator.",
            "One of these is reversed.",
            (
                Criterion("narrator_ppo", "above", ALIGNED),
                Criterion("narrator_beyond_unnarrated", "above", 0.0),
                Criterion("tracking_before_beyond_untrained", "above", 0.0),
                Criterion("tracking_before_beyond_unnarrated", "above", 0.0),
            ),
            leading=True,
        ),
        Question(
            "other_algorithms",
            "Do the vectors oppose each other after Dr. GRPO and REINFORCE too, which have no trained value head?",
            "Both cosines lie below −0.5.",
            "One lies above −0.5.",
            (Criterion("cosine_dr_grpo", "below", UNRELATED), Criterion("cosine_reinforce", "below", UNRELATED)),
        ),
        Question(
            "reward",
            "Does it take reward: is tracking weaker after RL on shuffled rewards?",
            "d is higher with true rewards.",
            "It is lower.",
            (Criterion("tracking_beyond_shuffled", "above", 0.0),),
        ),
        Question(
            "reinforcement",
            "Does it take reinforcement: is tracking weaker after imitating Alice for as many episodes?",
            "d is higher after RL.",
            "It is lower.",
            (Criterion("tracking_beyond_sft", "above", 0.0),),
        ),
    ),
    arms=arms,
    measure=measure,
    draw=draw,
)
"""The study."""
