"""`personas`: does a model know its personas, and does it infer from its own history which of them it is?"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tyro
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from agents.runs import reporting
from agents.runs.config import ConfigError
from analysis import inference, passes, persona_figures, subject
from analysis.inference import Beliefs
from analysis.subject import Subject
from envs import personas
from ground import statistics

NAME = "personas"
"""Of the files written."""
LIMIT = 65_536
"""Most episodes."""
RESAMPLES = 200
"""Of the mazes, where one member stands for all."""
BADGES = ("none", *personas.PERSONAS)
"""What a badge says, in the order of `envs.tokens.BADGES`."""

_CURVES = ("ideal", "implied", "benchmark")


@dataclasses.dataclass(frozen=True)
class Command:
    """Ask whether a model keeps its personas apart by their badges, and by its own history where no badge is shown."""

    run: tyro.conf.Positional[Path]
    """Run directory."""
    checkpoint: str = "pretrain"
    """Whom to ask."""
    episodes: int = 512
    """Held-out mazes that each persona plays, the same for everyone."""
    against: str | None = None
    """A second checkpoint to put beside it."""
    figures: bool = True
    """Draw figures beside the numbers."""


def run(command: Command, console: Console) -> None:
    """Play, read, print, write.

    Raises:
        ConfigError, RunError: an option or the run is wrong; nothing was written.
    """
    if not 1 <= command.episodes <= LIMIT:
        raise ConfigError(f"--episodes={command.episodes}: use 1 to {LIMIT}")
    if command.against == command.checkpoint:
        raise ConfigError(f"--against {command.against}: the checkpoint itself; name another")
    opened = subject.open(command.run)
    names = [name for name in (command.checkpoint, command.against) if name is not None]
    parameters = {name: opened.parameters(name) for name in names}
    found = {}
    with Progress(console=console, transient=True) as progress:
        bar = progress.add_task("", total=len(names))
        for name in names:
            progress.update(bar, description=f"playing, and reading as {name}")
            found[name] = _measure(opened, command, parameters[name])
            progress.advance(bar)
    with console.status("estimating"):
        document = _document(opened, command, found)
        paths = opened.write(NAME, document, _rows(opened, found))
        paths += _draw(opened, command, document) if command.figures else []
    _print(console, document)
    reporting.written(console, paths, opened.caption)


def _measure(opened: Subject, command: Command, parameters: Any) -> tuple[Beliefs, Any]:
    """Beliefs of all members, or of the first where all are alike, who is resampled instead; on the host."""
    alike = not opened.config.starts.any() and all(bool((x == x[:1]).all()) for x in jax.tree.leaves(parameters))
    count = 1 if alike else opened.members
    first = jax.tree.map(lambda x: x[:count], (parameters, opened.params, opened.config.per_member("pretrain")))
    counts = None
    if count == 1:
        shares = np.full(command.episodes, 1 / command.episodes)
        counts = np.random.default_rng(0).multinomial(command.episodes, shares, RESAMPLES).astype(np.float32)
    parameters, params, shown = first
    measured = inference.measure(opened.policy, parameters, opened.world, params, shown, command.episodes, counts)
    return jax.tree.map(np.asarray, measured)


def _estimate(opened: Subject, beliefs: Beliefs, resampled: Any) -> dict[str, Any]:
    """What the document says of one checkpoint: means over members, and 95 % intervals."""
    alone = resampled is not None
    labels = [member.label for member in opened.config.members]
    strata = np.unique(labels, return_inverse=True)[1]

    def over_members(values: np.ndarray) -> dict[str, Any]:
        ends = (None, None)
        if not alone:
            ends = statistics.bootstrap_interval(values, axis=0, statistic=np.mean, strata=strata)
        return {"mean": values.mean(axis=0), "low": ends[0], "high": ends[1]}

    estimate: dict[str, Any] = {
        "analysed": len(beliefs.ideal),
        "intervals": "over mazes" if alone else "over members",
        "badge_kl": over_members(np.asarray(beliefs.badges)),
        "nats": over_members(np.asarray(beliefs.nats)),
        "episodes": beliefs.episodes.mean(axis=0),
        **{name: over_members(getattr(beliefs, name)) for name in _CURVES},
    }
    if alone:
        for name, values in zip(("ideal", "implied"), resampled, strict=True):
            low, high = np.quantile(values[0], [0.025, 0.975], axis=0)
            estimate[name] |= {"low": low, "high": high}
    return estimate


def _document(opened: Subject, command: Command, found: Mapping[str, tuple[Beliefs, Any]]) -> dict[str, Any]:
    """What personas.json holds."""
    return {
        "source": "arXiv 2111.02080",
        "run": str(opened.run.path),
        **{name: getattr(command, name) for name in ("checkpoint", "against", "episodes")},
        "personas": list(personas.PERSONAS),
        "badges": list(BADGES),
        "population": [{"seed": member.seed, "values": member.values} for member in opened.config.members],
        "checkpoints": {name: _estimate(opened, *measured) for name, measured in found.items()},
        "meanings": {
            "badge_kl": "persona × badge: mean KL(persona ‖ model with the badge), nats per action",
            "ideal": "true persona × turn × persona: mean posterior before the turn, from exact probabilities, "
            "prior uniform",
            "implied": "the same: mixture of personas that explains the model's actions under the null badge best",
            "benchmark": "implied weights of the ideal observer; where they differ from `ideal`, the method does that",
            "nats": "true persona × (model, observer who always believes the prior): mean KL from the ideal "
            "observer's actions, nats per action",
            "episodes": "true persona × turn: how many episodes came so far, mean over members",
            "caveat": "where personas act alike the weights are not identified and stay near the prior, 1/3",
        },
    }


def _rows(opened: Subject, found: Mapping[str, tuple[Beliefs, Any]]) -> dict[str, list]:
    """A row per checkpoint, member, true persona, turn and persona; member is null where one stands for all."""
    rows = []
    for checkpoint, (beliefs, resampled) in found.items():
        for index, true, turn, candidate in np.ndindex(beliefs.implied.shape):
            member = opened.config.members[index]
            values = member.values if resampled is None else dict.fromkeys(member.values)
            rows.append(
                {
                    "checkpoint": checkpoint,
                    "member": None if resampled is not None else index,
                    "seed": None if resampled is not None else member.seed,
                    **values,
                    "true": BADGES[1 + true],
                    "turn": turn + 1,
                    "persona": BADGES[1 + candidate],
                    **{name: float(getattr(beliefs, name)[index, true, turn, candidate]) for name in _CURVES},
                    "episodes": int(beliefs.episodes[index, true, turn]),
                }
            )
    return {key: [row[key] for row in rows] for key in rows[0]}


def _draw(opened: Subject, command: Command, document: Mapping[str, Any]) -> list[Path]:
    own = document["checkpoints"][command.checkpoint]
    whose = f"{own['analysed']} members" if own["analysed"] > 1 else "one model"
    meaning = (
        f"A persona plays without a badge. What mixture of personas would act like the model ({command.checkpoint}, "
        f"{whose}) that reads its history?  Bands: 95 % interval {own['intervals']}, "
        f"{command.episodes} episodes of each persona."
    )
    return persona_figures.draw(
        opened.run.figure(NAME), command.checkpoint, own, command.against,
        document["checkpoints"].get(command.against),
        f"{opened.world.name}: does the model infer who it is?", meaning,
        opened.caption,
    )  # fmt: skip


def _print(console: Console, document: Mapping[str, Any]) -> None:
    names = document["personas"]
    for checkpoint, found in document["checkpoints"].items():
        table = Table(title=f"{checkpoint}: KL from persona to model, nats per action", title_justify="left")
        for name in ("persona", "no badge", *(f"{name}'s badge" for name in names)):
            table.add_column(name, justify="left" if name == "persona" else "right")
        for index, (name, row) in enumerate(zip(names, found["badge_kl"]["mean"], strict=True)):
            cells = [f"[bold]{x:.3f}[/]" if place == index + 1 else f"{x:.3f}" for place, x in enumerate(row)]
            table.add_row(name, *cells)
        console.print(table)
        # pass@k's powers of 2 are as good a choice of turns: what is inferred is inferred early.
        turns = passes.powers(found["implied"]["mean"].shape[1])
        title = f"{checkpoint}: belief in who plays, no badge, % at a turn: model / ideal observer"
        table = Table(title=title, title_justify="left")
        for name in ("persona", *(str(turn) for turn in turns)):
            table.add_column(name, justify="left" if name == "persona" else "right")
        for index, name in enumerate(names):
            pairs = [[found[of]["mean"][index, turn - 1, index] for of in ("implied", "ideal")] for turn in turns]
            table.add_row(name, *(f"{100 * model:.0f} / {100 * ideal:.0f}" for model, ideal in pairs))
        console.print(table)
        off = np.nanmax(np.abs(found["benchmark"]["mean"] - found["ideal"]["mean"]))
        apart = ", ".join(
            f"{name} {x[0]:.3f} ({x[1]:.3f})" for name, x in zip(names, found["nats"]["mean"], strict=True)
        )
        console.print(
            f"KL from the ideal observer to the model, nats per action (to one who infers nothing): {apart}; the ideal "
            f"observer's own implied weights are up to {off:.2f} off its posterior",
            highlight=False,
        )
