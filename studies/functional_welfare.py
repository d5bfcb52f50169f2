"""Does RL recruit an axis of reward, Gold at one end and Mold at the other (arXiv 2605.30232)?"""

from collections.abc import Mapping

import numpy as np

from agents.runs import Run
from analysis import measures
from analysis.figures.panels import Panel, Rows
from analysis.measure import end
from ground.estimates import Estimate
from studies.study import Comparison, Options, Results, Study, ask, by_base, of

ARMS = {
    **{name: f"narrated/{name}" for name in ("ppo", "dr_grpo", "reinforce", "sft", "shuffled")},
    "unnarrated": "unnarrated/ppo",
}
SITE = {"site": "move", "outcome": "next_same_move"}
"""Where tracking is judged: at the move, whether it will pay, among moves in the same direction."""
UNRELATED = -0.5
"""Cosine of Gold's and Mold's vectors when three class means are unrelated."""


def measure(runs: Mapping[str, Run], options: Options) -> Results:
    """Concept vectors of every arm untrained, before and after, what they foretell, and steering of the PPO arm."""
    titles, steps = STUDY.titles(), {"untrained": 0, "before RL": -2}
    places = {titles[arm]: (arm, -1) for arm in runs} | {name: ("ppo", step) for name, step in steps.items()}
    places |= {"before RL, without narrator": ("unnarrated", -2)} if "unnarrated" in runs else {}
    concepts = {arm: measures.concepts(run, **options["concepts"]) for arm, run in runs.items()}
    tracking = {arm: measures.tracking(run, **options["tracking"]) for arm, run in runs.items()}
    each: dict[str, Estimate] = {}
    cosines, d, narrator = (
        {name: by_base(values[arm].isel(checkpoint=step)[variable].sel(at)) for name, (arm, step) in places.items()}
        for values, variable, at in (
            (concepts, "cosine", {"reference": "other classes"}),
            (tracking, "axis", SITE),
            (concepts, "narrator", {"way": "foretold"}),
        )
    )
    for kind, values, control in (
        ("cosine", cosines, "before RL"), ("tracking", d, "untrained"), ("narrator", narrator, "before RL")
    ):  # fmt: skip
        each |= {
            f"{kind}, {name}": of(x, control="" if name in steps else f"{kind}, {control}")
            for name, x in values.items()
        }
    for one, other in (
        ("PPO", "untrained"), ("PPO", "SFT on Alice"), ("PPO", "PPO, rewards shuffled"),
        ("before RL", "untrained"), ("before RL", "before RL, without narrator"),
    ):  # fmt: skip
        if other in d:
            each[f"tracking, {one} less {other}"] = of(d[one] - d[other])
    if "unnarrated" in runs:
        each["narrator, PPO less without narrator"] = of(narrator["PPO"] - narrator[titles["unnarrated"]])
    directions = tracking["ppo"].isel(checkpoint=-1)["control_d"].sel({"control": "random", **SITE})
    random = float(np.quantile(np.abs(directions), 0.975))
    each["tracking, PPO beyond random"] = of(d["PPO"] - random, "d less the 97.5 % quantile of random directions' |d|")
    panels: list[Panel] = [
        _rows(each, "cosine", places, "cosine of Gold's and Mold's vectors", {"unrelated": UNRELATED}),
        _rows(each, "tracking", places, "Cohen's d of the axis, Gold against Mold ahead", {"random 97.5 %": random}),
        _rows(each, "narrator", places, "cosine with the narrator's good − bad", {"unrelated": 0.0}),
    ]
    if "steering" in options:
        steering = measures.steering(runs["ppo"], end(runs["ppo"]), **options["steering"]).isel(checkpoint=0)
        at = {"emoji": "own", "effect": "enter_gold"}
        swing = steering["swing"].sel(at)
        swings = {name: by_base(swing.sel(direction=name)) for name in ("axis", "path", "random")}
        limit = swings["random, 97.5 %"] = by_base(steering["limit"].sel(at))
        each |= {f"steering, {name}": of(x, "change of P(enter Gold)") for name, x in swings.items()}
        each["steering, axis beyond random"] = of(swings["axis"] - limit)
        each["steering, axis beyond Path"] = of(swings["axis"] - by_base(abs(swing.sel(direction="path"))))
        panels.append(_rows(each, "steering", swings, "change of P(enter Gold) by steering", {"nothing": 0.0}))
    return Results(each, panels, "dots: bases, each emoji in every role equally often; bars: 95 % intervals over bases")


def _rows(each: Mapping[str, Estimate], kind: str, names: Mapping, label: str, marks: Mapping[str, float]) -> Rows:
    return Rows({name: each[f"{kind}, {name}"] for name in names}, label, marks)


SMOKE = {
    "concepts": {"episodes": 240, "permutations": 9},
    "tracking": {"episodes": 240, "play_episodes": 64},
}
STUDY = Study(
    name="functional_welfare",
    title="RL recruits an axis of reward",
    claim="RL makes a model represent what pays and what costs as two ends of one axis, which foretells its choices, "
    "steers them, and was there before RL.",
    source="arXiv 2605.30232",
    method="Bases pretrained on personas with every emoji in every role, their episodes half narrated, are trained "
    "further with the three tiles permuted across members. Concept vectors are means over synthetic episodes at the "
    "last move; the layer is chosen by the paper's rule on held-out episodes.",
    limits=(
        "Steering is judged after RL, where the probability of entering Gold is so high that little can be added.",
        "Every network is tracked on its own play, so networks and episodes differ together.",
        "The extraction set is synthetic and without wind; the axis is a difference of means and no more.",
        "A direction that steers need not be the one that the model uses.",
        "The narrator speaks of rewards in two tokens; whether that is anything like affect is not asked here.",
    ),
    questions=(
        ask(
            "antiparallel",
            "After RL, do the vectors of Gold and Mold oppose each other beyond what unrelated classes do?",
            "Their cosine at the rule's layer lies below −0.5, by 0.1 at least.",
            "It does not.",
            "cosine, PPO < -0.5",
            smallest=0.1,
            primary=True,
        ),
        ask(
            "tracks",
            "Does the axis foretell what the chosen tile pays, beyond an untrained network and random directions?",
            "Cohen's d exceeds that of the untrained network and that of 97.5 % of random directions.",
            "Being no better than these shows nothing.",
            "tracking, PPO less untrained > 0",
            "tracking, PPO beyond random > 0",
            leading=True,
        ),
        ask(
            "steers",
            "Does pushing along the axis change what is entered, beyond random directions and the Path direction?",
            "P(enter Gold) changes by more than along 97.5 % of random directions, and by more than along Path's.",
            "Being no better than these shows nothing.",
            "steering, axis beyond random > 0",
            "steering, axis beyond Path > 0",
            leading=True,
        ),
        ask(
            "recruited",
            "Was the axis there before RL, as the narrator's, and is it absent without narration?",
            "Its cosine with the narrator's direction exceeds 0.25 and that without narration; before RL it tracks "
            "beyond an untrained network and beyond a base without narrator.",
            "Being no better than these shows nothing.",
            "narrator, PPO > 0.25",
            "narrator, PPO less without narrator > 0",
            "tracking, before RL less untrained > 0",
            "tracking, before RL less before RL, without narrator > 0",
            leading=True,
        ),
        ask(
            "other_algorithms",
            "Do the vectors oppose each other after Dr. GRPO and REINFORCE too, which have no trained value head?",
            "Both cosines lie below −0.5, by 0.1 at least.",
            "One does not.",
            "cosine, Dr. GRPO < -0.5",
            "cosine, REINFORCE < -0.5",
            smallest=0.1,
        ),
        ask(
            "reward",
            "Does it take reward: is tracking weaker after RL on shuffled rewards?",
            "d is higher with true rewards, by 0.2 at least.",
            "It is not.",
            "tracking, PPO less PPO, rewards shuffled > 0",
            smallest=0.2,
        ),
        ask(
            "reinforcement",
            "Does it take reinforcement: is tracking weaker after imitating Alice for as many episodes?",
            "d is higher after RL, by 0.2 at least.",
            "It is not.",
            "tracking, PPO less SFT on Alice > 0",
            smallest=0.2,
        ),
    ),
    arms=ARMS,
    skip={"smoke": ("dr_grpo", "reinforce", "sft", "shuffled", "unnarrated")},
    options={
        "smoke": SMOKE,
        "laptop": {"concepts": {}, "tracking": {}, "steering": {}},
        "paper": {"concepts": {}, "tracking": {"play_episodes": 2048}, "steering": {"episodes": 128}},
    },
    measure=measure,
    compared=(
        Comparison(
            "cosine of Gold's and Mold's vectors after RL",
            "−0.60 with Path as reference, crossing zero during RL",
            "cosine, PPO",
            "reference classes, 10⁵ against 10⁹ parameters, pretraining on personas against text",
        ),
    ),
)
