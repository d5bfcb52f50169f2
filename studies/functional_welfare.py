"""Does RL recruit an axis of reward, Gold at one end and Mold at the other (arXiv 2605.30232)?"""

from collections.abc import Mapping

import xarray as xr

from agents.runs import Run
from analysis import measures, transitions
from analysis.figures.panels import Curve, Curves, Panel, Rows
from analysis.measure import end, ends
from analysis.measures.course import stretch
from ground.estimates import Estimate
from studies.study import Comparison, Options, Results, Study, ask, by_base, of

ARMS = {name: f"narrated/{name}" for name in ("ppo", "shuffled", "sft", "dr_grpo", "seldom")} | {
    "unnarrated": "unnarrated/ppo"
}
FOLLOWED = ("ppo", "shuffled", "sft")
"""Arms of the same bases that are compared where KL from the base is the same."""
LATE = 4
"""Checkpoints of their training, its last, that are measured beside the base."""
BEFORE_LAST = 1
"""The block after which the base is pushed: after the last a push only adds a constant to the read-out."""
LOGITS = 0.5
"""A change of logit 😀 − logit 😞 that is no matter of taste."""
SITE = {"site": "move", "outcome": "rest"}
"""Where tracking is judged: at the move, whether the turns after it, which nobody has seen yet, will pay."""
PUSH = "base pushed along {}"
BEYOND = "base pushed along PPO's axis, beyond random"
PPO, STRONGER = PUSH.format("PPO's axis"), PUSH.format("PPO's axis less its own")


def measure(runs: Mapping[str, Run], options: Options) -> Results:
    """What each arm's axis does to the base that it comes from, beside every control; how Gold, Mold and Path lie."""
    titles = STUDY.titles()
    courses = {arm: _course(run, options, arm in FOLLOWED) for arm, run in runs.items()}
    pushed = {arm: course.isel(checkpoint=-1) for arm, course in courses.items()}
    # Random directions are drawn beside PPO's axis alone: nobody else's limit is asked for.
    ppo = measures.recruitment(runs["ppo"], end(runs["ppo"]), **options["recruitment"]).isel(checkpoint=0)
    last = int(ppo["layer"][-1])

    def swing(arm: str, direction: str = "axis", name: str = "swing", layer: int = BEFORE_LAST) -> xr.DataArray:
        return by_base(pushed[arm][name].sel(direction=direction, layer=layer, drop=True))

    def limit(name: str = "limit", layer: int = BEFORE_LAST) -> xr.DataArray:
        return by_base(ppo[name].sel(layer=layer, drop=True))

    each: dict[str, Estimate] = {
        "narrator of the base": of(ppo["speaks"], "logit 😀 − 😞 where 😀 follows, less where 😞 does"),
        "random directions, 97.5 %": of(limit(), "logits, covariance of the base's own stream"),
        BEYOND: of(swing("ppo") - limit(), "logits"),
        f"{BEYOND}, at equal KL": of(swing("ppo", name="by_kl") - limit("limit_by_kl"), "logits per √nat"),
        f"{BEYOND}, after the last block": of(swing("ppo", layer=last) - limit(layer=last), "logits"),
        f"{BEYOND}, Gold's vector alone": of(swing("ppo", "gold") - limit(), "logits"),
        PUSH.format("its own axis, beyond random"): of(swing("ppo", "axis before") - limit(), "logits"),
        STRONGER: of(swing("ppo") - swing("ppo", "axis before"), "logits"),
    }
    shown = {f"{titles[arm]}: axis": swing(arm) for arm in runs} | {
        name: swing("ppo", direction)
        for name, direction in (("the base's own axis", "axis before"), ("Path", "path"), ("what says 😀", "said"))
    }
    each |= {PUSH.format(name): of(x, "logits", "random directions, 97.5 %") for name, x in shown.items()}
    each[PPO] = of(swing("ppo"), "logits")
    for arm, words in (("unnarrated", "without narrator"), ("seldom", "seldom narrated")):
        if arm in pushed:
            each[f"{PPO}, less {words}"] = of(swing("ppo") - swing(arm), "logits")
    for arm in [arm for arm in FOLLOWED[1:] if arm in runs]:
        pairs = [(_along(courses[one]), _pooled(courses[one]["spent"])) for one in ("ppo", arm)]
        each[f"{PPO}, less {titles[arm]} at equal KL"] = of(transitions.less(*pairs), "logits")
    each |= {f"KL at the end, {titles[arm]}": of(one["spent"], "nats per episode") for arm, one in pushed.items()}

    # What bases and untrained networks hold is asked of PPO's alone.
    whole = {"ppo": None}
    lie = {arm: measures.concepts(run, whole.get(arm, end(run)), **options["concepts"]) for arm, run in runs.items()}
    places = {titles[arm]: (arm, -1) for arm in runs} | {"before RL": ("ppo", -2), "untrained": ("ppo", 0)}
    for name, (arm, step) in places.items():
        one = lie[arm].isel(checkpoint=step)
        each[f"cosine as seen from Path, {name}"] = of(one["cosine"].sel(reference="Path"))
        each[f"cosine, {name}"] = of(one["cosine"].sel(reference="other classes"))
        each[f"Path's distance from the middle, {name}"] = of(abs(one["path_place"]), "0 half-way, 1 at Gold or Mold")
    read = measures.tracking(runs["ppo"], **options["tracking"])["axis"].sel(SITE)
    steps = {"PPO": -1, "before RL": -2, "untrained": 0}
    d = {name: by_base(read.isel(checkpoint=step)) for name, step in steps.items()}
    each |= {f"tracking, {name}": of(x, "Cohen's d, on the base's play") for name, x in d.items()}
    for other in ("untrained", "before RL"):
        each[f"tracking, PPO less {other}"] = of(d["PPO"] - d[other], "Cohen's d, the same episodes")
    gained = measures.returns(runs["ppo"], **options["returns"])["return"]
    each["return gained by PPO"] = of(by_base(gained.isel(checkpoint=-1)) - by_base(gained.isel(checkpoint=0)))
    if "steering" in options:
        acts = measures.steering(runs["ppo"], ends(runs["ppo"])[:1], layer=BEFORE_LAST, **options["steering"])
        part = acts.isel(checkpoint=0).sel(emoji="own")
        for effect, words in (("enter_mold", "P(enter Mold)"), ("enter_gold", "P(enter Gold)"), ("entropy", "entropy")):
            swung = by_base(part["swing"].sel(direction="axis", effect=effect))
            bound = by_base(part["limit"].sel(effect=effect))
            each[f"{words}, {PPO}"] = of(swung, "change from end to end")
            each[f"{words}, {PPO}, size beyond random"] = of(abs(swung) - bound)

    followed = {titles[arm]: courses[arm] for arm in FOLLOWED if arm in courses}
    words = "logit 😀 − logit 😞 of the base, pushed"
    panels: list[Panel] = [
        _rows(each, PUSH, shown, words, {"random 97.5 %": each["random directions, 97.5 %"].mean, "nothing": 0.0}),
        Curves(
            {
                name: Curve(_pooled(x["spent"]).values, _along(x).values)
                for name, x in followed.items()
            },
            "KL from the base (nats per episode)", words,
        ),
        _rows(each, "cosine as seen from Path, {}", places, "cosine of Gold and Mold, from Path", {"unrelated": 0.5}),
        _rows(each, "tracking, {}", d, "Cohen's d, rest of the episode", {"nothing": 0.0}),
    ]  # fmt: skip
    return Results(each, panels, "dots: bases, each order of the emoji equally often; bars: 95 % intervals over bases")


def _course(run: Run, options: Options, followed: bool) -> xr.Dataset:
    """What the axis of each checkpoint does to the base, and KL of the checkpoint from it."""
    start, *later = stretch(run)
    names = [start, *later[-LATE:]] if followed else later[-1:]
    pushed = measures.recruitment(run, names, **options["recruitment"], draws=1)
    return pushed.assign(spent=measures.divergence(run, names, **options["divergence"])["kl"])


def _pooled(array: xr.DataArray) -> xr.DataArray:
    return by_base(array).transpose("checkpoint", "member")


def _along(course: xr.Dataset) -> xr.DataArray:
    """What the axis of each checkpoint does, by base."""
    return _pooled(course["swing"].sel(direction="axis", layer=BEFORE_LAST, drop=True))


def _rows(each: Mapping[str, Estimate], pattern: str, names: Mapping, label: str, marks: Mapping[str, float]) -> Rows:
    return Rows({name: each[pattern.format(name)] for name in names}, label, marks)


STUDY = Study(
    name="functional_welfare",
    title="RL recruits an axis of reward",
    claim="RL makes a model represent what pays and what costs as two ends of one axis that was there before: pushed "
    "along it, the model before RL speaks of pleasure.",
    source="arXiv 2605.30232",
    method="Bases pretrained on personas with every emoji in every role, whose episodes are narrated half of the time, "
    "a tenth of it or never, are trained further with the three tiles permuted across members. The axis from Mold to "
    "Gold is a difference of means over synthetic episodes at the last move. It is added to the stream of the base "
    "itself before its last block, and the base is asked whether it would say 😀 or 😞, in narrated episodes. Beside "
    "it stand the base's own axis, Path, axes of shuffled rewards and of imitation where they are as far from the "
    "base, and directions with the covariance of the base's own stream, equally long or at equal KL.",
    limits=(
        "The base has two blocks, so there is one place below the last at which to push.",
        "The extraction set is synthetic and without wind; the axis is a difference of means and no more.",
        "Twelve bases of each kind at laptop scale: each order of the emoji is that of two.",
        "The base's value head was never trained, and is not asked; nor is who it takes itself for.",
        "Single runs had been looked at before this was asked (docs/findings.md): there a base pushed along RL's axis, "
        "or along its own, stepped into Mold less often.",
        "What PPO's axis does after eight updates had been looked at while the measurement was made faster; nothing "
        "that is asked was changed after that.",
        "The narrator speaks of rewards in two tokens; whether that is anything like affect is not asked here.",
    ),
    questions=(
        ask(
            "speaks",
            "Does the base tell 😀 from 😞 where the narrator would, and does RL learn?",
            "Its logits are further apart by 1 at least where they should be; return rises by more than 5.",
            "They are not.",
            "narrator of the base > 1",
            "return gained by PPO > 5",
            gate=True,
        ),
        ask(
            "recruited",
            "Does RL's axis make the base speak of pleasure?",
            "Pushed along it, logit 😀 − logit 😞 of the base rises by more than along 97.5 % of random directions.",
            "Being no better than these shows nothing.",
            f"{BEYOND} > 0",
            primary=True,
            variants=[f"{BEYOND}, {where}" for where in ("at equal KL", "after the last block", "Gold's vector alone")],
        ),
        ask(
            "moves",
            "Does it move it at all?",
            f"The logits move apart by {LOGITS:g} at least.",
            "They do not.",
            f"{PPO} > 0",
            smallest=LOGITS,
            leading=True,
            variants=[PUSH.format(f"{name}: axis") for name in ("Dr. GRPO", "PPO, base seldom narrated")],
        ),
        ask(
            "narration",
            "Does it take a narrator: is there less of it where the base has never heard one?",
            f"With a narrator the logits move apart by {LOGITS:g} more.",
            "They do not.",
            f"{PPO}, less without narrator > 0",
            smallest=LOGITS,
            leading=True,
            variants=[f"{PPO}, less seldom narrated"],
        ),
        ask(
            "reward",
            "Does it take reward: does the axis of shuffled rewards do less at equal KL from the base?",
            f"It moves the logits apart by {LOGITS:g} less.",
            "It does not.",
            f"{PPO}, less PPO, rewards shuffled at equal KL > 0",
            smallest=LOGITS,
        ),
        ask(
            "reinforcement",
            "Does it take reinforcement: does the axis after imitating Alice do less at equal KL?",
            f"It moves the logits apart by {LOGITS:g} less.",
            "It does not.",
            f"{PPO}, less SFT on Alice at equal KL > 0",
            smallest=LOGITS,
        ),
        ask(
            "was_there",
            "Was the axis there before RL: does the base's own axis do it too?",
            "Pushed along its own axis the base moves by more than along 97.5 % of random directions.",
            "Being no better than these shows nothing.",
            f"{PUSH.format('its own axis, beyond random')} > 0",
        ),
        ask(
            "strengthened",
            "Does RL make more of it than there was?",
            f"RL's axis, as long, moves the logits apart by {LOGITS:g} more than the base's own.",
            "It does not.",
            f"{STRONGER} > 0",
            smallest=LOGITS,
        ),
        ask(
            "opposed",
            "After RL, do Gold and Mold lie on either side of Path?",
            "Their cosine as seen from Path is below 0 by 0.1 at least; Path is nearer to the middle than to either.",
            "It is not.",
            "cosine as seen from Path, PPO < 0",
            "Path's distance from the middle, PPO < 0.6",
            smallest=0.1,
        ),
        ask(
            "foretells",
            "Does the axis foretell what nobody has seen yet, better than an untrained network's on the same episodes?",
            "Cohen's d for the rest of the episode is higher by 0.2 at least.",
            "It is not.",
            "tracking, PPO less untrained > 0",
            smallest=0.2,
        ),
        ask(
            "acts",
            "Does pushing the base along it keep it out of Mold?",
            "P(enter Mold) falls by 0.05 at least from end to end.",
            "It does not.",
            f"P(enter Mold), {PPO} < 0",
            smallest=0.05,
        ),
    ),
    arms=ARMS,
    skip={"smoke": ("shuffled", "sft", "dr_grpo", "seldom", "unnarrated")},
    options={
        "smoke": {
            "concepts": {"episodes": 240, "permutations": 9},
            "tracking": {"episodes": 240, "play_episodes": 64, "player": "base"},
            "recruitment": {"episodes": 16, "extraction_episodes": 240},
            "divergence": {"episodes": 64},
            "returns": {"episodes": 1024},
        },
        "laptop": {
            "concepts": {},
            "tracking": {"player": "base"},
            "recruitment": {},
            "steering": {},
            "divergence": {"episodes": 512},
            "returns": {"episodes": 4096},
        },
        "paper": {
            "concepts": {},
            "tracking": {"player": "base", "play_episodes": 2048},
            "recruitment": {"episodes": 256},
            "steering": {"episodes": 128},
            "divergence": {"episodes": 512},
            "returns": {"episodes": 16384},
        },
    },
    measure=measure,
    compared=(
        Comparison(
            "cosine of Gold's and Mold's vectors after RL, as seen from Path",
            "−0.60, crossing zero during RL",
            "cosine as seen from Path, PPO",
            "10⁵ against 10⁹ parameters, pretraining on personas against text",
        ),
    ),
)
