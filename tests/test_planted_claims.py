"""The headline studies on planted effects: present, absent, and with too few members to tell."""

import numpy as np
import pytest

from studies import claims, functional_welfare, sparse_updates

MEMBERS = claims.MEMBERS + 4


def around(value: float, members: int, spread: float = 0.02) -> dict[str, list[float]]:
    """What an analysis says of members that lie about a value."""
    values = value + spread * np.linspace(-1, 1, members)
    return {"members": values.tolist()}


def look(cosine: float, d: float, narrator: float, members: int) -> dict:
    """One arm of `analysis concepts`; random directions reach a d of 1."""
    site = functional_welfare.SITE
    return {
        "cosine": {"other_classes": {"at_rule_layer": around(cosine, members)}},
        "goal_tracking": {
            "axis": {site: {"d": around(d, members)}},
            "random": {site: {"quantile_97.5_size": 1.0}},
        },
        "narrator_cosine": {"foretold": around(narrator, members)},
    }


def welfare(present: bool, members: int = MEMBERS) -> dict:
    untrained = look(-0.3, 0.5, 0.0, members)
    if present:
        ppo = {"after RL": look(-0.9, 2.0, 0.6, members), "before RL": look(-0.6, 1.5, 0.4, members)}
        plain = {"after RL": look(-0.4, 0.7, 0.0, members), "before RL": look(-0.2, 0.2, 0.0, members)}
        swings = {"axis": 0.5, "path": 0.1, "random": 0.0}
    else:
        ppo = {"after RL": look(-0.2, 0.1, 0.05, members), "before RL": look(-0.2, 0.1, 0.0, members)}
        plain = {"after RL": look(-0.2, 0.1, 0.2, members), "before RL": look(-0.2, 0.3, 0.0, members)}
        swings = {"axis": 0.02, "path": 0.3, "random": 0.0}
    found = {name: parts | {"untrained": untrained} for name, parts in (("ppo", ppo), ("unnarrated", plain))}
    effect = functional_welfare.EFFECT
    steered = {name: {effect: {"swing": around(value, members)}} for name, value in swings.items()}
    steered["random"][effect]["quantile_97.5_size"] = around(0.2, members)
    estimates, tables, alt = functional_welfare.estimate(found, steered)
    assert "Steering" in alt
    assert set(tables) == {"cosine", "tracking", "narrator", "steering"}
    return claims.judge(functional_welfare.STUDY.questions, estimates)


def sparse(present: bool, members: int = MEMBERS) -> dict:
    rates = (1e-3, 1e-5)
    share = {"ppo": (0.15, 0.02), "sft": (0.60, 0.20)} if present else {"ppo": (0.95, 0.6), "sft": (0.30, 0.1)}
    found, gone, returns = {}, {}, {}
    for name, by_rate in share.items():
        changed = np.concatenate([around(value, members)["members"] for value in by_rate]).tolist()
        label = f"{'rl' if name == 'ppo' else 'sft'}.learning_rate"
        found[name] = {
            "population": [{"seed": seed, "values": {label: rate}} for rate in rates for seed in range(members)],
            "learning_rate_sum_over_median_weight": {"all": [100 * rate for rate in rates for _ in range(members)]},
            "fractions": {"all": {"paper": changed, "changed_stored": [0.99] * (2 * members)}},
            "groups": [
                {
                    "label": f"{label}={rate:g}",
                    "overlaps": {
                        "farthest_10_percent": {"all": {"excess": {"mean": 0.2, "low": 0.1, "high": 0.3}}},
                    },
                }
                for rate in rates
            ],
        }
        gone[name] = np.repeat([4.0, 0.1], members) * np.tile(np.linspace(0.9, 1.1, members), 2)
        returns[name] = np.full(2 * members, 20.0)
    gone["sft"] = np.repeat([8.0, 0.01], members)
    gains = {
        "before RL": 0.0,
        "full run": 40.0,
        "random": 5.0 if present else 30.0,
        "learned": 38.0 if present else 20.0,
    }
    alone = {name: around(value, members, 0.5) for name, value in gains.items()}
    shape = (3, 2 * members)
    course = {"update": np.array([1, 2, 3]), "kl": np.broadcast_to([[0.001], [1.0], [20.0]], shape)}
    course["return"] = np.broadcast_to([[0.0], [10.0], [40.0]], shape)
    course["paper"] = np.broadcast_to(found["ppo"]["fractions"]["all"]["paper"], shape)
    estimates, tables, _ = sparse_updates.estimate(found, gone, returns, alone, course)
    assert len(tables["points"]["arm"]) == 4 * members
    assert len(tables["course"]["kl"]) == 3 * 2 * members
    return claims.judge(sparse_updates.STUDY.questions, estimates)


@pytest.mark.parametrize("planted", [welfare, sparse])
def test_a_planted_effect_is_supported_and_its_absence_refuted(planted):
    for present, verdict in ((True, "supported"), (False, "refuted")):
        judged = planted(present)
        assert judged["verdict"] == verdict
        leading = {question["name"]: question["verdict"] for question in judged["questions"] if question["leading"]}
        assert set(leading.values()) == {verdict}, leading
    assert planted(True, members=claims.MEMBERS // 2 - 1 or 1)["verdict"] == "inconclusive"


def test_arms_that_were_not_run_decide_nothing():
    answers = {question["name"]: question["verdict"] for question in welfare(True)["questions"]}
    assert answers["other_algorithms"] == answers["reward"] == answers["reinforcement"] == "inconclusive"
    answers = {question["name"]: question["verdict"] for question in sparse(True)["questions"]}
    assert answers["storage"] == "inconclusive"
    assert answers["precision"] == "supported"
    assert answers["overlap"] == "supported"


def test_a_share_is_compared_with_the_twins_at_the_same_divergence_or_return():
    """PPO's members at a rate of 1 change .1 and .5 at KL 1 and 3, returns 0 and 20; at 2, .4 and .6 at KL 2 and 4."""
    table = {
        "arm": np.array(["ppo", "sft", "sft", "ppo", "ppo", "sft", "sft"]),
        "learning_rate": np.array([1.0, 2.0, 1.0, 2.0, 1.0, 1.0, 2.0]),
        "kl": np.array([9.0, 3.0, 2.0, 9.0, 9.0, 3.0, 1.0]),
        "return": np.array([9.0, 5.0, 5.0, 9.0, 9.0, 10.0, 30.0]),
        sparse_updates.MEASURE: np.array([0.0, 0.9, 0.9, 0.0, 0.0, 0.8, 0.7]),
    }
    # Twins by rate and order: (2, first) with PPO's second, (1, first) with its first, (1, second) with its third.
    course = {
        "kl": np.array([[1.0, 2.0, 3.0], [3.0, 4.0, 1.0]]),
        "return": np.array([[0.0, 0.0, 0.0], [20.0, 20.0, 20.0]]),
        sparse_updates.MEASURE: np.array([[0.1, 0.4, 0.5], [0.5, 0.6, 0.1]]),
    }
    table["arm"][-1] = "other"
    found = sparse_updates._matched(table, course, "kl")
    np.testing.assert_allclose(found, [0.9 - 0.5, 0.9 - 0.3, 0.8 - 0.5])
    found = sparse_updates._matched(table, course, "return")
    np.testing.assert_allclose(found, [0.9 - 0.45, 0.9 - 0.2, 0.8 - 0.3])
    table["kl"][1] = 5.0
    assert np.isnan(sparse_updates._matched(table, course, "kl")[0])
