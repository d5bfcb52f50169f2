"""What a run tells the person at the terminal: what it will do, how far it is, what it found."""

import functools
import math
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
from rich.console import Console
from rich.markup import escape
from rich.panel import Panel
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from agents import policies
from agents.policies import PolicyConfig
from agents.runs.config import Config, Member

# Arithmetic that training sustains per device, measured on cores of an AVX-512 CPU, an H100 and an H200
# (docs/performance.md); a guess elsewhere.
_SUSTAINED_FLOPS = {"cpu": 45e9, "gpu": 10e12, "tpu": 20e12}
_HALF_PRECISION_FLOPS = {"gpu": 65e12}

SECONDS = 30.0
"""Between two lines in a log."""


def parameter_count(config: Config) -> int:
    """Parameters of one member."""
    return _parameter_count(config.policy, config.world.make()[0].vocabulary)


@functools.cache
def _parameter_count(policy: PolicyConfig, vocabulary: int) -> int:
    shapes = jax.eval_shape(lambda: policies.make(policy, vocabulary).init(jax.random.key(0)))
    return sum(leaf.size for leaf in jax.tree.leaves(shapes))


def expected_minutes(config: Config, devices: int, platform: str) -> float:
    """A rough forecast from the operations that training and evaluation need."""
    world, _ = config.world.make()
    members = len(config.members)
    bases, starts = len(config.bases), len(set(config.starts.tolist()))
    pretrain, sft = (world.episode_length(part.trips) for part in (config.pretrain, config.sft))
    tokens = bases * config.pretrain.updates * config.pretrain.episodes * pretrain * 3
    tokens += members * config.sft.updates * config.sft.episodes * sft * 3
    # Playing and scoring cost a forward pass each, and an epoch costs three.
    episodes = members * config.rl.updates * config.rl.episodes * (2 + 3 * config.rl.epochs)
    tokens += (episodes + (members + starts) * config.evaluation_episodes) * world.episode_length()
    speed = _SUSTAINED_FLOPS.get(platform, 1e12)
    if config.policy.compute_dtype == "bfloat16":
        speed = _HALF_PRECISION_FLOPS.get(platform, speed)
    return (2 * parameter_count(config) * tokens / (speed * devices) + 30) / 60


def header(console: Console, config: Config, directory: Any) -> None:
    """Show what is about to run."""
    members, platform, devices = len(config.members), jax.default_backend(), jax.devices()
    minutes = expected_minutes(config, len(devices), platform)
    swept = " × ".join(config.population.sweep)
    grid = f" ({config.population.seeds} seeds × {swept})" if swept else ""
    kind = devices[0].device_kind
    lines = [
        f"[bold]scale[/]      {config.scale}, about {max(minutes, 0.5):.0f} min" if minutes >= 0.75
        else f"[bold]scale[/]      {config.scale}, under a minute",
        f"[bold]world[/]      {config.world.name}, {config.world.make()[0].describe()}",
        f"[bold]members[/]    {members}{grid}",
        f"[bold]parameters[/] {parameter_count(config):,} each, {members * parameter_count(config):,} in all",
        f"[bold]devices[/]    {len(devices)} × {escape(kind)}",
        f"[bold]directory[/]  {escape(str(directory))}",
    ]  # fmt: skip
    console.print(
        Panel(Text.from_markup("\n".join(lines), emoji=False), title="emojimaze", title_align="left", expand=False)
    )


def progress(console: Console) -> Progress:
    """The bars of a run, one per stage."""
    return Progress(
        TextColumn("{task.description:<9}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TextColumn("return {task.fields[reward]:>7}"),
        TextColumn("{task.fields[speed]:>12}"),
        TimeRemainingColumn(),
        console=console,
    )


def say(console: Console, text: str, style: str | None = None) -> None:
    """Print a line, however long, whose names and paths are text and nothing else."""
    console.print(text, style=style, markup=False, emoji=False, highlight=False, soft_wrap=True)


class Lines:
    """What a log is told, of a job or of `nohup`, where a terminal has bars: at most a line every `SECONDS`."""

    def __init__(self, console: Console):
        self._console = console
        self._silent = console.is_terminal or console.is_jupyter
        self._said = -math.inf

    def say(self, text: str) -> None:
        """Print now."""
        if not self._silent:
            say(self._console, text)

    def tell(self, stage: str, done: int, total: int, reward: str, speed: str, seconds: float) -> None:
        """Print how far a stage is and the seconds left in it, unless the last line is too fresh."""
        now = time.monotonic()
        if now - self._said >= SECONDS:
            self._said = now
            self.say(f"{stage}: update {done} of {total}, return {reward}, {speed}, {left(seconds)} left")


def left(seconds: float) -> str:
    """A time in words: seconds, minutes from 2 on, hours from 2 on."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def results(console: Console, summary: Mapping[str, Any]) -> None:
    """Show what the run found: the share of episodes that reach the goal where there is one, and returns."""
    goal = "success" in summary
    if goal:
        console.print(_outcomes(summary, "success", "Episodes that reach the goal", lambda x: f"{100 * x:.1f} %"))
    digits = 2 if goal else 1
    console.print(_outcomes(summary, "return", "Return per episode", lambda x: f"{x:+.{digits}f}"))
    diverged(console, summary["diverged"])
    if told := summary.get("badges"):
        badges = ", ".join(f"{name} {value:.3f}" for name, value in summary["badge_kl"].items())
        console.print(f"KL from persona to model with its badge, nats per action: {badges}")
        each = ", ".join(f"{name} {badge['kl_per_token']:.3f}" for name, badge in told.items())
        if each != badges:  # it thinks, too
            console.print(f"the same with what it thinks, nats per token: {each}")
        console.print(f"KL from base to mixture of its badges, nats per episode: {summary['misfit']:.3f}")
    seconds, speed = summary["seconds"], summary["tokens_per_second"]
    console.print(
        "seconds: " + ", ".join(f"{name} {value:.0f}" for name, value in seconds.items())
        + "; tokens per second: " + ", ".join(f"{name} {value:,.0f}" for name, value in speed.items())
    )  # fmt: skip


def _outcomes(summary: Mapping[str, Any], kind: str, title: str, show: Callable[[float], str]) -> Table:
    found = summary[kind]
    table = Table(title=title, title_justify="left")
    table.add_column("policy")
    table.add_column("mean", justify="right")
    table.add_column("95 % interval over members", justify="right")
    points = found.get("points", [found])
    same = all((one["random"], one["personas"]) == (points[0]["random"], points[0]["personas"]) for one in points)
    for scripts in [found] if same else points:
        table.add_row(_at("random", scripts), show(scripts["random"]), "")
        for name, value in scripts["personas"].items():
            table.add_row(_at(f"{name} (persona)", scripts), show(value), "")
        table.add_row(_at("greedy planner", scripts), show(scripts["greedy"]), "")
    for name, badge in summary.get("badges", {}).items():
        table.add_row(f"base with {name}'s badge", show(badge[kind]), "")
    before, trained = found["before_rl"], found["after_rl"] != found["before_rl"]
    if trained:
        table.add_row("[bold]model before RL[/]", f"[bold]{show(sum(before) / len(before))}[/]", "")
    for label, mean, *interval in after_rl(found, "model after RL" if trained else "model, without RL"):
        shown = "diverged" if mean is None else f"[bold]{show(mean)}[/]"
        table.add_row(f"[bold]{label}[/]", shown, " to ".join(map(show, interval)))
    return table


def after_rl(found: Mapping[str, Any], words: str) -> list[tuple]:
    """What members earn in the end, at each point of the grid where something is swept.

    Args:
        found: outcomes of one kind, as `summary.json` has them.
        words: what to call it.

    Returns:
        The words with the point, the mean over its members or None where all have diverged, and where there is one the
        two ends of its interval.
    """
    finite = [value for value in found["after_rl"] if value is not None]
    whole = {**found, "after_rl": sum(finite) / len(finite) if finite else None}
    points = found.get("points", [whole])
    return [(_at(words, one), one["after_rl"], *(one.get("after_rl_interval") or ())) for one in points]


def _at(words: str, point: Mapping[str, Any]) -> str:
    """The words, and the point of the grid that they are about, if it is one."""
    label = Member(0, point.get("values", {})).label
    return f"{words}, {label}" if label else words


def diverged(console: Console, found: Mapping[str, str]) -> None:
    """Name the members that have diverged."""
    for name, where in found.items():
        console.print(
            f"[red]{escape(name)} diverged in {where}[/]: frozen before it, left out of every number",
            highlight=False,
            emoji=False,
        )


def written(console: Console, paths: Iterable[Path], about: str = "") -> None:
    """Show which files were written, a line each however long, and before them what the numbers are about."""
    if about:
        say(console, about, "dim")
    for path in paths:
        say(console, f"  {path}")


NEXT = {"course RUN": "what training did along the way", "concepts RUN": "what it represents", "list": "what else"}
"""What one may ask of a finished run, as words of `analysis`."""


def next_steps(console: Console, path: Path) -> None:
    """Say what to do with a finished run."""
    console.print("next:", style="dim")
    commands = {f"uv run -m analysis {words}".replace("RUN", str(path)): what for words, what in NEXT.items()}
    width = max(map(len, commands))
    for command, what in commands.items():
        say(console, f"  {command:{width}}  {what}")


def speed(tokens: int, seconds: float) -> str:
    """Tokens per second for a progress bar."""
    return f"{tokens / max(seconds, 1e-9) / 1000:,.0f} k tok/s"
