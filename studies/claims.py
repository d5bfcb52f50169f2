"""What a study asks, stated before it runs, and what its numbers answer.

A question is a list of criteria, each a bound on one estimate. An interval wholly on the predicted side of its bound
supports, one wholly on the other side refutes, one that holds the bound decides nothing. All of it is data, so that a
verdict can be read, repeated and tried on planted effects.
"""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike

from ground import statistics

Verdict = Literal["supported", "refuted", "inconclusive"]
VERDICTS: tuple[Verdict, ...] = ("supported", "refuted", "inconclusive")

MEMBERS = 4
"""Fewer members decide nothing: an interval of three seeds says little of a fourth."""

RULE = (
    "A criterion is supported where the 95 % interval lies wholly on the predicted side of its bound, refuted where it "
    f"lies wholly on the other, and inconclusive otherwise or with fewer than {MEMBERS} members. A question is "
    "refuted if one of its criteria is, supported if all of them are. The study's verdict is that of its leading "
    "questions together."
)
"""How verdicts come about."""


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A mean over a population and how far to trust it."""

    mean: float
    low: float
    """Lower end of the 95 % interval; NaN where there is none."""
    high: float
    """Its upper end."""
    members: int
    """Members behind it."""
    meaning: str
    """What it is, with its unit."""
    values: tuple[float, ...] = ()
    """Of each member."""
    control: str = ""
    """Name of the estimate to read beside it; empty where it is a difference to its control already."""

    @classmethod
    def of(cls, values: ArrayLike, meaning: str, control: str = "") -> "Estimate":
        """Mean of members float[M], with a bootstrap interval over them. Members that are NaN do not count."""
        every = np.asarray(values, np.float64).ravel()
        kept = every[np.isfinite(every)]
        if not len(kept):
            return cls(np.nan, np.nan, np.nan, 0, meaning, tuple(every.tolist()), control)
        low, high = (np.nan, np.nan)
        if len(kept) > 1:
            low, high = (float(end) for end in statistics.bootstrap_interval(kept, statistic=np.mean))
        return cls(float(kept.mean()), low, high, len(kept), meaning, tuple(every.tolist()), control)


Estimates = Mapping[str, Estimate]
"""By name."""


@dataclasses.dataclass(frozen=True)
class Criterion:
    """A bound that an estimate must keep."""

    estimate: str
    """Its name."""
    side: Literal["above", "below"]
    """Where the prediction puts the interval."""
    bound: float

    def verdict(self, estimates: Estimates) -> Verdict:
        """What the estimate says; one that was not made decides nothing."""
        found = estimates.get(self.estimate)
        if found is None or found.members < MEMBERS or not np.isfinite([found.low, found.high]).all():
            return "inconclusive"
        low, high = found.low - self.bound, found.high - self.bound
        if self.side == "below":
            low, high = -high, -low
        return "supported" if low > 0 else "refuted" if high < 0 else "inconclusive"

    @property
    def words(self) -> str:
        """For people to read."""
        return f"{self.estimate.replace('_', ' ')} {self.side} {self.bound:g}"


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

    def verdict(self, estimates: Estimates) -> Verdict:
        """What the estimates answer."""
        return together(criterion.verdict(estimates) for criterion in self.criteria)


def together(verdicts: Iterable[Verdict]) -> Verdict:
    """Refuted if one is, supported if all are, else inconclusive; so is nothing at all."""
    found = set(verdicts)
    if "refuted" in found:
        return "refuted"
    return "supported" if found == {"supported"} else "inconclusive"


def judge(questions: Sequence[Question], estimates: Estimates) -> dict[str, Any]:
    """The verdict, and each question's with the criteria that decided it, as plain values."""
    answers = [
        {
            "name": question.name,
            "text": question.text,
            "prediction": question.prediction,
            "refutation": question.refutation,
            "leading": question.leading,
            "verdict": question.verdict(estimates),
            "criteria": [
                dataclasses.asdict(each) | {"words": each.words, "verdict": each.verdict(estimates)}
                for each in question.criteria
            ],
        }
        for question in questions
    ]
    verdict = together(answer["verdict"] for answer in answers if answer["leading"])
    return {"verdict": verdict, "rule": RULE, "questions": answers}
