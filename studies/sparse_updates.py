"""Does RL change few parameters, and is that RL, its data, arithmetic or size (arXiv 2505.11711, 2511.08567)?"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import xarray as xr

from agents.runs import Run
from analysis import measures
from analysis.figures.panels import Curve, Curves, Panel
from analysis.measure import end
from ground.estimates import Estimate
from studies import populations
from studies.study import Comparison, Options, Results, Study, ask, by_base, of

SWEPT = ("ppo", "ppo_bfloat16", "sft", "own")
"""Arms with a grid of learning rates, on the same bases but for storage."""
WIDTHS = {f"width_{width}": width for width in populations.WIDTHS}
ARMS = {name: f"rates/{name}" for name in (*SWEPT, "ppo_longer", *WIDTHS)}
PAPER, EXACT = "paper", "changed_stored"
"""The paper's definition, in bfloat16 and beyond 10⁻⁵; and any change of the stored bits."""
DRIFT, DIFFUSION = "learning_rate_sum_over_median_weight", "learning_rate_root_over_median_weight"
"""How far Adam's steps could have gone beside a weight: all in one direction, and to and fro by chance."""
LEARNT = 0.1
"""KL from the base, nats per episode, below which nothing has been learnt that a share could be told of."""
OTHERWISE = (0.03, 0.3)
"""KL from the base that might as well have been named."""
GAP = 0.2
"""A difference of shares that is no matter of taste."""
DENSITIES = (0.1, 0.03, 0.01, 0.003, 0.001)
"""Shares of the parameters that are trained alone."""
ASKED = 0.01
"""That of which the question speaks."""
BEYOND = "gain beyond random, {:.1%} of the parameters"
PUBLISHED = Curve(np.array([[0.05], [0.05]]), np.array([[0.05], [0.3]]))
"""RL of language models: 1,000 steps of 5·10⁻⁵ of a weight, and the paper's shares."""
PUBLISHED_ROOT = Curve(np.array([[1.6e-3], [1.6e-3]]), PUBLISHED.values)


def measure(runs: Mapping[str, Run], options: Options) -> Results:
    """What changed in every arm, how far each policy went, and the parameters that moved farthest trained alone."""
    titles = STUDY.titles()
    ends = {arm: _measured(run, end(run), options).isel(checkpoint=0) for arm, run in runs.items()}
    points = {
        (arm, rate): dataset.isel(member=np.flatnonzero(dataset["rate"] == rate))
        for arm, dataset in ends.items()
        for rate in np.unique(dataset["rate"]).tolist()
    }
    each: dict[str, Estimate] = {}
    for (arm, rate), part in points.items():
        words = f"{titles[arm]}, learning rate {rate:g}"
        each[f"changed, {words}"] = of(part[PAPER])
        each[f"stored values changed, {words}"] = of(part[EXACT])
        each[f"KL from the base, {words}"] = of(part["kl"], "nats per episode")
        each[f"return gained, {words}"] = of(part["gain"])
    rates = sorted(rate for arm, rate in points if arm == "ppo")

    def learnt(nats: float) -> list[float]:
        return [rate for rate in rates if float(points["ppo", rate]["kl"].mean()) >= nats]

    def share(nats: float, name: str = PAPER) -> Estimate:
        part = points["ppo", min(learnt(nats), default=rates[-1])][name]
        meaning = f"moved beyond 1e-5 as bfloat16, at the lowest learning rate at which PPO goes {nats:g} nats"
        return of(part if learnt(nats) else xr.full_like(part, np.nan), meaning if name == PAPER else "")

    least = points["ppo", min(learnt(LEARNT), default=rates[-1])]
    far = "the lowest learning rate at which PPO learns"
    each["changed, PPO where it learns least"] = share(LEARNT)
    each["stored values changed, PPO where it learns least"] = share(LEARNT, EXACT)
    each |= {f"changed, PPO where it learns least, KL of {nats:g}": share(nats) for nats in OTHERWISE}
    each["drift of PPO where it learns least"] = of(least[DRIFT], "sum of learning rates over the median weight")
    highest, lowest = points["ppo", rates[-1]], points["ppo", rates[0]]
    each["changed, by rate"] = of(by_base(highest[PAPER]) - by_base(lowest[PAPER]), "highest less lowest learning rate")
    each["hidden by rounding"] = of(by_base(least[EXACT]) - by_base(least[PAPER]), f"stored less bfloat16, at {far}")
    frozen = [points[key] for key in points if key[0] == "ppo_bfloat16" and key[1] in learnt(LEARNT)]
    if frozen:
        coarse, fine = (by_base(x[EXACT]) for x in (frozen[0], least))
        each["changed, by storage"] = of(fine - coarse, f"float32 less bfloat16, at {far}")
        each["changed, PPO in bfloat16 where it learns least"] = of(coarse, "stored values")
        each["KL of PPO in bfloat16 where it learns least"] = of(frozen[0]["kl"], "nats per episode")
    swept = {rate: points["ppo", rate] for rate in rates}
    if "ppo_longer" in ends:
        longer, other = ends["ppo_longer"], _as_far(swept, ends["ppo_longer"])
        each["changed, by a longer way of as much drift"] = of(
            by_base(longer[PAPER]) - by_base(swept[other][PAPER]), f"five times as long less rate {other:g}"
        )
    widths = {width: ends[arm] for arm, width in WIDTHS.items() if arm in ends}
    if widths:
        widths[runs["ppo"].config.policy.width] = swept[_as_far(swept, next(iter(widths.values())))]
        wide = np.log2(list(widths)) - np.log2(list(widths)).mean()
        shares = [by_base(part[PAPER]) for part in widths.values()]
        slopes = (wide[:, None] * np.stack([share.values for share in shares])).sum(axis=0) / (wide**2).sum()
        each["changed, by each doubling of the width"] = of(shares[0].copy(data=slopes))
    names = [name for name in runs["ppo"].checkpoints() if name.startswith("rl-")]
    course = _measured(runs["ppo"], names, {**options, "returns": options["course"]})
    course = xr.concat([course, ends["ppo"]], "checkpoint", coords="minimal", compat="override", join="override")
    for arm in ("sft", "own"):
        if arm in ends:
            each[f"{titles[arm]} less PPO at the same KL from the base"] = of(_matched(ends[arm], course))
    if "own" in ends:
        for rate, where, name in (
            (rates[-1], "", PAPER),
            (rates[-1], ", stored values", EXACT),
            (rates[len(rates) // 2], ", middle rate", PAPER),
            (rates[0], ", lowest rate", PAPER),
        ):
            same = [by_base(points[arm, rate][name]) for arm in ("sft", "own")]
            each[f"SFT on Alice less SFT on own successes{where}"] = of(
                same[0] - same[1], f"same steps, learning rate {rate:g}"
            )
    overlap = measures.overlaps(runs["ppo"], end(runs["ppo"])).isel(checkpoint=0)["excess"]
    overlap = overlap.sel(mask="farthest_10_percent", kind="all").isel(member=ends["ppo"]["rate"] == rates[-1])
    each["overlap beyond chance"] = of(overlap, "Jaccard index of farthest-moving tenths less weight-matched chance")
    known = {arm: part.isel(member=np.flatnonzero(part["kl"] >= LEARNT)) for arm, part in ends.items()}
    panels = [
        Curves(
            {titles[arm]: _dots(part, x) for arm, part in known.items() if part.sizes["member"]} | published,
            words, "parameters changed (%)", {"5 %": 0.05, "30 %": 0.3}, percent=True, log_x=True, points=True,
        )
        for x, words, published in (
            (DRIFT, "sum of learning rates over the median weight", {"language models": PUBLISHED}),
            (DIFFUSION, "root of their summed squares over it", {"language models": PUBLISHED_ROOT}),
            ("kl", "KL from the base (nats per episode)", {}),
        )
    ]  # fmt: skip
    if "subnetwork" in options:
        alone = _alone(runs["ppo"], **options["subnetwork"])
        for density in alone["density"].values:
            for mask in ("learned", "random"):
                words = f"gain of {density:.1%} of the parameters alone, {mask}"
                each[words] = of(alone.sel(density=density, mask=mask), "share of RL's gain")
            masks = alone.sel(density=density)
            each[BEYOND.format(density)] = of(masks.sel(mask="learned") - masks.sel(mask="random"))
        across = np.asarray(alone["density"].values, float)[:, None] * np.ones(alone.sizes["member"])
        curves = {
            words: Curve(across, alone.sel(mask=mask).transpose("density", "member").values)
            for mask, words in (("learned", "those that moved farthest"), ("random", "random ones"))
        }
        marks, trained = {"all of RL's gain": 1.0, "nothing": 0.0}, "share of the parameters that are trained"
        panels.append(Curves(curves, trained, "share of RL's gain (%)", marks, percent=True, log_x=True))
    return Results(each, list[Panel](panels), "dots: members that learnt; changed: bfloat16 values moved beyond 10⁻⁵")


def _measured(run: Run, checkpoints: list[str], options: Options) -> xr.Dataset:
    """Shares changed, KL from the base, return gained and learning rate of every member at checkpoints."""
    changed = measures.updates(run, checkpoints)
    dataset = changed[[PAPER, EXACT, DRIFT, DIFFUSION]].sel(kind="all", drop=True)
    dataset["kl"] = measures.divergence(run, checkpoints)["kl"]
    earned = measures.returns(run, ["pretrain", *checkpoints], **options["returns"])["return"]
    dataset["gain"] = earned.isel(checkpoint=slice(1, None)) - earned.isel(checkpoint=0, drop=True)
    stage = "rl" if run.config.rl.updates else "sft"
    swept = next((name for name in changed.coords if str(name).endswith(".learning_rate")), None)
    one = np.full(changed.sizes["member"], getattr(run.config, stage).learning_rate)
    return dataset.assign_coords(rate=("member", one if swept is None else changed[swept].values))


def _as_far(swept: Mapping[float, xr.Dataset], part: xr.Dataset) -> float:
    """The rate of a grid whose steps could have gone most nearly as far as those of another arm."""
    return min(swept, key=lambda rate: abs(np.log(float(swept[rate][DRIFT].mean() / part[DRIFT].mean()))))


def _matched(other: xr.Dataset, course: xr.Dataset) -> xr.DataArray:
    """Share changed by each member of an arm less that of its twin in PPO, when that had come to the same KL.

    Twins share learning rate and seed. The twin's share is read off a line through its checkpoints. Where the twin was
    never as far, nothing is matched, and it is NaN.
    """
    differences = other[PAPER].copy()
    for index in range(other.sizes["member"]):
        one = other.isel(member=index)
        (twin,) = np.flatnonzero((course["rate"] == one["rate"]) & (course["seed"] == one["seed"]))
        theirs = course.isel(member=twin)
        order = np.argsort(theirs["kl"].values)
        known = theirs["kl"].values[order], theirs[PAPER].values[order]
        differences[index] -= np.interp(float(one["kl"]), *known, left=np.nan, right=np.nan)
    return differences


def _alone(run: Run, densities: tuple[float, ...], **options: Any) -> xr.DataArray:
    """Share of RL's gain that masks make when trained alone, float[density, mask, member]."""
    gained: list[xr.DataArray] = []
    for density in densities:
        returns = measures.subnetwork(run, density=density, **options)["returns"]
        before, full = (returns.sel(policy=name, drop=True) for name in ("before RL", "full run"))
        masks = returns.sel(policy=["learned", "random"]).rename(policy="mask")
        gained.append((masks - before) / (full - before))
    return xr.concat(gained, xr.Variable("density", list(densities)), coords="minimal", compat="override", join="exact")


def _dots(dataset: xr.Dataset, x: str) -> Curve:
    return Curve(np.maximum(dataset[x].values, 1e-6)[:, None], dataset[PAPER].values[:, None])


STUDY = Study(
    name="sparse_updates",
    title="RL changes 5 to 30 % of the parameters",
    claim="RL changes a small share of a model's parameters, much smaller than fine-tuning does, and that subnetwork "
    "alone carries what it learns.",
    source="arXiv 2505.11711; arXiv 2511.08567",
    method="Bases are trained further by PPO at several learning rates, its parameters stored in float32 or, from "
    "bases of its own, in bfloat16; five times as long at a low rate; at other widths with steps as long beside their "
    "weights; and by fine-tuning on Alice or on their own successes with as many steps at the same rates. Changes are "
    "counted by the paper's definition and in the stored bits, where KL from the base says that something was learnt, "
    "and set against how far the steps could have gone.",
    limits=(
        f"A run has learnt if its KL from the base is {LEARNT:g} nats per episode; what it has gained is beside it.",
        "In RL of language models the steps sum to .05 of a weight, as at the lowest rate here. Before bases of seed 0 "
        "were trained this said that too little is learnt there to tell; they learnt.",
        "A parameter of a small model is needed more than one of a large model; widths of 16 to 64, at scale paper to "
        "256, are a trend and not its end.",
        "The subnetwork is defined by the run that it is to repeat.",
    ),
    questions=(
        ask(
            "band",
            "Does PPO change between 5 and 30 % of the parameters, by the paper's definition, where it learns least?",
            "At the lowest learning rate at which it learns the share lies between 0.05 and 0.30.",
            "It lies outside.",
            "changed, PPO where it learns least > 0.05",
            "changed, PPO where it learns least < 0.3",
            smallest=0.0,
            primary=True,
            variants=[
                "stored values changed, PPO where it learns least",
                *(f"changed, PPO where it learns least, KL of {nats:g}" for nats in OTHERWISE),
            ],
        ),
        ask(
            "own_data",
            "Is it imitating others that changes many parameters: does fine-tuning on own successes change fewer?",
            f"With the same steps, SFT on Alice changes a share greater by {GAP:g}.",
            "It does not.",
            "SFT on Alice less SFT on own successes > 0",
            smallest=GAP,
            leading=True,
            variants=[
                f"SFT on Alice less SFT on own successes, {where}"
                for where in ("stored values", "middle rate", "lowest rate")
            ],
        ),
        ask(
            "fewer_than_own",
            "Does PPO change fewer parameters than fine-tuning on own successes by the time it has gone as far in KL?",
            f"SFT on own successes changes a share greater by {GAP:g} at the same KL.",
            "It does not.",
            "SFT on own successes less PPO at the same KL from the base > 0",
            smallest=GAP,
        ),
        ask(
            "fewer_than_sft",
            "Does PPO change fewer parameters than fine-tuning on Alice by the time it has gone as far in KL?",
            f"SFT changes a share greater by {GAP:g} at the same KL.",
            "It does not.",
            "SFT on Alice less PPO at the same KL from the base > 0",
            smallest=GAP,
        ),
        ask(
            "subnetwork",
            f"Do the {ASKED:.0%} of the parameters that moved farthest carry RL's gain when trained alone?",
            f"Alone they make at least {GAP:g} of the gain more than as many random ones do.",
            "They do not.",
            f"{BEYOND.format(ASKED)} > 0",
            smallest=GAP,
            leading=True,
            variants=[BEYOND.format(density) for density in DENSITIES if density != ASKED],
        ),
        ask(
            "precision",
            "Is it rounding: did more stored values change than the paper's definition counts, where PPO learns least?",
            f"The share of stored values exceeds the bfloat16 share by {GAP:g}.",
            "It does not.",
            "hidden by rounding > 0",
            smallest=GAP,
        ),
        ask(
            "storage",
            "Does storing parameters in bfloat16 freeze what small steps would have changed?",
            f"Where PPO learns least, float32 storage changes a share greater by {GAP:g}.",
            "It does not.",
            "changed, by storage > 0",
            smallest=GAP,
        ),
        ask(
            "rate",
            "Is the share set by the learning rate?",
            f"From the lowest to the highest rate it grows by {GAP:g}.",
            "It does not.",
            "changed, by rate > 0",
            smallest=GAP,
        ),
        ask(
            "width",
            "Do wider models change a smaller share, at steps as long beside their weights?",
            "With each doubling of the width it falls by 0.05 at least.",
            "It does not.",
            "changed, by each doubling of the width < 0",
            smallest=0.05,
        ),
        ask(
            "overlap",
            "Do two members change the same parameters, beyond what the weights' sizes explain?",
            "The Jaccard index of their farthest-moving tenths exceeds weight-matched chance, by 0.05 at least.",
            "It does not.",
            "overlap beyond chance > 0",
            smallest=0.05,
        ),
    ),
    arms=ARMS,
    skip={
        "smoke": tuple(arm for arm in ARMS if arm not in ("ppo", "sft")),
        "laptop": ("width_128", "width_256"),
    },
    options={
        "smoke": {"returns": {"episodes": 1024}, "course": {"episodes": 512}},
        "laptop": {
            "returns": {"episodes": 4096},
            "course": {"episodes": 512},
            "subnetwork": {"members": 8, "draws": 1, "densities": DENSITIES},
        },
        "paper": {
            "returns": {"episodes": 16384},
            "course": {"episodes": 512},
            "subnetwork": {"members": 16, "draws": 2, "densities": DENSITIES},
        },
    },
    measure=measure,
    compared=(
        Comparison(
            "share of parameters changed",
            "5 to 30 % (abstract)",
            "changed, PPO where it learns least",
            "steps that sum to much more of a weight than .05; 10⁵ parameters, not 10¹⁰",
        ),
    ),
)
