"""Verdicts from estimates: what supports, what refutes, and what is merely not shown."""

import numpy as np
import pytest

from ground.estimates import Estimate
from studies.questions import Criterion, agreement, ask, judge, together


def spread(mean: float, half: float, members: int = 8) -> Estimate:
    """An estimate whose interval is about `half` on both sides; symmetric, so that nothing is corrected for skew."""
    values = np.concatenate([np.linspace(-1, -0.2, members // 2), np.linspace(0.2, 1, members // 2)])
    unit = Estimate.of(values)
    return Estimate.of(mean + values * half / (unit.high - unit.mean))


def effect(*criteria: str, **changes):
    return ask("effect", "Is there one?", "yes", "no", *criteria, **changes)


@pytest.mark.parametrize(
    ("mean", "smallest", "verdict"),
    [
        (0.30, 0.1, "supported"),
        (0.15, 0.1, "inconclusive"),  # beyond the bound, but perhaps too small to matter
        (0.00, 0.1, "inconclusive"),  # the interval holds the smallest effect of interest
        (-0.05, 0.1, "refuted"),  # it excludes it
        (-0.50, 0.1, "refuted"),
        (0.11, None, "supported"),
        (0.00, None, "inconclusive"),
        (-0.50, None, "inconclusive"),  # no better than a null is not shown, however far below
        (-0.50, 0.0, "refuted"),
    ],
)
def test_a_criterion_compares_the_interval_with_its_bar(mean, smallest, verdict):
    question = effect("x > 0", smallest=smallest)
    assert question.verdict({"x": spread(mean, 0.1)}) == verdict
    mirrored = effect("x < 0", smallest=smallest)
    assert mirrored.verdict({"x": spread(-mean, 0.1)}) == verdict


def test_bounds_are_read_from_words_with_any_minus():
    question = effect("pass@64 after NSR less the base's > −0.02", "share changed < 0.3")
    assert question.criteria[0] == Criterion("pass@64 after NSR less the base's", ">", -0.02)
    assert question.criteria[1] == Criterion("share changed", "<", 0.3)
    assert effect("x > -1.5").criteria[0].bound == -1.5
    assert Criterion("x", "<", 0.5, 0.1).bar == pytest.approx(0.4)
    with pytest.raises(AssertionError, match="x above 0"):
        effect("x above 0")


def test_too_few_bases_decide_nothing():
    for members, verdict in ((3, "inconclusive"), (4, "supported")):
        values = 1 + 0.01 * np.arange(members)
        assert effect("x > 0", smallest=0.1).verdict({"x": Estimate.of(values)}) == verdict
    twins = Estimate.of(np.linspace(1, 1.01, 12), units=np.repeat([0, 1, 2], 4))
    assert effect("x > 0").verdict({"x": twins}) == "inconclusive"


def test_estimates_that_were_not_made_decide_nothing():
    question = effect("x > 0", "y > 0", smallest=0.0)
    assert question.verdict({"x": spread(1, 0.1)}) == "inconclusive"
    assert question.verdict({"x": spread(1, 0.1), "y": spread(1, 0.1)}) == "supported"
    assert question.verdict({"x": spread(1, 0.1), "y": spread(-1, 0.1)}) == "refuted"
    assert question.p_value({}) == 1
    assert together([]) == "inconclusive"


def test_leading_questions_answer_together():
    """A p value of some .03 alone decides; one of four such does not."""
    barely = next(
        x for x in (spread(mean, 0.1) for mean in np.linspace(0.1, 0.13, 200)) if 0.02 < x.p_value(0.0) < 0.04
    )
    assert effect("x > 0").verdict({"x": barely}) == "supported"
    alone = judge([effect("x > 0", leading=True)], {"x": barely})
    assert (alone["verdict"], alone["words"]) == ("supported", "replicates here")
    asked = [ask(f"q{i}", "?", "", "", "x > 0", leading=True) for i in range(4)]
    four = judge(asked, {"x": barely})
    assert four["verdict"] == "inconclusive"
    assert {answer["verdict"] for answer in four["questions"]} == {"inconclusive"}
    assert {answer["criteria"][0]["verdict"] for answer in four["questions"]} == {"supported"}
    others = judge([asked[0], *(ask(f"o{i}", "?", "", "", "x > 0") for i in range(9))], {"x": barely})
    assert others["verdict"] == "supported"  # what does not lead costs nothing
    sure = judge(asked, {"x": spread(1, 0.01)})
    assert sure["verdict"] == "supported"


def test_one_of_many_criteria_refutes_only_after_correction():
    weak = next(x for x in (spread(-mean, 0.1) for mean in np.linspace(0.1, 0.13, 200)) if 0.02 < x.p_value(0.0) < 0.04)
    estimates = {"weak": weak, **{f"x{i}": spread(1, 0.1) for i in range(4)}}
    question = effect("weak > 0", *(f"x{i} > 0" for i in range(4)), smallest=0.0, leading=True)
    assert question.verdict(estimates) == "refuted"
    assert judge([question], estimates)["verdict"] == "inconclusive"


def test_the_rule_holds_its_level_in_simulation():
    """Four leading questions without any effect: one is wrongly supported in at most 5 % of studies."""
    generator = np.random.default_rng(0)
    asked = [ask(f"q{i}", "?", "", "", f"x{i} > 0", leading=True) for i in range(4)]
    wrong = 0
    for _ in range(400):
        estimates = {f"x{i}": Estimate.of(generator.normal(size=8)) for i in range(4)}
        answers = judge(asked, estimates)["questions"]
        wrong += any(answer["verdict"] == "supported" for answer in answers)
    assert wrong / 400 < 0.06


def test_behind_a_closed_gate_nothing_is_decided():
    estimates = {"there": spread(0.0, 0.1), "effect": spread(1, 0.01)}
    asked = [ask("gate", "?", "", "", "there > 0.2", smallest=0.0, gate=True), effect("effect > 0", primary=True)]
    closed = judge(asked, estimates)
    assert closed["verdict"] == "inconclusive"
    assert [answer["verdict"] for answer in closed["questions"]] == ["refuted", "inconclusive"]
    opened = judge(asked, estimates | {"there": spread(1.0, 0.1)})
    assert opened["verdict"] == "supported"
    assert [answer["gate"] for answer in opened["questions"]] == [True, False]


def test_variants_are_judged_like_their_question_and_decide_nothing():
    estimates = {"x": spread(0.3, 0.1), "x, other k": spread(0.25, 0.1), "x, other rate": spread(-0.3, 0.1)}
    question = effect("x > 0", "x < 0.9", smallest=0.1, leading=True, variants=(*list(estimates)[1:], "never made"))
    document = judge([question], estimates)
    (answer,) = document["questions"]
    assert document["verdict"] == answer["verdict"] == "supported"
    assert answer["variants"] == {"x, other k": "supported", "x, other rate": "refuted", "never made": "inconclusive"}
    assert agreement(answer) == (
        "1 of 3 stated variants agree, but not x, other rate (refuted); never made (inconclusive)"
    )
    assert [one.estimate for one in question.varied("y").criteria] == ["y", "y"]
    assert [one.estimate for one in effect("x > 0", "z > 0").varied("y").criteria] == ["y", "z"]
    (plain,) = judge([effect("x > 0")], estimates)["questions"]
    assert agreement(plain) == "" == agreement({key: plain[key] for key in plain if key != "variants"})
    closed = judge([effect("x > 1", gate=True), question], estimates)["questions"][1]
    assert closed["verdict"] == "inconclusive"
    assert agreement(closed).startswith("1 of 3")
