"""Punishment alone keeps what the base can do: pass@k after several ways to learn a world (arXiv 2506.01347)."""

from collections.abc import Mapping

import numpy as np
import xarray as xr

from agents.runs import Run
from analysis import measures, transitions
from analysis.figures.panels import Curve, Curves, Panel, Rows
from analysis.measures.attempts import per_maze, slices
from analysis.measures.course import stretch
from ground.estimates import Estimate
from studies.study import Comparison, Options, Results, Study, ask, by_base, of

SWEPT = ("psr", "nsr", "w_reinforce")
"""Arms with a grid of learning rates that take one step of each batch, as their authors do."""
OFTEN = ("psr_often", "nsr_often")
"""The same with four steps of each batch."""
ARMS = {name: f"rooms/{name}_rates" for name in (*SWEPT, *OFTEN)} | {
    name: f"rooms/{name}" for name in ("ppo", "slow", "grpo")
}
LATE = 4
"""Checkpoints of an arm's training, its last, that are measured beside the base."""
LESS = 0.03
"""A difference of shares of mazes that is no matter of taste."""
GATE = 0.05
"""A gain of success from which something was learnt."""
FEW = 8
"""Attempts at a maze that a user might make."""
GAINED = "solved in many attempts, gained by {}"
APART = "solved in many attempts at equal success, NSR less PSR"
RATES = ("highest", "middle", "lowest")


def measure(runs: Mapping[str, Run], options: Options) -> Results:
    """Success at one attempt and far mazes solved in many, of every arm and rate; PSR and NSR as they come as far."""
    titles = STUDY.titles()
    courses = {arm: _course(run, options) for arm, run in runs.items()}
    points = {
        (arm, rate): course.isel(member=np.flatnonzero(course["rate"] == rate))
        for arm, course in courses.items()
        for rate in np.unique(course["rate"]).tolist()
    }
    rates = {arm: sorted((rate for other, rate in points if other == arm), reverse=True) for arm in courses}

    def success(key: tuple[str, float]) -> float:
        return float(points[key]["once"].isel(checkpoint=-1).mean())

    best = {arm: points[max(((arm, rate) for rate in rates[arm]), key=success)] for arm in courses}

    def gained(part: xr.Dataset, name: str = "many") -> xr.DataArray:
        return by_base(part[name].isel(checkpoint=-1)) - by_base(part[name].isel(checkpoint=0))

    base = courses["psr"].isel(checkpoint=0)
    each: dict[str, Estimate] = {
        "success of the base": of(base["once"]),
        "solved in many attempts by the base": of(base["many"], _far(courses["psr"], options)),
        f"solved in {FEW} attempts by the base": of(base["few"]),
    }
    for (arm, rate), part in points.items():
        words = f"{titles[arm]}, learning rate {rate:g}"
        each[f"success, {words}"] = of(part["once"].isel(checkpoint=-1), control="success of the base")
        each[f"solved, {words}"] = of(
            part["many"].isel(checkpoint=-1), control="solved in many attempts by the base"
        )  # fmt: skip
        each[f"entropy, {words}"] = of(part["entropy"].isel(checkpoint=-1), "nats per decision")
        each[f"KL, {words}"] = of(part["kl"].isel(checkpoint=-1), "nats per episode")
    for arm, part in best.items():
        rate = f"learning rate {float(part['rate'][0]):g}, of which success is highest"
        each[f"success gained by {titles[arm]}"] = of(gained(part, "once"), rate)
        each[GAINED.format(titles[arm])] = of(gained(part), rate)
        each[f"Cover@.5 gained by {titles[arm]}"] = of(gained(part, "cover"), rate)
    nsr = [points["nsr", rate] for rate in rates["nsr"]]
    each[f"{GAINED.format('NSR')}, {FEW} attempts"] = of(gained(best["nsr"], "few"))
    each[f"{GAINED.format('NSR')}, all mazes"] = of(gained(best["nsr"], "all"))
    each |= {f"{GAINED.format('NSR')}, {where} rate": of(gained(nsr[at])) for where, at in _places(nsr)}
    each["solved in many attempts, NSR, highest less lowest rate"] = of(gained(nsr[0]) - gained(nsr[-1]))
    each["success, NSR less PSR"] = of(gained(best["nsr"], "once") - gained(best["psr"], "once"))

    pair = best["nsr"], best["psr"]
    each[APART] = of(_apart(*pair), "at the highest success at one attempt that both come to, each base")
    each[f"{APART}, {FEW} attempts"] = of(_apart(*pair, "few"))
    each[f"{APART}, all mazes"] = of(_apart(*pair, "all"))
    each["solved in many attempts at equal KL, NSR less PSR"] = of(_apart(*pair, along="kl"))
    each["Cover@.5 at equal success, NSR less PSR"] = of(_apart(*pair, "cover"))
    for where, at in _places(nsr):
        each[f"{APART}, {where} rate"] = of(_apart(nsr[at], points["psr", rates["psr"][at]]))
    if "nsr_often" in best:
        each[f"{APART}, four steps a batch"] = of(_apart(best["nsr_often"], best["psr_often"]))

    follow = {titles[arm]: part for arm, part in best.items() if arm != "slow"}
    panels: list[Panel] = [
        Curves(
            {"base": _by_k(base), **{name: _by_k(part.isel(checkpoint=-1)) for name, part in follow.items()}},
            "attempts at a maze", "far mazes solved (%)", percent=True, log_x=True,
        ),
        Curves(
            {name: _along(part) for name, part in follow.items()},
            "success at one attempt, all mazes (share)", f"far mazes solved in {_samples(options)} (%)", percent=True,
        ),
        *(
            Rows({f"{titles[arm]}, {rate:g}": each[f"{kind}, {titles[arm]}, learning rate {rate:g}"]
                  for arm, rate in sorted(points, key=lambda key: (list(courses).index(key[0]), -key[1]))},
                 words, {"base": each[mark].mean}, percent=True)
            for kind, words, mark in (
                ("success", "success at one attempt (%)", "success of the base"),
                ("solved", f"far mazes solved in {_samples(options)} (%)", "solved in many attempts by the base"),
            )
        ),
    ]  # fmt: skip
    meaning = "curves: each arm at its best rate; rows: every rate; dots: bases; bars and bands: 95 % intervals"
    return Results(each, panels, f"{meaning}; no random player solved a far maze")


def _course(run: Run, options: Options) -> xr.Dataset:
    """What every member solves at each checkpoint, with its KL from the base, its entropy and its learning rate."""
    names = [stretch(run)[0], *stretch(run)[1:][-LATE:]]
    tried = measures.attempts(run, names, **options["attempts"])
    samples = int(tried["k"][-1])
    first = tried.isel(checkpoint=0)
    far = np.flatnonzero(slices(first["distance"].values, first["random_successes"].values)[1])
    tried = tried.drop_vars(["distance", "maze"])
    went = measures.divergence(run, names, **options["divergence"])
    many, few = per_maze(tried, samples), per_maze(tried, min(FEW, samples))
    return xr.Dataset(
        {
            "once": tried["pass_at_k"].sel(k=1, drop=True),
            "many": many.isel(maze=far),
            "few": few.isel(maze=far),
            "all": many.rename(maze="every_maze"),
            "cover": tried["cover"].sel(tau=0.5, drop=True),
            "by_k": tried["sliced_pass_at_k"].sel(slice="far", drop=True),
            "kl": went["kl"],
            "entropy": went["entropy"].isel(channel=-1, drop=True),
        }
    ).assign_coords(
        rate=("member", [one.values.get("rl.learning_rate", run.config.rl.learning_rate) for one in run.population])
    )


def _places(points: list[xr.Dataset]) -> list[tuple[str, int]]:
    """The rates of a grid by words, and where they stand in it from the highest on."""
    return [("highest", 0), ("middle", len(points) // 2), ("lowest", len(points) - 1)]


def _apart(one: xr.Dataset, other: xr.Dataset, name: str = "many", along: str = "once") -> xr.DataArray:
    """What one arm solves more than another where each first came as far as both do, by base."""
    return transitions.less(*((_followed(part[name]), _followed(part[along])) for part in (one, other)))


def _followed(array: xr.DataArray) -> xr.DataArray:
    return by_base(array).transpose("checkpoint", "member", ...)


def _by_k(part: xr.Dataset) -> Curve:
    values = by_base(part["by_k"]).transpose("k", "member")
    return Curve(values["k"].values, values.values)


def _along(part: xr.Dataset) -> Curve:
    """Far mazes solved in many attempts against success at one, along training."""
    return Curve(_followed(part["once"]).values, _followed(part["many"].mean("maze")).values)


def _samples(options: Options) -> int:
    return options["attempts"]["samples"]


def _far(course: xr.Dataset, options: Options) -> str:
    return f"pass@{_samples(options)} of {course.sizes['maze']} far mazes, which no random player solved in as many"


STUDY = Study(
    name="negative_reinforcement",
    title="Punishment alone keeps pass@k",
    claim="Learning from failures alone keeps or raises pass@k at every k, while learning from successes alone narrows "
    "what a policy still tries.",
    source="arXiv 2506.01347; arXiv 2504.13837; arXiv 2510.08325",
    method="Bases that hold three personas of EmojiRooms-v0 are trained further by learning from successes alone "
    "(PSR), from failures alone (NSR) and from both at a tenth of the weight for successes (W-REINFORCE), at three "
    "learning rates, by one step of each batch and by four. Every member makes as many attempts at each of the same "
    "held-out mazes; what counts are far ones, that no player who moves at random has solved in as many attempts. PSR "
    "and NSR are compared where their success at one attempt is the same.",
    limits=(
        "A model of a hundred thousand parameters that speaks of mazes is no language model that does mathematics.",
        "The base solves nearly every far maze in many attempts, since one of its personas knows how: so punishment "
        "can lose what it could do, or keep it, and cannot raise it.",
        "PPO and GRPO ran at one or two rates, and are compared with the base alone.",
        "PSR and NSR at a rate of 3e-4 with four steps a batch had been looked at for another question, in "
        "persona_transition, before this was asked: there NSR kept more of its personas than PSR at equal success.",
    ),
    questions=(
        ask(
            "learns",
            "Do both learn, from a base that solves far mazes in many attempts?",
            "Success at one attempt rises by more than 0.05 with each at its best rate; the base solves over half.",
            "It does not.",
            f"success gained by NSR > {GATE:g}",
            f"success gained by PSR > {GATE:g}",
            "solved in many attempts by the base > 0.5",
            gate=True,
        ),
        ask(
            "nsr_keeps",
            "Does punishment alone (NSR) keep what the base solves in many attempts?",
            f"At its best rate NSR solves no more than {LESS:g} fewer of the far mazes than the base.",
            "It solves more than that fewer.",
            f"{GAINED.format('NSR')} > −{LESS:g}",
            smallest=0.0,
            primary=True,
            variants=[
                f"{GAINED.format('NSR')}, {where}"
                for where in (f"{FEW} attempts", "all mazes", *(f"{rate} rate" for rate in RATES))
            ],
        ),
        ask(
            "psr_narrows",
            "Does reward alone (PSR) solve less in many attempts than punishment alone, when one attempt is as good?",
            f"At equal success NSR solves a share of the far mazes greater by {LESS:g}.",
            "It does not.",
            f"{APART} > 0",
            smallest=LESS,
            leading=True,
            variants=[
                *(
                    f"{APART}, {where}"
                    for where in (
                        f"{FEW} attempts",
                        "all mazes",
                        "four steps a batch",
                        *(f"{rate} rate" for rate in RATES),
                    )
                ),
                "solved in many attempts at equal KL, NSR less PSR",
            ],
        ),
        ask(
            "nsr_is_as_good",
            "Is punishment alone as good at one attempt as reward alone?",
            f"At their best rates NSR's success is no more than {LESS:g} below PSR's.",
            "It is lower.",
            f"success, NSR less PSR > −{LESS:g}",
            smallest=0.0,
        ),
        ask(
            "rate_decides",
            "Does the learning rate decide what punishment keeps?",
            f"At the highest rate NSR solves a share smaller by {LESS:g} than at the lowest.",
            "It does not.",
            "solved in many attempts, NSR, highest less lowest rate < 0",
            smallest=LESS,
        ),
        ask(
            "weighted",
            "Does a little reward beside the punishment (W-REINFORCE) keep it too?",
            f"It solves no more than {LESS:g} fewer than the base.",
            "It solves more than that fewer.",
            f"{GAINED.format('W-REINFORCE')} > −{LESS:g}",
            smallest=0.0,
        ),
        ask(
            "rl_narrows",
            "Does RL leave less to find in many attempts than the base had (arXiv 2504.13837)?",
            f"After PPO the share of far mazes solved is smaller by {LESS:g}.",
            "It is not.",
            f"{GAINED.format('PPO')} < 0",
            smallest=LESS,
        ),
    ),
    arms=ARMS,
    skip={"smoke": ("w_reinforce", *OFTEN, "slow", "grpo")},
    options={
        "smoke": {"attempts": {"samples": 8, "mazes": 32}, "divergence": {"episodes": 64}},
        "laptop": {"attempts": {"samples": 64, "mazes": 96}, "divergence": {"episodes": 512}},
        "paper": {"attempts": {"samples": 256, "mazes": 256}, "divergence": {"episodes": 512}},
    },
    measure=measure,
    compared=(
        Comparison(
            "pass@k of NSR less the base's, at the largest k",
            "0 or above (figure 2)",
            GAINED.format("NSR"),
            "rates of 1e-4 and above against 1e-6, temperature 1 against 0.6, 10⁵ against 10¹⁰ parameters",
        ),
    ),
)
