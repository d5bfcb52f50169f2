"""What the terminal says of a run."""

import io
from pathlib import Path

import pytest
from rich.console import Console

from agents.runs import reporting
from agents.runs.config import SCALES
from analysis import measures as measures
from analysis.measure import REGISTRY
from ground import terminal
from ground.estimates import Estimate
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


def summary(population, after):
    return {
        "return": {
            "random": -80.0, "personas": {"Larry": -56.0}, "greedy": 17.0, "before_rl": [-10.0] * len(after),
            "after_rl": after,
        },
        "population": population,
        "diverged": {},
        "badge_kl": {"Larry": 0.01},
        "seconds": {"total": 3.0},
        "tokens_per_second": {"rl": 1000.0},
    }  # fmt: skip


def test_a_swept_population_gets_a_row_per_point_of_the_grid():
    config = tiny.changed(population={"seeds": 4, "sweep": ("rl.learning_rate=1e-4,0.5",)})
    population = [{"seed": member.seed, "values": member.values} for member in config.members]
    text = told(reporting.results, summary(population, [1.0, 1.5, 2.5, 3.0, 20.0, 25.0, 35.0, 40.0]))
    rows = {line.split("│")[1].strip(): line.split("│")[2:4] for line in text.splitlines() if "after RL" in line}
    assert list(rows) == [
        "model after RL, rl.learning_rate=0.0001",
        "model after RL, rl.learning_rate=0.5",
    ]
    means = [float(cells[0]) for cells in rows.values()]
    assert means == [2.0, 30.0]
    expected = Estimate.of([20.0, 25.0, 35.0, 40.0])
    ends = f"{expected.low:+.1f} to {expected.high:+.1f}"
    assert [cell.strip() for cell in rows["model after RL, rl.learning_rate=0.5"]][1] == ends


@pytest.mark.parametrize("members", [1, 2, 3])
def test_few_members_have_no_interval(members):
    population = [{"seed": seed, "values": {}} for seed in range(members)]
    text = told(reporting.results, summary(population, [4.0 + seed for seed in range(members)]))
    assert f"{3.5 + members / 2:+.1f}" in text
    assert " to " not in text.split("model after RL")[1].splitlines()[0]


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


def test_the_end_says_what_to_do_next():
    """Every word is a measurement, or the command's own, and the run's name is as it is."""
    text = told(reporting.next_steps, Path("runs/[x]"))
    words = [line.split("  ")[1].split() for line in text.splitlines() if line.startswith("  uv")]
    assert [word[:4] for word in words] == [["uv", "run", "-m", "analysis"]] * 3
    assert all(word[4] == "list" or (word[4] in REGISTRY and word[5] == "runs/[x]") for word in words)
