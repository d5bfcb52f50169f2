"""`uv run -m analysis concepts RUN`: the representation of reward, before and after RL, with every control."""

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
from agents.runs.config import ConfigError
from analysis import concept_figures, concepts, directions, extraction, findings, populations, subject
from analysis.figures import learning_curve
from analysis.findings import Arm
from analysis.subject import Subject
from envs import tokens


@dataclasses.dataclass(frozen=True)
class Command:
    """Extract the concept vectors of Gold and Mold (arXiv 2605.30232) and test them against their controls."""

    run: Annotated[Path, tyro.conf.Positional]
    """The run directory; it needs its checkpoint init and those at the end of its stages."""
    against: tuple[Path, ...] = ()
    """Control runs, such as one with --rl.shuffle-rewards or one with --population.tile-maps permuted: a row each."""
    episodes: int = extraction.EPISODES
    """Episodes of the extraction set; a multiple of 12."""
    play_episodes: int = 512
    """Episodes of each policy's own play, for goal tracking."""
    permutations: int = 200
    """Permutations of the class labels; the smallest p is 1 / (this + 1)."""
    seed: int = 0
    """Of the extraction set and everything random."""
    figures: bool = True
    """Draw figures beside the numbers."""


def run(command: Command, console: Console) -> None:
    """Run the command."""
    _check(command)
    opened = subject.open(command.run)
    others = {path: subject.open(path) for path in command.against}
    names = _names(command.against)
    # Before any work: what is missing is said at once.
    checkpoints = {arm: opened.parameters(name) for arm, name in findings.arms(opened.config).items()}
    controls = {
        path: {
            arm: other.parameters(name)
            for arm, name in findings.arms(other.config).items()
            if arm != findings.UNTRAINED
        }
        for path, other in others.items()
    }
    between = [name for name in opened.run.checkpoints() if name.startswith("rl-")]
    with Progress(console=console, transient=True) as progress:
        bar = progress.add_task("drawing episodes", total=1 + len(checkpoints) + 2 * len(controls) + len(between))

        def tell(what: str) -> None:
            progress.update(bar, advance=1, description=what)

        sets = findings.draw_sets(opened, command.episodes, command.seed)
        arms = _arms(opened, checkpoints, sets, command, tell)
        against = {
            names[path]: _arms(others[path], parameters, _sets(others[path], sets, opened, command), command, tell)
            for path, parameters in controls.items()
        }
        course = _rotation(opened, between, arms, sets, command, tell)

    document = _document(opened, command, arms, against, course)
    written = opened.write("concepts", document, _rows(arms, against))
    if command.figures:
        stem = opened.run.figure("concepts")
        written += concept_figures.draw(stem, arms, against, course, _returns(opened), opened.caption)
    for table in tables(document):
        console.print(table)
    reporting.written(console, [path for path in written if path.suffix in (".json", ".png")], opened.caption)


def _check(command: Command) -> None:
    findings.check_episodes("episodes", command.episodes)
    if command.play_episodes < 16:
        raise ConfigError(f"--play-episodes={command.play_episodes}: use at least 16")
    if command.permutations < 1:
        raise ConfigError(f"--permutations={command.permutations}: use at least 1")


def _names(paths: tuple[Path, ...]) -> dict[Path, str]:
    """A name for every control run: its folder's, as long as that tells them apart."""
    short = [path.resolve().name for path in paths]
    return {path: name if short.count(name) == 1 else str(path) for path, name in zip(paths, short, strict=True)}


def _sets(other: Subject, sets: findings.Sets, opened: Subject, command: Command) -> findings.Sets:
    """The same episodes where a control run has the same world; its own otherwise."""
    if other.world == opened.world and other.config.world == opened.config.world:
        return sets
    return findings.draw_sets(other, command.episodes, command.seed)


def _arms(opened: Subject, checkpoints, sets, command: Command, tell) -> dict[str, Arm]:
    """Every arm of a run; the effect last, since the vectors of what was before are tried in it."""
    arms: dict[str, Arm] = {}
    effect, (start, _) = findings.effect(checkpoints)[0], findings.before(checkpoints)
    for name in sorted(checkpoints, key=lambda name: name == effect):
        tell(f"{opened.run.path.name}: {name}")
        before, parameters = None, checkpoints[name]
        if name != effect:
            parameters = jax.tree.map(
                lambda x: x[: 1 if not opened.config.starts.any() else opened.members], parameters
            )
        elif start != effect:
            before = findings.repeat(arms[start].found, opened.members)
        arms[name] = findings.look(opened, name, parameters, sets, before, command.play_episodes, command.permutations)
    return {name: arms[name] for name in checkpoints}


def _rotation(opened: Subject, between, arms, sets, command: Command, tell) -> dict[str, np.ndarray]:
    """How the axis turns during RL: cosines with its end and between Gold and Mold, at the end's layer, [points, M]."""
    after, before = findings.effect(arms)[1], findings.before(arms)[1]
    updates, means = [0], [np.asarray(findings.repeat(before.found, opened.members).means)]
    for name in between:
        tell(f"{opened.run.path.name}: {name}")
        at = (opened.policy, opened.parameters(name), opened.world, opened.params.tile_map)
        updates.append(int(name.partition("-")[2]))
        means.append(np.asarray(populations.extract_means(*at, sets.held_out, sets.written)))
    updates.append(opened.config.rl.updates)
    points = jnp.asarray(np.stack([*means, after.found.means]))
    axes = [after.at_layer(jnp.moveaxis(directions.reward_axis(jax.vmap(concepts.vectors)(x)), 1, -1)) for x in points]
    return {
        "update": np.array(updates),
        "cosine_with_end": np.stack([np.asarray(concepts.cosine(axis, axes[-1])) for axis in axes]),
        "norm": np.stack([np.linalg.norm(axis, axis=-1) for axis in axes]),
        "opposition": np.stack([after.at_layer(jax.vmap(concepts.opposition)(x)[:, 0]) for x in points]),
    }


def _returns(opened: Subject) -> tuple[np.ndarray, np.ndarray] | None:
    """Updates int[U] and the members' mean returns float[U, M] during RL; None where there was none."""
    if not opened.config.rl.updates:
        return None
    return opened.metric("rl", "update")[:, 0].astype(np.int64) + 1, opened.metric("rl", "return")


def _document(opened: Subject, command: Command, arms, against, course) -> dict[str, Any]:
    lens = findings.effect(arms)[1].lens[:, -1]
    return {
        "source": "arXiv 2605.30232, appendices C and L",
        "run": str(opened.run.path),
        "extraction": {
            "episodes": command.episodes,
            "held_out": findings.held_out(command.episodes),
            "play_episodes": command.play_episodes,
            "seed": command.seed,
        },
        "layers": list(extraction.blocks(opened.policy)),
        "random_directions": len(next(iter(arms.values())).tracked.tracking["random"].d[0]),
        "arms": {name: findings.summarise(arm) for name, arm in arms.items()},
        "controls": {
            run: {name: findings.summarise(arm) for name, arm in parts.items()} for run, parts in against.items()
        },
        "rotation": course,
        "logit_lens_last_layer": {emoji: lens[:, token].mean() for token, emoji in enumerate(tokens.VOCABULARY)},
    }


def _rows(arms, against) -> dict[str, list]:
    """One row per run, arm, member, layer and concept, with its vector."""
    rows: dict[str, list] = {name: [] for name in ("run", "arm", "member", "layer", "concept", "vector")}
    rows |= {name: [] for name in ("norm", "auroc", "d", "overlap", "cosine_gold_mold")}
    for run_name, parts in {"": arms, **against}.items():
        for arm in parts.values():
            found = arm.found
            for member, role, index in np.ndindex(found.auroc.shape):
                values = (
                    run_name, arm.name, member, index + 1, tokens.ROLES[role].lower(),
                    found.vectors[member, role, index], float(np.linalg.norm(found.vectors[member, role, index])),
                    *(float(x[member, role, index]) for x in (found.auroc, found.d, found.overlap)),
                    float(found.opposition[member, 0, index]),
                )  # fmt: skip
                for column, value in zip(rows.values(), values, strict=True):
                    column.append(value)
    return rows


def tables(document: dict[str, Any]) -> list[Table]:
    """What a person reads at the terminal."""
    arms = dict(document["arms"])
    for name, parts in document["controls"].items():
        arms |= {f"{name}:\n{arm}": part for arm, part in parts.items()}
    first = Table(title="Gold against Mold: cosine of the two concept vectors", title_justify="left")
    headers = ("least of\nlayers", "rule's\nlayer", "mean of\nlayers", "Path as\nreference", "Path's\nplace")
    for column in ("", *headers, "p, dealt\nlabels"):
        first.add_column(column, justify="right" if column else "left")
    for name, part in arms.items():
        rest, path = part["cosine"]["other_classes"], part["cosine"]["path"]
        cells = [show(rest[key]) for key in ("minimum_over_layers", "at_rule_layer", "mean_over_layers")]
        p = float(np.median(rest["permuted_labels"]["p_members"]))
        first.add_row(name, *cells, show(path["at_rule_layer"]), show(part["path_place"]), f"{p:.3f}")
    first.add_row("[dim]null: unrelated[/]", "", "[dim]−0.50[/]", "", "[dim]+0.50[/]", "", "")
    first.caption = "Path's place: −1 with Mold, 0 half-way, +1 with Gold. p: of the median member."
    first.caption_justify = "left"

    second = Table(
        title="Does the axis foretell what the policy's own next tile pays? Cohen's d, Gold against Mold",
        title_justify="left",
    )
    for column in ("", "at the\nmove", "among\nequal moves", "before\nchoosing", "rest of\nthe episode"):
        second.add_column(column, justify="right" if column else "left")
    sites = ("move_next", "move_next_same_move", "view_next_same_move", "move_rest")
    for name, part in arms.items():
        second.add_row(name, *(show(part["goal_tracking"]["axis"][site]["d"]) for site in sites))
    effect, part = findings.effect(document["arms"])
    after = part["goal_tracking"]
    for name in ("axis before", "path", "axis without emoji", "axis without value head"):
        second.add_row(f"{effect}, {name}", *(show(after[name][site]["d"]) for site in sites))
    for name in ("random", "orthogonal"):
        spread = (f"|d| < {after[name][site]['quantile_97.5_size']:.2f}" for site in sites)
        second.add_row(f"{effect}, {after[name][sites[0]]['directions']} {name}", *spread)

    third = Table(title="Cosine of the axis with the narrator's 😀 − 😞, and between members", title_justify="left")
    for column in ("", "heard", "foretold", "said", "members,\nsame tiles", "members,\nother tiles"):
        third.add_column(column, justify="right" if column else "left")
    for name, part in arms.items():
        pairs = part["axis_agreement"] or {}
        agree = [f"{pairs[kind]['mean']:+.2f}" if kind in pairs else "" for kind in ("same_tiles", "other_tiles")]
        third.add_row(name, *(show(part["narrator_cosine"][way]) for way in ("heard", "foretold", "said")), *agree)
    return [first, second, third]


def show(estimate: dict[str, Any]) -> str:
    """A mean and its interval."""
    text = learning_curve.signed(estimate["mean"], "+.2f")
    if estimate["interval"] is None:
        return text
    low, high = (learning_curve.signed(end, "+.2f") for end in estimate["interval"])
    return f"{text}\n[dim]{low} {high}[/]"
