"""What every study must keep, on runs of policies that were never trained: all estimates, all panels, no verdict."""

import dataclasses

import numpy as np
import pytest

from agents.runs.config import Config
from analysis.figures import panels
from studies import __main__ as command
from studies import populations, study
from tests import tiny, untrained

pytestmark = pytest.mark.slow  # every measurement, on every arm

OPTIONS = {
    "concepts": {"episodes": 120, "permutations": 3},
    "tracking": {"episodes": 120, "play_episodes": 16, "player": "base"},
    "recruitment": {"episodes": 6, "extraction_episodes": 120},
    "steering": {"extraction_episodes": 120, "episodes": 24, "play_episodes": 16, "strengths": (-1.0, 0.0, 1.0)},
    "attempts": {"samples": 8, "mazes": 16},
    "divergence": {"episodes": 64},
    "returns": {"episodes": 64},
    "course": {"episodes": 64},
    "subnetwork": {"members": 4, "draws": 1, "densities": (0.1, 0.03, 0.01, 0.003, 0.001)},
    "ledger": {"mazes": 2, "episodes": 32},
}
BASES = 4
WORLDS = {
    "EmojiMaze-v0": {"size": 11},
    "EmojiLabyrinth-v0": {"size": 2},
    "EmojiRooms-v0": {"size": 4, "plan_length": 4, "distance_range": (1, 2)},
}


def small(config: Config) -> Config:
    """The same recipe with a policy of 16 units, two updates of RL and a world of four turns."""
    world = {"turns": 4} | WORLDS[config.world.name]
    changes = {
        "world": dataclasses.replace(config.world, **world),
        "policy": dataclasses.replace(tiny.CONFIG.policy, layers=2, parameter_dtype=config.policy.parameter_dtype),
        "population": dataclasses.replace(config.population, seeds=BASES, microbatch=4),
        "rl": dataclasses.replace(config.rl, updates=2 * bool(config.rl.updates), chunk=1, episodes=16, minibatches=2),
    }
    if config.sft.updates:
        changes["sft"] = dataclasses.replace(config.sft, updates=2, chunk=1, episodes=16)
    return dataclasses.replace(config, **changes)


@pytest.fixture(scope="module", params=command.NAMES)
def measured(request, tmp_path_factory):
    """A study with its results on all of its arms, and on those of smoke."""
    one, folder = command.find(request.param), tmp_path_factory.mktemp("runs")
    arms = {arm: small(populations.of(name).config("smoke")) for arm, name in one.arms.items()}
    runs = {arm: untrained.write(folder / arm, config) for arm, config in arms.items()}
    used = {name for options in one.options.values() for name in options}
    assert used <= set(OPTIONS)
    everything = one.measure(runs, {name: OPTIONS[name] for name in used})
    few = one.measure(
        {arm: runs[arm] for arm in one.configs("smoke")}, {name: OPTIONS[name] for name in one.options["smoke"]}
    )
    return one, everything, few


def test_every_estimate_that_is_asked_about_is_made(measured):
    one, everything, few = measured
    asked = {criterion.estimate for question in one.questions for criterion in question.criteria}
    asked |= {variant for question in one.questions for variant in question.variants}
    assert asked <= set(everything.estimates)
    assert {comparison.ours for comparison in one.compared} <= set(everything.estimates)
    assert set(few.estimates) <= set(everything.estimates)
    for results in (everything, few):
        controls = {estimate.control for estimate in results.estimates.values()} - {""}
        assert controls <= set(results.estimates)
        for name, estimate in results.estimates.items():
            assert estimate.members <= BASES, name
            assert estimate.members == BASES or np.isnan(estimate.low), name
    for name in asked:
        if any(words in name for words in (" at the same KL ", " at equal ", " at KL ", "BIC ")):
            continue  # untrained twins may match nowhere, and two updates show no curve
        assert np.isfinite(everything.estimates[name].mean), name


def test_every_panel_draws_and_its_data_is_written(measured, tmp_path):
    one, everything, few = measured
    for number, results in enumerate((everything, few)):
        figure = panels.draw(results.panels, width=5.5, title=one.title, meaning=results.meaning, plain=False)
        paths = panels.save(figure, tmp_path / f"{one.name}-{number}", results.panels, one.title, results.meaning, "")
        assert {path.suffix for path in paths} >= {".png", ".pdf", ".csv"}
        assert all(path.stat().st_size > 200 for path in paths)


def test_a_verdict_is_written_at_every_scale_and_untrained_policies_support_nothing(measured):
    one, everything, few = measured
    for scale in study.SCALES:
        document = study.verdict(one, few if scale == "smoke" else everything, scale)
        assert document["verdict"] != "supported"
        assert document["takeaway"] is None or document["verdict"] in study.questions.WORDS
        assert set(document["estimates"]) == set((few if scale == "smoke" else everything).estimates)
        assert len(document["alt"]) > 20
