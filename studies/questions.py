"""What a study asks, stated before it runs, and what its estimates answer.

A question is a list of criteria, each a bound on one estimate: above it, or below. A criterion may name the smallest
effect of interest beyond the bound; the bar is then the bound and that effect. An interval wholly beyond the bar
supports. An interval that excludes the bar refutes, but only where such an effect was named: no better than a null is
not shown, and not refuted. All of it is data, so that a verdict can be read, repeated and tried on planted effects.

What was asked might as well have been measured at another layer, k or rate. Such variants are stated with a question
and judged like it; how many agree is told beside the answer and decides nothing (a multiverse, Steegen et al. 2016).
"""

import dataclasses
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import numpy as np

from ground import numbers, statistics
from ground.estimates import INDEPENDENT, Estimate

Verdict = Literal["supported", "refuted", "inconclusive"]
WORDS: dict[Verdict, str] = {
    "supported": "replicates here",
    "refuted": "does not replicate in this regime",
    "inconclusive": "not shown",
}
"""What readers are told: a paper is not wrong because a small model in a maze does not follow it."""
LEVEL = 0.05
"""Of every test, and of the leading questions of a study together."""

RULE = (
    "A criterion is supported where the 95 % interval lies wholly beyond its bar: the bound and, where one is named, "
    "the smallest effect of interest. It is refuted where the interval excludes the bar, if such an effect is named; "
    f"else, and with fewer than {INDEPENDENT} independent bases, it is inconclusive: not shown. A question is refuted "
    "if one of its criteria is, supported if all are. Where a gate is not supported, nothing else is decided. The "
    "leading questions answer together, by Holm's correction; the study's verdict is theirs."
)
"""How verdicts come about."""

Estimates = Mapping[str, Estimate]
"""By name."""


@dataclasses.dataclass(frozen=True)
class Criterion:
    """A bound that an estimate must keep."""

    estimate: str
    """Its name."""
    side: Literal[">", "<"]
    """Where the prediction puts the interval."""
    bound: float
    smallest: float | None = None
    """Smallest effect of interest beyond the bound; None where nothing but the bound is known, such as a null."""

    @property
    def bar(self) -> float:
        """What the interval must lie beyond."""
        return self.bound + (self.smallest or 0.0) * (1 if self.side == ">" else -1)

    def verdict(self, estimates: Estimates) -> Verdict:
        """What the estimate says; one that was not made, or has no interval, decides nothing."""
        estimate = estimates.get(self.estimate)
        if estimate is None or not np.isfinite([estimate.low, estimate.high]).all():
            return "inconclusive"
        low, high = estimate.low - self.bar, estimate.high - self.bar
        if self.side == "<":
            low, high = -high, -low
        if low > 0:
            return "supported"
        return "refuted" if high < 0 and self.smallest is not None else "inconclusive"

    def p_value(self, estimates: Estimates) -> float:
        """Two-sided p of the estimate against the bar; 1 where there is no interval."""
        estimate = estimates.get(self.estimate)
        p = math.nan if estimate is None else estimate.p_value(self.bar)
        return p if math.isfinite(p) else 1.0

    @property
    def words(self) -> str:
        """For people to read."""
        side = "above" if self.side == ">" else "below"
        effect = f", by {self.smallest:g} at least" if self.smallest else ""
        return f"{self.estimate} {side} {numbers.signed(self.bound, 'g')}{effect}"


@dataclasses.dataclass(frozen=True)
class Question:
    """A claim that can be told from its opposite."""

    name: str
    text: str
    """The question, as a sentence."""
    prediction: str
    """What the claim says will be seen."""
    refutation: str
    """What would speak against it."""
    criteria: tuple[Criterion, ...]
    leading: bool = False
    """Whether the study's own verdict rests on it."""
    primary: bool = False
    """Whether its first criterion is the study's deciding number."""
    gate: bool = False
    """Whether nothing else may be answered unless this is supported: that what is asked about is there at all."""
    variants: tuple[str, ...] = ()
    """Estimates that might as well have stood in place of its first criterion's."""

    def verdict(self, estimates: Estimates) -> Verdict:
        """What the estimates answer."""
        return together(criterion.verdict(estimates) for criterion in self.criteria)

    def varied(self, variant: str) -> "Question":
        """The same of another estimate."""
        first = self.criteria[0].estimate
        changed = [
            dataclasses.replace(criterion, estimate=variant) if criterion.estimate == first else criterion
            for criterion in self.criteria
        ]
        return dataclasses.replace(self, criteria=tuple(changed), variants=())

    def p_value(self, estimates: Estimates) -> float:
        """How sure the answer is: for support the weakest criterion's p, for refutation the strongest's, corrected."""
        values = {criterion: criterion.p_value(estimates) for criterion in self.criteria}
        if self.verdict(estimates) == "refuted":
            against = [p for criterion, p in values.items() if criterion.verdict(estimates) == "refuted"]
            return min(1.0, min(against) * len(values))
        return max(values.values(), default=1.0)


def ask(
    name: str,
    text: str,
    prediction: str,
    refutation: str,
    *criteria: str,
    smallest: float | None = None,
    leading: bool = False,
    primary: bool = False,
    gate: bool = False,
    variants: Iterable[str] = (),
) -> Question:
    """A question, its criteria written as `success gained by NSR > 0`.

    Args:
        name, text, prediction, refutation, leading, primary, gate, variants: see `Question`.
        *criteria: the name of an estimate, `>` or `<`, and the bound.
        smallest: smallest effect of interest beyond each bound; without one nothing can be refuted.
    """
    parsed = []
    for words in criteria:
        match = re.fullmatch(r"(.+) ([<>]) (−|-)?([0-9.]+)", words)
        assert match, words
        side: Any = match[2]
        parsed.append(Criterion(match[1], side, (-1 if match[3] else 1) * float(match[4]), smallest))
    return Question(
        name, text, prediction, refutation, tuple(parsed), leading or primary, primary, gate, tuple(variants)
    )  # fmt: skip


def together(verdicts: Iterable[Verdict]) -> Verdict:
    """Refuted if one is, supported if all are, else inconclusive; so is nothing at all."""
    distinct = set(verdicts)
    if "refuted" in distinct:
        return "refuted"
    return "supported" if distinct == {"supported"} else "inconclusive"


def judge(questions: Sequence[Question], estimates: Estimates) -> dict[str, Any]:
    """The verdict, and each question's with the criteria that decided it, as plain values."""
    leading = [question for question in questions if question.leading]
    corrected = dict(
        zip(
            (question.name for question in leading),
            statistics.holm(np.array([question.p_value(estimates) for question in leading])).tolist(),
            strict=True,
        )
    )
    closed = any(question.gate and question.verdict(estimates) != "supported" for question in questions)
    answers = []
    for question in questions:
        verdict = question.verdict(estimates)
        if corrected.get(question.name, 0.0) > LEVEL or (closed and not question.gate):
            verdict = "inconclusive"
        answers.append(
            {
                "name": question.name,
                "text": question.text,
                "prediction": question.prediction,
                "refutation": question.refutation,
                "leading": question.leading,
                "primary": question.primary,
                "gate": question.gate,
                "verdict": verdict,
                "p_holm": corrected.get(question.name),
                "criteria": [
                    dataclasses.asdict(criterion)
                    | {
                        "bar": criterion.bar,
                        "words": criterion.words,
                        "verdict": criterion.verdict(estimates),
                        "p": criterion.p_value(estimates),
                    }
                    for criterion in question.criteria
                ],
                "variants": {name: question.varied(name).verdict(estimates) for name in question.variants},
            }
        )
    verdict = together(answer["verdict"] for answer in answers if answer["leading"])
    return {"verdict": verdict, "words": WORDS[verdict], "rule": RULE, "questions": answers}


def agreement(question: Mapping[str, Any]) -> str:
    """How many of its variants say of a question what its own estimates say, before any correction; empty without any.

    Args:
        question: as `judge` tells it.
    """
    variants: Mapping[str, Verdict] = question.get("variants", {})
    answer = together(criterion["verdict"] for criterion in question["criteria"])
    others = [f"{name} ({verdict})" for name, verdict in variants.items() if verdict != answer]
    if not variants:
        return ""
    return f"{len(variants) - len(others)} of {len(variants)} stated variants agree" + (
        f", but not {'; '.join(others)}" if others else ""
    )
