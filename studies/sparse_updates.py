"""Does RL change few parameters, and is that RL or arithmetic (arXiv 2505.11711, 2511.08567)?"""

from collections.abc import Mapping

import numpy as np
import xarray as xr

from agents.runs import Run
from analysis import measures
from analysis.figures.panels import Curve, Curves, Panel, Rows
from analysis.measure import end
from ground.estimates import Estimate
from studies.study import Comparison, Options, Results, Study, ask, by_base, of

ARMS = {name: f"rates/{name}" for name in ("ppo", "ppo_bfloat16", "dr_grpo", "sft")}
PAPER, EXACT = "paper", "changed_stored"
"""The paper's definition, in bfloat16 and beyond 10⁻⁵; and any change of the stored bits."""
GAP = 0.2
"""A difference of shares that is no matter of taste."""


def measure(runs: Mapping[str, Run], options: Options) -> Results:
    """What changed in every arm, how far each policy went, and the changed parameters of PPO trained alone."""
    titles = STUDY.titles()
    ends = {arm: _measured(run, end(run), options).isel(checkpoint=0) for arm, run in runs.items()}
    points = {
        (arm, rate): dataset.isel(member=np.flatnonzero(dataset["rate"] == rate))
        for arm, dataset in ends.items()
        for rate in np.unique(dataset["rate"]).tolist()
    }
    each: dict[str, Estimate] = {}
    for (arm, rate), part in points.items():
        for word, name in (("changed", PAPER), ("stored values changed", EXACT)):
            each[f"{word}, {titles[arm]}, learning rate {rate:g}"] = of(part[name])
    rates = [rate for arm, rate in points if arm == "ppo"]
    highest, lowest = points["ppo", max(rates)], points["ppo", min(rates)]
    each["changed, PPO"] = of(highest[PAPER], f"bfloat16 values that changed by more than 1e-5, at {max(rates):g}")
    each["changed, by rate"] = of(by_base(highest[PAPER]) - by_base(lowest[PAPER]), "highest less lowest learning rate")
    each["hidden by rounding"] = of(lowest[EXACT] - lowest[PAPER], "stored less bfloat16, lowest learning rate")
    if "ppo_bfloat16" in runs:
        frozen = by_base(points["ppo_bfloat16", min(rates)][EXACT])
        each["changed, by storage"] = of(by_base(lowest[EXACT]) - frozen, "float32 less bfloat16, lowest learning rate")
    names = [name for name in runs["ppo"].checkpoints() if name.startswith("rl-")]
    course = _measured(runs["ppo"], names, {**options, "returns": options["course"]})
    course = xr.concat([course, ends["ppo"]], "checkpoint", coords="minimal", compat="override", join="override")
    for by, words in (("kl", "KL from the base"), ("return", "return")):
        each[f"SFT less PPO at the same {words}"] = of(_matched(ends["sft"], course, by))
    overlap = measures.overlaps(runs["ppo"], end(runs["ppo"])).isel(checkpoint=0)["excess"]
    overlap = overlap.sel(mask="farthest_10_percent", kind="all").isel(member=ends["ppo"]["rate"] == max(rates))
    each["overlap beyond chance"] = of(overlap, "Jaccard index of farthest-moving tenths less weight-matched chance")
    panels: list[Panel] = [
        Curves(
            {titles[arm]: _dots(dataset, x) for arm, dataset in ends.items()},
            words, "parameters changed (%)", {"5 %": 0.05, "30 %": 0.3}, percent=True, log_x=True, points=True,
        )
        for x, words in (
            ("steps_over_weight", "sum of learning rates over the median weight"),
            ("kl", "KL from the base (nats per episode)"),
        )
    ]  # fmt: skip
    if "subnetwork" in options:
        returns = measures.subnetwork(runs["ppo"], **options["subnetwork"])["returns"]
        before, full, learned, random = (
            returns.sel(policy=name) for name in ("before RL", "full run", "learned", "random")
        )
        shares = {"the farthest tenth": (learned - before) / (full - before)}
        shares["a random tenth"] = (random - before) / (full - before)
        alone = {name: of(share, "share of RL's gain") for name, share in shares.items()}
        each |= {f"gain of {name} alone": estimate for name, estimate in alone.items()}
        each["gain beyond a random tenth"] = of(shares["the farthest tenth"] - shares["a random tenth"])
        panels.append(Rows(alone, "share of RL's gain (%)", {"all": 1.0, "nothing": 0.0}, percent=True))
    return Results(each, panels, "dots: members; changed: bfloat16 values that moved by more than 10⁻⁵")


def _measured(run: Run, checkpoints: list[str], options: Options) -> xr.Dataset:
    """Shares changed, KL from the base, return and learning rate of every member at checkpoints."""
    changed = measures.updates(run, checkpoints)
    dataset = changed[[PAPER, EXACT]].sel(kind="all", drop=True)
    dataset["steps_over_weight"] = changed["learning_rate_sum_over_median_weight"].sel(kind="all", drop=True)
    dataset["kl"] = measures.divergence(run, checkpoints)["kl"]
    dataset["return"] = measures.returns(run, checkpoints, **options["returns"])["return"]
    path = next(name for name in changed.coords if str(name).endswith(".learning_rate"))
    return dataset.assign_coords(rate=("member", changed[path].values))


def _matched(sft: xr.Dataset, course: xr.Dataset, by: str) -> xr.DataArray:
    """Share changed by each member of SFT less that of its twin in PPO, when that had the same KL or return.

    Twins share learning rate and seed. The twin's share is read off a line through its checkpoints. Where the twin was
    never as far, nothing is matched, and it is NaN.
    """
    differences = sft[PAPER].copy()
    for index in range(sft.sizes["member"]):
        one = sft.isel(member=index)
        (twin,) = np.flatnonzero((course["rate"] == one["rate"]) & (course["seed"] == one["seed"]))
        theirs = course.isel(member=twin)
        order = np.argsort(theirs[by].values)
        known = theirs[by].values[order], theirs[PAPER].values[order]
        differences[index] -= np.interp(float(one[by]), *known, left=np.nan, right=np.nan)
    return differences


def _dots(dataset: xr.Dataset, x: str) -> Curve:
    return Curve(np.maximum(dataset[x].values, 1e-6)[:, None], dataset[PAPER].values[:, None])


STUDY = Study(
    name="sparse_updates",
    title="RL changes 5 to 30 % of the parameters",
    claim="RL changes a small share of a model's parameters, much smaller than fine-tuning does, and that subnetwork "
    "alone carries what it learns.",
    source="arXiv 2505.11711; arXiv 2511.08567",
    method="Bases are trained further by PPO, Dr. GRPO and fine-tuning on Alice with as many optimiser steps, at "
    "several learning rates; PPO also with parameters stored in bfloat16, from bases of its own. Changes are counted "
    "by the paper's definition and in the stored bits, and set against the KL from the base.",
    limits=(
        "The leading question is asked at the usual rate, where the steps sum to fifty times what they do in RL of "
        "language models.",
        "A parameter of a small model is needed more than one of a large model; a share does not scale by itself.",
        "Fine-tuning imitates one persona, not what RL has found; they are matched in KL or in return, not in steps.",
        "The subnetwork is defined by the run that it is to repeat.",
    ),
    questions=(
        ask(
            "band",
            "Does PPO change between 5 and 30 % of the parameters, by the paper's definition?",
            "The share lies between 0.05 and 0.30.",
            "It lies outside.",
            "changed, PPO > 0.05",
            "changed, PPO < 0.3",
            smallest=0.0,
            primary=True,
        ),
        ask(
            "fewer_than_sft",
            "Does PPO change fewer parameters than fine-tuning by the time it has gone as far in KL?",
            f"SFT changes a share greater by {GAP:g} at the same KL.",
            "It does not.",
            "SFT less PPO at the same KL from the base > 0",
            smallest=GAP,
            leading=True,
        ),
        ask(
            "fewer_at_the_same_return",
            "Does PPO change fewer parameters than fine-tuning by the time it earns as much?",
            f"SFT changes a share greater by {GAP:g} at the same return.",
            "It does not.",
            "SFT less PPO at the same return > 0",
            smallest=GAP,
        ),
        ask(
            "subnetwork",
            "Does the tenth of the parameters that moved farthest carry RL's gain when trained alone?",
            f"Alone it makes at least {GAP:g} of the gain more than a random tenth does.",
            "It does not.",
            "gain beyond a random tenth > 0",
            smallest=GAP,
            leading=True,
        ),
        ask(
            "precision",
            "Is the sparsity at learning rates like those of language models a matter of rounding?",
            f"There, the share of stored values that changed exceeds the bfloat16 share by {GAP:g}.",
            "It does not.",
            "hidden by rounding > 0",
            smallest=GAP,
        ),
        ask(
            "storage",
            "Does storing parameters in bfloat16 freeze what small steps would have changed?",
            f"At the lowest rate, float32 storage changes a share greater by {GAP:g}.",
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
            "overlap",
            "Do two members change the same parameters, beyond what the weights' sizes explain?",
            "The Jaccard index of their farthest-moving tenths exceeds weight-matched chance, by 0.05 at least.",
            "It does not.",
            "overlap beyond chance > 0",
            smallest=0.05,
        ),
    ),
    arms=ARMS,
    skip={"smoke": ("ppo_bfloat16", "dr_grpo")},
    options={
        "smoke": {"returns": {"episodes": 1024}, "course": {"episodes": 512}},
        "laptop": {
            "returns": {"episodes": 4096},
            "course": {"episodes": 512},
            "subnetwork": {"members": 8, "draws": 1},
        },
        "paper": {
            "returns": {"episodes": 16384},
            "course": {"episodes": 512},
            "subnetwork": {"members": 16, "draws": 2},
        },
    },
    measure=measure,
    compared=(
        Comparison(
            "share of parameters changed",
            "5 to 30 % (abstract)",
            "changed, PPO",
            "sum of learning rates over the median weight 1.5 against .05, 10⁵ against 10¹⁰ parameters",
        ),
    ),
)
