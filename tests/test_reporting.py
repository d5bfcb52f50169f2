"""What the terminal says of a run."""

import dataclasses
import io
from pathlib import Path

import pytest
from rich.console import Console

from agents.runs import config as configs
from agents.runs import reporting
from agents.runs.config import SCALES
from analysis import measures as measures
from analysis.measure import REGISTRY
from ground import terminal
from tests import tiny


def told(function, *arguments) -> str:
    console = Console(width=120, record=True, file=io.StringIO())
    function(console, *arguments)
    return console.export_text()


@pytest.mark.parametrize("name", ["[/x]", "[bold]x", ":bug:", "a\\[b]", "$x$ {y}"])
@pytest.mark.parametrize("console", [Console, lambda **options: terminal.console(markup=True, **options)])
def test_paths_are_printed_as_they_are(name, console):
    file = io.StringIO()
    shown = console(width=120, file=file)
    reporting.header(shown, tiny.CONFIG, f"runs/{name}")
    reporting.written(shown, [Path(f"runs/{name}/x.png")], f"{name}, 2 members")
    reporting.diverged(shown, {f"member {name}": "update 1 of rl"})
    text = file.getvalue()
    assert f"directory  runs/{name} " in text
    assert f"  runs/{name}/x.png\n" in text
    assert f"{name}, 2 members\n" in text
    assert f"member {name} diverged" in text


def summary(**outcomes):
    return {
        "return": {"random": -80.0, "personas": {"Larry": -56.0}, "greedy": 17.0, "before_rl": [-10.0], **outcomes},
        "diverged": {},
        "seconds": {"total": 3.0},
        "tokens_per_second": {"rl": 1000.0},
    }  # fmt: skip


def test_a_swept_population_gets_a_row_per_point_of_the_grid():
    scripts = {"random": -80.0, "personas": {"Larry": -56.0}, "greedy": 17.0}
    points = [
        {"values": {"rl.learning_rate": rate}, **scripts, "after_rl": mean, "after_rl_interval": interval}
        for rate, mean, interval in ((1e-4, 2.0, [0.5, 3.5]), (0.5, 30.0, [20.25, 40.0]), (9.0, None, None))
    ]
    text = told(reporting.results, summary(after_rl=[1.0, 3.0, 20.0, 40.0, None, None], points=points))
    rows = [[cell.strip() for cell in line.split("│")[1:4]] for line in text.splitlines() if "after RL" in line]
    assert rows == [
        ["model after RL, rl.learning_rate=0.0001", "+2.0", "+0.5 to +3.5"],
        ["model after RL, rl.learning_rate=0.5", "+30.0", "+20.2 to +40.0"],
        ["model after RL, rl.learning_rate=9", "diverged", ""],
    ]


@pytest.mark.parametrize("interval", [None, [3.5, 5.5]])
def test_without_a_grid_there_is_one_row_of_the_members_that_have_not_diverged(interval):
    text = told(reporting.results, summary(after_rl=[4.0, None, 5.0], after_rl_interval=interval))
    row = text.split("model after RL")[1].splitlines()[0]
    assert [cell.strip() for cell in row.split("│")[1:3]] == ["+4.5", "+3.5 to +5.5" if interval else ""]


@pytest.mark.parametrize("scale", SCALES)
def test_the_header_says_what_will_run(scale):
    config = SCALES[scale]
    text = told(reporting.header, config, "runs/x")
    assert scale in text
    assert "runs/x" in text
    assert f"{reporting.parameter_count(config):,} each" in text
    assert str(len(config.members)) in text


def test_the_forecast_grows_with_the_work_and_shrinks_with_devices():
    smoke, laptop = (reporting.expected_minutes(SCALES[scale], 2, "cpu") for scale in ("smoke", "laptop"))
    assert smoke < 1 < laptop
    assert reporting.expected_minutes(SCALES["laptop"], 4, "cpu") < laptop


def test_the_forecast_counts_every_trip_and_how_a_gpu_multiplies():
    config = configs.start("laptop", "EmojiRooms-v0")
    one = dataclasses.replace(config, pretrain=dataclasses.replace(config.pretrain, trips=1))
    assert reporting.expected_minutes(one, 2, "cpu") < 0.7 * reporting.expected_minutes(config, 2, "cpu")
    half = dataclasses.replace(config, policy=dataclasses.replace(config.policy, compute_dtype="bfloat16"))
    assert reporting.expected_minutes(half, 1, "gpu") < reporting.expected_minutes(config, 1, "gpu")


def test_the_end_says_what_to_do_next():
    """Every word is a measurement, or the command's own, and the run's name is as it is."""
    text = told(reporting.next_steps, Path("runs/[x]"))
    words = [line.split("  ")[1].split() for line in text.splitlines() if line.startswith("  uv")]
    assert [word[:4] for word in words] == [["uv", "run", "-m", "analysis"]] * 3
    assert all(word[4] == "list" or (word[4] in REGISTRY and word[5] == "runs/[x]") for word in words)
