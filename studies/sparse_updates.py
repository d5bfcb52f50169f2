"""Does RL change few parameters, and is that RL or arithmetic (arXiv 2505.11711, 2511.08567)?"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from agents import runs
from agents.learning import algorithms
from agents.runs import config as configs
from agents.runs import evaluation
from agents.runs.config import Config
from analysis import drawing, masks, subject, weights
from analysis.measures.divergence import per_episode
from analysis.subject import Subject
from studies import plots
from studies.claims import Criterion, Estimate, Question
from studies.store import Store
from studies.study import Findings, Scale, Study

RATES: dict[Scale, tuple[float, ...]] = {
    "smoke": (1e-3, 2e-5),
    "laptop": (1e-3, 2e-4, 2e-5),
    "paper": (1e-3, 3e-4, 1e-4, 3e-5, 1e-5),
}
"""Learning rates, the usual one first. At the lowest, the sum of the steps is as small a share of the median weight as
in RL of language models: 10⁻⁶ a step, a thousand steps, weights of about 0.02."""
MEMBERS: dict[Scale, int] = {"smoke": 2, "laptop": 8, "paper": 16}
"""Seeds at each learning rate."""
SUBNETWORK: dict[Scale, dict[str, int]] = {
    "laptop": {"members": 8, "draws": 1},
    "paper": {"members": 16, "draws": 2},
}
"""Options of `analysis subnetwork`; without them nothing is trained alone."""
BAND = (0.05, 0.30)
"""Share of the parameters that RL is said to change (arXiv 2505.11711, abstract)."""
MEASURE, EXACT = "paper", "changed_stored"
"""The paper's definition, in bfloat16 and beyond 10⁻⁵; and any change of the stored bits."""
COURSE_EPISODES = 512
"""Mazes in which a member's return while it learns is measured."""
GAP = 0.2
"""A difference of shares that is no matter of taste."""

_TITLES = {
    "ppo": "PPO, stored in float32",
    "ppo_bfloat16": "PPO, stored in bfloat16",
    "dr_grpo": "Dr. GRPO, stored in float32",
    "sft": "SFT, stored in float32",
}
_SMOKE = ("ppo", "sft")


def arms(scale: Scale) -> dict[str, Config]:
    """RL and fine-tuning from one base at several learning rates; a base of its own where storage differs."""
    made = {}
    for name in _TITLES if scale != "smoke" else _SMOKE:
        algorithm: Any = name if name in algorithms.ALGORITHMS else "ppo"
        config = configs.start(scale, "EmojiMaze-v0", algorithm)
        swept = "sft" if name == "sft" else "rl"
        rates = RATES[scale] if name != "dr_grpo" else RATES[scale][:1]
        sweep = (f"{swept}.learning_rate={','.join(f'{rate:g}' for rate in rates)}",)
        config = dataclasses.replace(
            config, population=dataclasses.replace(config.population, seeds=MEMBERS[scale], sweep=sweep)
        )
        if name == "ppo_bfloat16":
            config = dataclasses.replace(config, policy=dataclasses.replace(config.policy, parameter_dtype="bfloat16"))
        if name == "sft":
            # As many optimiser steps as RL takes.
            steps = config.rl.updates * config.rl.epochs * config.rl.minibatches
            sft = dataclasses.replace(config.sft, updates=steps - steps % config.sft.chunk)
            config = dataclasses.replace(config, sft=sft, rl=dataclasses.replace(config.rl, updates=0))
        made[name] = config
    return made


def measure(store: Store, made: Mapping[str, runs.Run], scale: Scale) -> Findings:
    """What changed in every arm, how far each policy went, and the changed parameters of PPO trained alone."""
    found = {name: store.analysis(run, "updates") for name, run in made.items()}
    gone = {name: _divergence(subject.open(run.path), "rl") for name, run in made.items()}
    alone = {}
    if scale in SUBNETWORK:
        alone = store.analysis(made["ppo"], "subnetwork", **SUBNETWORK[scale])["returns"]
    returns = {name: np.array(run.summary()["return"]["after_rl"]) for name, run in made.items()}
    return Findings(*estimate(found, gone, returns, alone, _course(made["ppo"], gone["ppo"], returns["ppo"])))


def _divergence(opened: Subject, checkpoint: str) -> np.ndarray:
    """KL of every member from its pretrained base at a checkpoint, nats per episode, float64[M]."""
    after, base = (jax.tree.map(jnp.asarray, opened.parameters(name)) for name in (checkpoint, "pretrain"))
    nats = per_episode(opened.policy, after, base, opened.world, opened.params)
    return np.asarray(nats, np.float64).mean(axis=1)


def _course(run: runs.Run, kl: np.ndarray, returns: np.ndarray) -> dict[str, np.ndarray]:
    """KL, mean return and share changed of every member while it learns, float64[C, M], and the updates int[C].

    Args:
        run: with RL.
        kl, returns: at its end, float64[M].
    """
    opened = subject.open(run.path)
    names = [name for name in run.checkpoints() if name.startswith("rl-")]
    base = weights.split(opened.parameters("pretrain"))
    found = {"kl": [_divergence(opened, name) for name in names], "return": [], MEASURE: []}
    for name in names:
        parameters = opened.parameters(name)
        played, _ = evaluation.policy_outcomes(
            opened.policy, jax.tree.map(jnp.asarray, parameters), opened.world, opened.params, COURSE_EPISODES
        )
        found["return"].append(np.asarray(played, np.float64).mean(axis=1))
        found[MEASURE].append(_share(base, parameters))
    ends = {"kl": kl, "return": returns, MEASURE: _share(base, opened.parameters("rl"))}
    updates = [*(int(name.partition("-")[2]) for name in names), opened.config.rl.updates]
    return {"update": np.array(updates)} | {key: np.stack([*found[key], ends[key]]) for key in ends}


def _share(base: Any, parameters: Any) -> np.ndarray:
    return masks.density(masks.changed(base, weights.split(parameters), tolerance=masks.TOLERANCE))


def estimate(
    found: Mapping[str, Any],
    gone: Mapping[str, np.ndarray],
    returns: Mapping[str, np.ndarray],
    alone: Mapping[str, Any],
    course: Mapping[str, np.ndarray],
) -> tuple[dict[str, Estimate], dict[str, Any], str]:
    """Estimates, tables and the figure's description.

    Args:
        found: arm → what `analysis updates` says of the run, from its base to its end.
        gone: arm → KL from the base, nats per episode, float64[M].
        returns: arm → mean return of each member, float64[M].
        alone: returns of the PPO arm and of masks, from `analysis subnetwork`; empty where nothing was trained alone.
        course: KL, return and share changed of the PPO arm's members while they learn, each float64[C, M], and the
            updates int[C].
    """
    points: dict[str, list] = {
        name: [] for name in ("arm", "member", "learning_rate", "steps_over_weight", "kl", "return", MEASURE, EXACT)
    }
    for name, document in found.items():
        ratio = document["learning_rate_sum_over_median_weight"]["all"]
        for index, member in enumerate(document["population"]):
            (rate,) = member["values"].values()
            shares = (document["fractions"]["all"][key][index] for key in (MEASURE, EXACT))
            row = (name, index, rate, ratio[index], gone[name][index], returns[name][index], *shares)
            for column, value in zip(points.values(), row, strict=True):
                column.append(value)
    table = {key: np.array(values) for key, values in points.items()}
    highest, lowest = table["learning_rate"].max(), table["learning_rate"].min()

    def share(arm: str, rate: float, key: str = MEASURE) -> np.ndarray:
        return table[key][(table["arm"] == arm) & (table["learning_rate"] == rate)]

    each: dict[str, Estimate] = {}
    for name in found:
        for rate in np.unique(table["learning_rate"][table["arm"] == name])[::-1]:
            what = f"{_TITLES[name]}, learning rate {rate:g}"
            for key, word in ((MEASURE, "changed"), (EXACT, "stored")):
                meaning = (
                    "bfloat16 values that changed by more than 1e-5" if key == MEASURE else "stored values changed"
                )
                each[f"{word}_{name}_{_digits(rate)}"] = Estimate.of(
                    share(name, rate, key), f"share of {meaning}, {what}"
                )
    each["changed_ppo"] = each[f"changed_ppo_{_digits(highest)}"]
    each["changed_by_rate"] = Estimate.of(
        share("ppo", highest) - share("ppo", lowest), "share changed at the highest learning rate less at the lowest"
    )
    each["hidden_by_rounding"] = Estimate.of(
        share("ppo", lowest, EXACT) - share("ppo", lowest), "stored share less bfloat16 share, lowest learning rate"
    )
    if "ppo_bfloat16" in found:
        each["changed_by_storage"] = Estimate.of(
            share("ppo", lowest, EXACT) - share("ppo_bfloat16", lowest, EXACT),
            "share of stored values changed, float32 less bfloat16, lowest learning rate",
        )
    for by, word in (("kl", "KL from the base"), ("return", "return")):
        each[f"sft_less_rl_at_matched_{by}"] = Estimate.of(
            _matched(table, course, by),
            f"share changed by SFT less that changed by PPO at the same learning rate when it had the same {word}",
        )
    if alone:
        each |= _alone(alone)
    overlaps = next(
        group["overlaps"]["farthest_10_percent"]["all"]
        for group in found["ppo"]["groups"]
        if len(found["ppo"]["groups"]) == 1 or _is_rate(group["label"], highest)
    )
    alt = (
        f"Share of parameters changed, by the paper's definition, against learning rate and against KL. PPO at "
        f"{highest:g}: {each['changed_ppo'].mean:.2f}; at {lowest:g}: {share('ppo', lowest).mean():.3f}, where "
        f"{share('ppo', lowest, EXACT).mean():.2f} of the stored values changed. "
    )
    if alone:
        alt += (
            f"The farthest-moving tenth alone makes {each['gain_alone'].mean:.2f} of the gain, a random tenth "
            f"{each['gain_random'].mean:.2f}."
        )
    excess = [np.nan if overlaps["excess"][key] is None else overlaps["excess"][key] for key in ("mean", "low", "high")]
    each["overlap_beyond_chance"] = Estimate(
        *excess, members=len(share("ppo", highest)),
        meaning="Jaccard index of two members' farthest-moving tenths less that of weight-matched chance",
    )  # fmt: skip
    steps, members = course["kl"].shape
    told = {"arm": ["ppo"] * (steps * members), "member": np.tile(np.arange(members), steps).tolist()}
    told |= {"update": np.repeat(course["update"], members).tolist()}
    told |= {key: course[key].ravel().tolist() for key in ("kl", "return", MEASURE)}
    return each, {"points": points, "course": told}, alt


def _alone(returns: Mapping[str, Any]) -> dict[str, Estimate]:
    """Shares of RL's gain that masks make."""
    before, full, learned, random = (
        np.array(returns[name]["members"]) for name in ("before RL", "full run", "learned", "random")
    )
    gain = full - before
    return {
        "gain_alone": Estimate.of(
            (learned - before) / gain, "share of RL's gain that the farthest-moving tenth makes alone", "gain_random"
        ),
        "gain_random": Estimate.of((random - before) / gain, "share of RL's gain that a random tenth makes alone"),
        "gain_beyond_random": Estimate.of((learned - random) / gain, "share of the gain beyond a random tenth's"),
    }


def _digits(rate: float) -> str:
    return f"{rate:g}".replace("-", "m").replace(".", "p")


def _is_rate(label: str, rate: float) -> bool:
    return label.rpartition("=")[2] == f"{rate:g}"


def _matched(table: Mapping[str, np.ndarray], course: Mapping[str, np.ndarray], by: str) -> np.ndarray:
    """Share changed by each member of SFT less that of its twin in PPO, when that had the same KL or return.

    Twins share learning rate and seed. The twin's share is read off a line through its checkpoints. Where the twin was
    never as far, nothing is matched, and it is NaN.
    """
    sft, ppo = (np.flatnonzero(table["arm"] == name) for name in ("sft", "ppo"))
    found = []
    for index in sft:
        twins = [i for i, at in enumerate(ppo) if table["learning_rate"][at] == table["learning_rate"][index]]
        twin = twins[int(np.sum(table["learning_rate"][sft[sft < index]] == table["learning_rate"][index]))]
        order = np.argsort(course[by][:, twin])
        share = np.interp(
            table[by][index], course[by][order, twin], course[MEASURE][order, twin], left=np.nan, right=np.nan
        )
        found.append(table[MEASURE][index] - share)
    return np.array(found)


_STYLES: dict[str, plots.Style] = {
    "ppo": (drawing.BLUE, "o"),
    "ppo_bfloat16": (drawing.SKY, "v"),
    "dr_grpo": (drawing.GREEN, "^"),
    "sft": (drawing.VERMILION, "D"),
}


def draw(findings: Findings, headline: str, stem: Path, footer: str) -> list[Path]:
    """Left, share changed against learning rate; middle, against KL; right, the subnetwork alone."""
    table = {key: np.array(values) for key, values in findings.tables["points"].items()}
    figure = drawing.figure(
        12.6, 4.7, headline, "dots: members; filled: bfloat16 values changed by more than 10⁻⁵, hollow: stored "
        "values changed at all; lines: PPO while it learns; grey band: 5 to 30 %",
    )  # fmt: skip
    places = ((0.06, 0.135, 0.27, 0.6), (0.395, 0.135, 0.27, 0.6), (0.79, 0.135, 0.195, 0.6))
    left, middle, right = (figure.add_axes(place) for place in places)
    drawing.plain(left, "sum of learning rates over the median weight", "parameters changed (%)")
    drawing.plain(middle, "KL from the base (nats per episode)", "parameters changed (%)")
    names = list(dict.fromkeys(table["arm"].tolist()))
    for axes, x in ((left, "steps_over_weight"), (middle, "kl")):
        axes.axhspan(100 * BAND[0], 100 * BAND[1], color=drawing.PALE, alpha=0.6, linewidth=0, zorder=0)
        for name in names:
            mine, (colour, marker) = table["arm"] == name, _STYLES[name]
            for key, face in ((MEASURE, colour), (EXACT, "none")):
                axes.plot(
                    np.maximum(table[x][mine], 1e-6), 100 * table[key][mine], marker, markerfacecolor=face,
                    markeredgecolor=colour, markersize=5, alpha=0.75,
                    label=_TITLES[name] if key == MEASURE else None,
                )  # fmt: skip
        axes.set_xscale("log")
        axes.set_ylim(-3, 103)
    course = {key: np.array(values) for key, values in findings.tables["course"].items()}
    for member in np.unique(course["member"]):
        mine = course["member"] == member
        middle.plot(
            course["kl"][mine],
            100 * course[MEASURE][mine],
            "-",
            color=_STYLES["ppo"][0],
            linewidth=0.6,
            alpha=0.4,
            zorder=1,
        )
    left.legend(loc="lower left", bbox_to_anchor=(-0.02, 1.01), ncols=4, frameon=False, fontsize=8.5, columnspacing=1.2)
    drawing.plain(right, "share of RL's gain (%)")
    each = findings.estimates
    if "gain_alone" not in each:
        right.text(0.5, 0.5, "nothing trained alone", transform=right.transAxes, ha="center", color=drawing.GREY)
        return drawing.save(figure, stem, footer)
    shown: Sequence[tuple[str, Estimate, plots.Style]] = [
        ("tenth that moved\nfarthest, alone", each["gain_alone"], _STYLES["ppo"]),
        ("random tenth,\nalone", each["gain_random"], (drawing.GREY, "s")),
    ]
    plots.rows(right, shown, 100, ".0f", {"nothing": 0.0, "all": 1.0})
    return drawing.save(figure, stem, footer)


STUDY = Study(
    name="sparse_updates",
    title="RL changes 5 to 30 % of the parameters",
    claim="RL changes a small share of a model's parameters, much smaller than fine-tuning does, and that subnetwork "
    "alone carries what it learns.",
    source="arXiv 2505.11711; arXiv 2511.08567",
    method="One base is trained further by PPO, Dr. GRPO and fine-tuning on Alice with as many optimiser steps, at "
    "several learning rates; PPO also with parameters stored in bfloat16, from a base of its own. Changes are counted "
    "by the paper's definition and in the stored bits, and set against the KL from the base.",
    limits=(
        "All members start from one base, those stored in bfloat16 from another.",
        "A parameter of a small model is needed more than one of a large model; a share does not scale by itself.",
        "Fine-tuning imitates one persona, not what RL has found; they are matched in KL or in return, not in both.",
        "The subnetwork is defined by the run that it is to repeat.",
    ),
    questions=(
        Question(
            "band",
            "Does PPO change between 5 and 30 % of the parameters, by the paper's definition?",
            "The share lies between 0.05 and 0.30.",
            "It lies outside.",
            (Criterion("changed_ppo", "above", BAND[0]), Criterion("changed_ppo", "below", BAND[1])),
            leading=True,
        ),
        Question(
            "fewer_than_sft",
            "Does PPO change fewer parameters than fine-tuning by the time it has gone as far in KL?",
            "SFT changes a greater share at the same KL.",
            "It changes a smaller one.",
            (Criterion("sft_less_rl_at_matched_kl", "above", 0.0),),
            leading=True,
        ),
        Question(
            "fewer_at_the_same_return",
            "Does PPO change fewer parameters than fine-tuning by the time it earns as much?",
            "SFT changes a greater share at the same return.",
            "It changes a smaller one.",
            (Criterion("sft_less_rl_at_matched_return", "above", 0.0),),
        ),
        Question(
            "subnetwork",
            "Does the tenth of the parameters that moved farthest carry RL's gain when trained alone?",
            "Alone it makes at least 0.8 of the gain, and more than a random tenth does.",
            "It makes less than 0.8, or less than a random tenth.",
            (Criterion("gain_alone", "above", 0.8), Criterion("gain_beyond_random", "above", 0.0)),
            leading=True,
        ),
        Question(
            "precision",
            "Is the sparsity at learning rates like those of language models a matter of rounding?",
            f"There, the share of stored values that changed exceeds the bfloat16 share by more than {GAP:g}.",
            "The two are closer.",
            (Criterion("hidden_by_rounding", "above", GAP),),
        ),
        Question(
            "storage",
            "Does storing parameters in bfloat16 freeze what small steps would have changed?",
            f"At the lowest rate, float32 storage changes a share greater by more than {GAP:g}.",
            "The shares are closer.",
            (Criterion("changed_by_storage", "above", GAP),),
        ),
        Question(
            "rate",
            "Is the share set by the learning rate?",
            f"From the lowest to the highest rate it grows by more than {GAP:g}.",
            "It grows by less.",
            (Criterion("changed_by_rate", "above", GAP),),
        ),
        Question(
            "overlap",
            "Do two members change the same parameters, beyond what the weights' sizes explain?",
            "The Jaccard index of their farthest-moving tenths exceeds weight-matched chance.",
            "It falls below.",
            (Criterion("overlap_beyond_chance", "above", 0.0),),
        ),
    ),
    arms=arms,
    measure=measure,
    draw=draw,
)
"""The study."""
