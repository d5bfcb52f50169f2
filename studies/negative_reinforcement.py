"""Punishment alone keeps what the base can do: pass@k after several ways to learn the labyrinth (arXiv 2506.01347)."""

from collections.abc import Mapping

import xarray as xr

from agents.runs import Run
from analysis import measures
from analysis.figures.panels import Curve, Curves, Panel, Rows
from analysis.measures.attempts import per_maze
from studies.study import Comparison, Options, Results, Study, ask, by_base, of

ARMS = {name: f"labyrinth/{name}" for name in ("ppo", "grpo", "reinforce", "lite_ppo", "psr", "nsr", "w_reinforce")}
LEARNERS = ("PPO", "GRPO", "REINFORCE", "Lite PPO")


def measure(runs: Mapping[str, Run], options: Options) -> Results:
    """Success before and after, and pass@k of every arm on the same held-out mazes."""
    titles, samples = STUDY.titles(), options["attempts"]["samples"]
    each, solved, success = {}, {}, {}
    for arm, run in runs.items():
        title = titles[arm]
        earned = measures.returns(run, **options["returns"])["success"]
        tried = measures.attempts(run, **options["attempts"])
        for stage, name in enumerate(("the base", title)):
            success.setdefault(name, by_base(earned.isel(checkpoint=stage)))
            solved.setdefault(name, tried.isel(checkpoint=stage))
        each[f"success after {title}"] = of(success[title], control="success of the base")
        each[f"success gained by {title}"] = of(success[title] - by_base(earned.isel(checkpoint=0)))
        gained = _many(solved[title], samples) - _many(solved["the base"], samples)
        each[f"solved in many attempts, gained by {title}"] = of(
            gained, f"pass@{samples} after {title} less the base's"
        )
    each["success of the base"] = of(success["the base"])
    between = _many(solved["PSR"], samples) - _many(solved["NSR"], samples)
    each["solved in many attempts, PSR less NSR"] = of(between, f"pass@{samples} after PSR less that after NSR")
    floor = float(next(iter(runs.values())).summary()["success"]["random"])
    marks = {"random player": floor, "base": each["success of the base"].mean}
    rows = {titles[arm]: each[f"success after {titles[arm]}"] for arm in runs}
    lines = {name: by_base(one["pass_at_k"]).transpose("k", "member") for name, one in solved.items()}
    chance = solved["the base"]["random_pass_at_k"]
    curves = {name: Curve(line["k"].values, line.values) for name, line in lines.items()}
    curves["random player"] = Curve(chance["k"].values, chance.values)
    panels: list[Panel] = [
        Rows(rows, "success at one attempt (%)", marks, percent=True),
        Curves(curves, "attempts at a maze", "mazes solved (%)", percent=True, log_x=True),
    ]
    return Results(each, panels, "dots: bases, trained further in several ways; bars and bands: 95 % intervals")


def _many(tried: xr.Dataset, samples: int) -> xr.DataArray:
    """Whether a maze is solved in as many attempts as were made, of each base and maze."""
    return by_base(per_maze(tried, samples))


STUDY = Study(
    name="negative_reinforcement",
    title="Punishment alone keeps pass@k",
    claim="Learning from failures alone keeps or raises pass@k at every k, while learning from successes alone narrows "
    "what a policy still tries.",
    source="arXiv 2506.01347; arXiv 2504.13837",
    method="Bases pretrained on three personas of EmojiLabyrinth-v0, 7 × 7 cells, are trained further by each "
    "algorithm with as many episodes; every member then makes up to 256 attempts at each of the same held-out mazes.",
    limits=(
        "A model of some hundred thousand parameters that speaks of mazes is no language model that does mathematics.",
        "Every algorithm runs at its own defaults, untuned; a ranking at one setting is no ranking of the algorithms. "
        "At this learning rate NSR's entropy rises at once, and at a tenth of it the picture is another.",
        "A uniform random player solves most of these mazes in 256 attempts: the curve's last point measures luck.",
    ),
    questions=(
        ask(
            "nsr_keeps",
            "Does punishment alone (NSR) keep what the base solves in many attempts?",
            "pass@n after NSR is no more than 0.02 below the base's.",
            "It is more than 0.02 below.",
            "solved in many attempts, gained by NSR > −0.02",
            smallest=0.0,
            primary=True,
        ),
        ask(
            "psr_narrows",
            "Does reward alone (PSR) end below punishment alone at many attempts?",
            "pass@n after PSR is below that after NSR, by 0.02 at least.",
            "It is not.",
            "solved in many attempts, PSR less NSR < 0",
            smallest=0.02,
            leading=True,
        ),
        ask(
            "nsr_learns",
            "Does punishment alone raise success at one attempt?",
            "Success after NSR is above the base's, by 0.02 at least.",
            "It is not.",
            "success gained by NSR > 0",
            smallest=0.02,
        ),
        ask(
            "rl_learns",
            "Do PPO, GRPO, REINFORCE and Lite PPO each raise success by 20 points?",
            "Success rises by at least 0.20 with each.",
            "It rises by less with one of them.",
            *(f"success gained by {name} > 0.2" for name in LEARNERS),
            smallest=0.0,
        ),
        ask(
            "rl_narrows",
            "Does RL leave less to find in many attempts than the base had (arXiv 2504.13837)?",
            "pass@n after PPO is below the base's, by 0.02 at least.",
            "It is not.",
            "solved in many attempts, gained by PPO < 0",
            smallest=0.02,
        ),
    ),
    arms=ARMS,
    skip={"smoke": ("grpo", "reinforce", "lite_ppo", "w_reinforce"), "laptop": ("w_reinforce",)},
    options={
        "smoke": {"attempts": {"samples": 16, "mazes": 8}, "returns": {"episodes": 1024}},
        "laptop": {"attempts": {"samples": 256, "mazes": 64}, "returns": {"episodes": 4096}},
        "paper": {"attempts": {"samples": 256, "mazes": 256}, "returns": {"episodes": 16384}},
    },
    measure=measure,
    compared=(
        Comparison(
            "pass@256 of NSR less the base's",
            "0 or above at every k (figure 2)",
            "solved in many attempts, gained by NSR",
            "rate 1e-3 against 1e-6, temperature 1 against 0.6, an entropy bonus, 10⁵ against 10¹⁰ parameters",
        ),
    ),
)
