"""`uv run -m analysis steer RUN`: what pushing along the reward axis does, or removing it, beside every control."""

import dataclasses
from pathlib import Path
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from agents.runs import reporting
from agents.runs.config import Config, ConfigError
from analysis import extraction, findings, populations, steering, steering_figures, subject
from analysis.figures import learning_curve
from analysis.subject import Subject
from envs import tokens
from ground import seeds, statistics


@dataclasses.dataclass(frozen=True)
class Command:
    """Steer a run's policies along their reward axis, and remove it, against norm-matched controls."""

    run: Annotated[Path, tyro.conf.Positional]
    """The run directory; it needs the checkpoints at the end of its stages."""
    strengths: tuple[float, ...] = steering.STRENGTHS
    """In units of half the distance between the class means of Mold and Gold."""
    extraction_episodes: int = extraction.EPISODES
    """Episodes of the extraction set; a multiple of 12."""
    episodes: int = 32
    """Own episodes of each member in which its choices are asked for."""
    play_episodes: int = 128
    """Episodes behind each return; the same mazes for every direction, strength and member."""
    seed: int = 0
    """Of everything random; the same seed as `concepts` gives the same vectors."""
    figures: bool = True
    """Draw figures beside the numbers."""


def run(command: Command, console: Console) -> None:
    """Run the command."""
    _check(command)
    opened = subject.open(command.run)
    settings = _settings(opened.config)
    arms = findings.arms(opened.config)
    after, before = (opened.parameters(arm(arms)[1]) for arm in (findings.effect, findings.before))
    with Progress(console=console, transient=True) as progress:
        bar = progress.add_task("drawing episodes", total=2 + len(settings))

        def tell(what: str) -> None:
            progress.update(bar, advance=1, description=what)

        episodes = command.extraction_episodes
        sets = findings.draw_sets(opened, episodes, command.seed)
        tell("extracting concepts")
        found, own = _concepts(opened, after, before, sets)
        name_key, play_key = jax.random.split(seeds.held_out("steering", command.seed))
        directions = steering.named_directions(
            jax.tree.map(jnp.asarray, after), found, own, opened.params.tile_map, name_key
        )
        named = jax.tree.map(np.asarray, directions)
        results = {}
        for setting, (trained, other) in settings.items():
            tell(f"steering: {setting}")
            steered = steering.steer(
                opened.policy,
                after if trained else before,
                opened.world,
                _world(opened, other),
                named,
                found.axis_layer,
                play_key,
                command.strengths,
                command.episodes,
                command.play_episodes,
            )
            results[setting] = jax.tree.map(np.asarray, steered)

    document = _document(opened, command, results, np.asarray(found.axis_layer))
    written = opened.write("steer", document, _rows(results, command.strengths))
    if command.figures:
        written += steering_figures.draw(opened.run.figure("steer"), results, command.strengths, opened.caption)
    console.print(table(document))
    reporting.written(console, [path for path in written if path.suffix in (".json", ".png")], opened.caption)


def _settings(config: Config) -> dict[str, tuple[bool, bool]]:
    """Who is steered where: whether it is the trained policy, and whether unseen emoji stand for the tiles.

    The trained policy in its own world and among three emoji that it has never seen, and the model before. The
    directions are those of the trained policy.
    """
    arms = findings.arms(config)
    after, before = findings.effect(arms)[0], findings.before(arms)[0]
    found = {after: (True, False), f"{after}, other emoji": (True, True)}
    return found if before == after else found | {before: (False, False)}


def _check(command: Command) -> None:
    findings.check_episodes("extraction-episodes", command.extraction_episodes)
    for name in ("episodes", "play_episodes"):
        if getattr(command, name) < 1:
            raise ConfigError(f"--{name.replace('_', '-')}={getattr(command, name)}: use at least 1")
    if not np.all(np.isfinite(command.strengths)) or 0.0 not in command.strengths or len(command.strengths) < 3:
        raise ConfigError(f"--strengths={list(command.strengths)}: give at least three numbers, 0 among them")


def _concepts(opened: Subject, after, before, sets: findings.Sets):
    """Concepts of the members and of the model before RL, as many of one as of the other."""
    bases = 1 if not opened.config.starts.any() else opened.members
    parameters = populations.stack(after, jax.tree.map(lambda x: x[:bases], before))
    maps = jnp.concatenate([opened.params.tile_map, opened.params.tile_map[:bases]])
    both = populations.extract(
        opened.policy, parameters, opened.world, maps, sets.training, sets.held_out, sets.written, sets.key, 1
    )
    both = jax.tree.map(np.asarray, both)  # to the host: a part of what is spread over devices would stay on some
    found = jax.tree.map(lambda x: x[: opened.members], both)
    own = jax.tree.map(lambda x: x[opened.members :], both)
    return found, findings.repeat(own, opened.members)


def _world(opened: Subject, other: bool) -> Any:
    """The members' world parameters, with their own emoji or others."""
    params = opened.params
    if not other:
        return params
    others = jnp.array(tokens.UNSEEN_TILES[:3], jnp.int32)
    return dataclasses.replace(params, tile_map=params.tile_map.at[:, :3].set(others[None]))


def _document(opened: Subject, command: Command, results, layer: np.ndarray) -> dict[str, Any]:
    return {
        "source": "arXiv 2605.30232, section on steering",
        "run": str(opened.run.path),
        "strengths": list(command.strengths),
        "unit": "half the distance between the class means of Mold and Gold",
        "layer": layer + 1,
        "episodes": command.episodes,
        "play_episodes": command.play_episodes,
        "seed": command.seed,
        "settings": {setting: _setting(steered, command.strengths) for setting, steered in results.items()},
    }


def _setting(steered: steering.Steered, strengths: tuple[float, ...]) -> dict[str, Any]:
    """What steering and ablation did in one setting: values by strength, and p against random directions."""
    low, high = int(np.argmin(strengths)), int(np.argmax(strengths))
    document: dict[str, Any] = {
        "unsteered": {
            **{effect: findings.estimate(steered.plain[:, index]) for index, effect in enumerate(steering.EFFECTS)},
            "return": findings.estimate(steered.plain_return),
        }
    }
    for kind in ("steering", "ablation"):
        document[kind] = {}
    for effect in _TITLES:
        pushed, removed = steering_figures.values(steered, effect)
        null_push, null_removal = pushed["random"].mean(axis=0), removed["random"].mean(axis=0)
        swing_null = null_push[:, high] - null_push[:, low]
        for name in pushed:
            many = name == "random"
            values = pushed[name].mean(axis=1) if many else pushed[name][:, 0]
            swing = values[:, high] - values[:, low]
            gone = removed[name].mean(axis=1) if many else removed[name][:, 0]
            entry: dict[str, Any] = {"by_strength": values.mean(axis=0), "swing": findings.estimate(swing)}
            ablated: dict[str, Any] = {"value": findings.estimate(gone)}
            if many:
                sizes = np.abs(pushed[name][..., high] - pushed[name][..., low])
                entry["quantile_97.5_size"] = findings.estimate(np.quantile(sizes, 0.975, axis=1))
            else:
                entry["p"] = float(statistics.permutation_p_value(swing.mean(), swing_null))
                ablated["p"] = float(statistics.permutation_p_value(gone.mean(), null_removal))
            document["steering"].setdefault(name, {})[effect] = entry
            document["ablation"].setdefault(name, {})[effect] = ablated
    return document


def _rows(results, strengths: tuple[float, ...]) -> dict[str, list]:
    """One row per setting, direction, its number, member and strength; NaN as the strength means ablation."""
    columns = ("setting", "direction", "number", "member", "strength", *steering.EFFECTS, "return")
    rows: dict[str, list] = {name: [] for name in columns}
    for setting, steered in results.items():
        measures = [steering_figures.values(steered, effect) for effect in _TITLES]
        for name, pushed in steered.effects.items():
            for member, number in np.ndindex(pushed.shape[:2]):
                for index, strength in enumerate((*strengths, float("nan"))):
                    values = []
                    for push, removed in measures:
                        cells = np.concatenate([push[name], removed[name][..., None]], axis=-1)[member]
                        values.append(float(cells[number, index]) if number < len(cells) else float("nan"))
                    for column, value in zip(columns, (setting, name, number, member, strength, *values), strict=True):
                        rows[column].append(value)
    return rows


_TITLES = {"enter_gold": "P(enter Gold)", "enter_mold": "P(enter Mold)", "entropy": "entropy, nats", "return": "return"}


_SHOWN = ("axis", "gold", "mold", "axis before", "axis without emoji", "axis without value head", "path", "random")


def table(document: dict[str, Any]) -> Table:
    """What a person reads at the terminal: how behaviour changes from the lowest to the highest strength."""
    ends = document["strengths"]
    made = Table(
        title=f"Steering from {min(ends):+g} to {max(ends):+g}: change of behaviour [dim](p against random)[/]",
        title_justify="left",
    )
    made.add_column("")
    for title in _TITLES.values():
        made.add_column(title, justify="right")
    for setting, part in document["settings"].items():
        plain = part["unsteered"]
        made.add_row(f"[bold]{setting}[/], unsteered", *(f"{plain[effect]['mean']:.2f}" for effect in _TITLES))
        for name in _SHOWN:
            effects = part["steering"][name]
            cells = []
            for effect in _TITLES:
                note = f" [dim]({effects[effect]['p']:.2f})[/]" if "p" in effects[effect] else ""
                digits = 0 if effect == "return" else 2
                cells.append(learning_curve.signed(effects[effect]["swing"]["mean"], f"+.{digits}f") + note)
            made.add_row(f"  {name}" + (", mean" if name == "random" else ""), *cells)
        for name in ("axis", "random"):
            gone = part["ablation"][name]
            cells = (f"{gone[effect]['value']['mean']:.2f}" for effect in _TITLES)
            made.add_row(f"  {name} removed", *cells, end_section=name == "random")
    made.caption = (
        f"Returns are of {document['play_episodes']} mazes, the same under every condition: compare within a setting."
    )
    made.caption_justify = "left"
    return made
