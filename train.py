"""Train a population of maze policies: a base of scripted personas, then reinforcement learning.

    uv run train.py                                     pretrain on the personas, then PPO on EmojiMaze-v0
    uv run train.py --scale smoke                       the same in seconds
    uv run train.py --population.sweep rl.learning_rate=3e-4,1e-3
    uv run train.py --resume runs/NAME                  go on where a run stopped, to the bit
    srun uv run train.py                                one program over all processes of the job; see docs/clusters.md

What most people change first:

    --scale smoke|laptop|paper       sizes to start from; laptop takes minutes on 2 CPU cores, paper one large GPU
    --world.name NAME                EmojiMaze-v0, EmojiLabyrinth-v0 or EmojiRooms-v0
    --algorithm NAME                 ppo, grpo, dr_grpo, dapo, reinforce, …; a wrong name lists them
    --population.seeds N             members that differ by their seed alone
    --population.sweep FIELD=A,B     a grid of any numbers, such as rl.learning_rate; all in one compiled program
    --seed N                         of the first member
    --pretrain.updates N             how long the base is pretrained
    --rl.updates N                   how long reinforcement learning goes on
    --rl.learning-rate X             its peak
    --policy.width N                 size of the policy; so are --policy.layers and --policy.heads
    --run-dir DIR                    where the run is written; a fresh name under runs/ by default
    --base RUN                       take the pretrained base of this run
    --track TOOL                     tensorboard, wandb or trackio: watch it there, too

--help-all lists every option. So does --help beside other options, as their choice makes them: a world has options of
its own, and a scale and an algorithm have defaults. Compiled programs are kept in ~/.cache/emojimaze, 1 GiB at most:
JAX_COMPILATION_CACHE_DIR=DIR keeps them elsewhere, JAX_ENABLE_COMPILATION_CACHE=false keeps none.
"""

import contextlib
import dataclasses
import functools
import os
import shlex
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any

from ground import environment

if __name__ == "__main__":
    environment.prepare("train.py", __doc__)

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from rich.console import Console

from agents import runs
from agents.learning import algorithms
from agents.runs import bases, evaluation, memory, reporting, sessions, stages, watching, worlds
from agents.runs import config as configs
from agents.runs.config import Config, ConfigError
from agents.runs.memory import make_train as make_train
from ground import files, processes, signals, terminal


@dataclasses.dataclass(frozen=True)
class Command:
    """Train a population of maze policies."""

    run_dir: Path | None = None
    """Where to write the run; it must not exist. Default: a fresh name under runs/."""
    resume: Path | None = None
    """Go on with the run in this directory; its config is kept, so no other option may be given."""
    base: Path | None = None
    """Take the pretrained base of this run, whose world, policy and pretrain must be the same, and train from there."""
    track: watching.Tool | None = None
    """Show the run in this tool, too, offline if you like; it needs `uv run --extra tracking`, see docs/tracking.md."""
    config: Annotated[Config, tyro.conf.arg(name="")] = Config()


def train(
    config: Config,
    run_dir: str | Path | None = None,
    console: Console | None = None,
    base: str | Path | None = None,
    *,
    evaluate: bool = True,
    figures: bool = True,
    track: watching.Tool | None = None,
) -> runs.Run:
    """Train a population and evaluate it: what the command, the studies and the benchmarks call.

    `train(config)` alone touches no disk: parameters, metrics and summary are those that a run directory would hold.
    `make_train(config)` gives a compiled function of a key instead.

    Args:
        config: what to train.
        run_dir: the run directory to make, such as `runs.fresh_name()`; None keeps the run in memory, without figures.
        console: where to report; silent by default.
        base: a run with the same pretrained base, which is taken from there instead of being trained again.
        evaluate: play the evaluation's mazes; without, the summary holds no returns and no badges.
        figures: draw the learning curve and the replay before and after RL, of what was evaluated.
        track: a tool that shows the run, too.

    Returns:
        The run, with its summary written.

    Raises:
        ConfigError: the config cannot run; nothing was written.
        runs.RunError: the directory is taken or cannot be written.
        signals.Interrupted: a signal came; a checkpoint was written.
        processes.Ended: another process of the job failed, and says why.
    """
    configs.check(config)
    source = bases.open(base, config) if base else None
    if run_dir is None:
        if track or processes.count() > 1:
            raise ConfigError("a run in memory is of one process, and nobody watches it; give a run_dir")
        return _train(memory.Held.of(config), console or Console(quiet=True), source, evaluate, False, None)
    run = runs.create(Path(run_dir), configs.to_dict(config), members=len(config.members))
    return _train(run, console or Console(quiet=True), source, evaluate, figures, track, fresh=True)


def resume(
    run_dir: str | Path,
    console: Console | None = None,
    base: str | Path | None = None,
    *,
    evaluate: bool = True,
    figures: bool = True,
    track: watching.Tool | None = None,
) -> runs.Run:
    """Go on with a run where it stopped; arguments and errors are those of `train`."""
    run = runs.open(run_dir)
    config = run.config  # checked here, before the run is touched
    told: dict[str, Any] = {}
    try:
        told = run.summary() if run.has_summary else {}
    except runs.RunError:  # it is written anew, but for what may be one member of another run: that has no states
        if not (run.path / "checkpoints" / "state").exists():
            raise
    if "taken_from" in told:
        raise runs.RunError(f"{run_dir}: one member of another run has nothing to go on with; resume that run instead")
    source = bases.open(base, config) if base else None
    return _train(run, console or Console(quiet=True), source, evaluate, figures, track)


def _train(
    run: runs.Run,
    console: Console,
    source: runs.Run | None,
    evaluate: bool,
    figures: bool,
    track: watching.Tool | None,
    *,
    fresh: bool = False,
) -> runs.Run:
    with run.locked():
        session = sessions.Session(run.path if run.on_disk else None, begun=not fresh)
        try:
            tool = track if processes.first() else None
            complain = functools.partial(reporting.say, console, style="yellow")
            with watching.watch(tool, run.path, run.document, watching.series_of(run.config), complain) as tracker:
                _train_and_evaluate(run, session, console, source, evaluate, figures, tracker)
        except BaseException as error:
            if not (fresh and isinstance(error, Exception)) or session.trained:
                with contextlib.suppress(runs.RunError):  # the error itself is what matters
                    session.note()
            elif processes.first():
                runs.withdraw(run)
            raise
    return run


def _train_and_evaluate(run, session, console, source, evaluate, figures, tracker) -> None:
    config = run.config
    if source and bases.STAGE not in run.ended():
        bases.adopt(run, source)
    reporting.header(console, config, run.path)
    told = {"not as in the session before": session.changes()}
    if source:
        told[f"{source.path}: not trained as now"] = processes.by_first(lambda: sessions.foreign(source.path))
    for what, changes in told.items():
        if changes:
            reporting.say(console, f"{what}: {', '.join(changes)}", "yellow")
    with signals.catch() as caught:
        _run_stages(run, session, console, caught, tracker)
    begun = time.perf_counter()
    if evaluate:
        reporting.Lines(console).say("evaluating")
    with console.status("evaluating and drawing"):
        before = after = means = None
        with signals.catch(at_once=processes.count() == 1) as caught:
            if evaluate:
                before, after = (run.parameters(name) for name in (config.before_rl, "rl"))
                means = evaluation.means(run, before, after)
            if stopped := processes.meet(caught())[:, 0].max():
                raise signals.Interrupted(int(stopped))
        if processes.first():
            written: list[Path] = []
            with signals.catch(at_once=True):
                summary = _identity(run, config)
                if means is not None:
                    summary |= evaluation.summary(run, before, *means)
                session.evaluation = time.perf_counter() - begun
                summary |= session.speed()
                if evaluate and figures:
                    written = _draw(run, config, summary, before, after)
                run.write_summary(summary)
                tracker.keep("summary", written, files.plain(summary, "summary"))
            if evaluate:
                reporting.results(console, summary)
            if run.on_disk:
                reporting.written(console, [run.path / "summary.json", *written], f"config {run.config_hash}")
        with signals.catch():
            processes.meet()


def _run_stages(
    run: runs.Run,
    session: sessions.Session,
    console: Console,
    caught: Callable[[], int],
    tracker: watching.Tracker,
) -> None:
    """Bring every stage to its end, from wherever the run stands."""
    config = run.config
    stage_of = {name: stages.make_stage(config, name) for name in config.stages}
    saved = run.load_state(lambda name: jax.eval_shape(lambda: stage_of[name].initial(None)))
    if saved and saved.note:
        reporting.say(console, saved.note)
    # Without a state of its own, a run may still hold the base that it has taken from another. A later stage's last
    # parameters are not enough: the state at its end would never be saved.
    done = config.stages[: config.stages.index(saved.stage)] if saved else {bases.STAGE} & set(run.ended())
    if processes.first():
        for name in done:
            run.check_metrics(name, stage_of[name].updates)
        if saved:
            run.check_metrics(saved.stage, saved.update)
    lines = reporting.Lines(console)
    with reporting.progress(console) as bars:
        for name, stage in stage_of.items():
            session.timings[name] = timing = stages.Timing()
            before = stage.updates if name in done else saved.update if saved and saved.stage == name else 0
            speed = "done" if before == stage.updates else "compiling"
            bar = bars.add_task(name, total=stage.updates, completed=before, reward="", speed=speed)
            if name in done:
                continue
            if saved and saved.stage == name:
                state = jax.tree.map(jnp.asarray, saved.tree)
            else:
                earlier = config.stages[: config.stages.index(name)]
                state = stage.initial(run.parameters(earlier[-1]) if earlier else None)
                if name == "pretrain":
                    run.save_parameters("init", jax.tree.map(np.asarray, state.parameters))

            def report(done, metrics, timing, bar=bar, stage=stage, before=before):
                reward = f"{metrics['return'][:, -1].mean():+.1f}"
                speed = reporting.speed(timing.tokens, timing.run_seconds)
                bars.update(bar, completed=done, reward=reward, speed=speed)
                seconds = timing.run_seconds * (stage.updates - done) / (done - before)
                lines.tell(stage.name, done, stage.updates, reward, speed, seconds)
                everyone = {metric: values[stage.rows] for metric, values in metrics.items()}
                tracker.update(stage.name, done - stage.chunk, everyone)
                session.note(now_and_then=True)

            lines.say(f"{name}: compiling")
            tell = functools.partial(reporting.say, bars.console)
            stages.run_stage(run, stage, state, caught, report, timing, tell)


def _identity(run: runs.Run, config: Config) -> dict:
    """What `summary.json` says of who was trained."""
    return {
        "schema": 1,
        "members": run.members,
        "population": [{"seed": member.seed, "values": member.values} for member in config.members],
        "diverged": {run.name_of(member): where for member, where in run.diverged().items()},
        "config_hash": run.config_hash,
    }


def _draw(run: runs.Run, config: Config, summary: dict, before: Any, after: Any) -> list[Path]:
    """A maze replay before and after RL, and the learning curve; returns their paths, none of a run without RL."""
    if not config.rl.updates:
        return []
    from analysis.figures import learning_curve, panels, replays  # late, and matplotlib with them

    found, gif = summary["return"], run.figure("replay.gif")
    replays.before_and_after(config, before, after, found["before_rl"], found["after_rl"], gif)
    baselines = {
        "random": found["random"],
        **found["personas"],
        run.world.planner: found["greedy"],
        "before RL": float(np.mean(found["before_rl"])),
    }
    algorithm = algorithms.ALGORITHMS[config.algorithm].title
    panel = learning_curve.panel(
        run.metric("rl", "return"),
        np.array(found["after_rl"])[run.kept],
        baselines,
        algorithm=algorithm,
        episodes=config.rl.episodes,
        points=run.labels["point"].tolist(),
    )
    title = f"{config.world.name}: {len(run.kept)} members, {algorithm} from a pretrained base"
    figure = panels.draw([panel], title=title, meaning=learning_curve.MEANING, footer=run.caption)
    stem = run.figure("learning_curve")
    picture, *_ = panels.save(figure, stem, [panel], title, learning_curve.MEANING, run.caption)
    return [picture, gif]


SYNONYMS = {
    "--lr": "--rl.learning-rate",
    "--learning-rate": "--rl.learning-rate",
    "--env": "--world.name",
    "--env-id": "--world.name",
    "--world": "--world.name",
    "--algo": "--algorithm",
    "--members": "--population.seeds",
    "--num-seeds": "--population.seeds",
    "--steps": "--rl.updates",
    "--updates": "--rl.updates",
    "--total-timesteps": "--rl.updates",
    "--episodes": "--rl.episodes",
    "--batch-size": "--rl.episodes",
    "--num-envs": "--rl.episodes",
    "--num-minibatches": "--rl.minibatches",
    "--gamma": "--rl.discount",
    "--gae-lambda": "--rl.trace-decay",
    "--clip": "--rl.clip-high",
    "--ent-coef": "--rl.entropy-weight",
    "--vf-coef": "--rl.value-weight",
    "--max-grad-norm": "--rl.max-gradient-norm",
    "--kl-coef": "--rl.reference-weight",
    "--beta": "--rl.reference-weight",
    "--group-size": "--rl.group",
    "--num-generations": "--rl.group",
    "--hidden-size": "--policy.width",
    "--d-model": "--policy.width",
    "--out": "--run-dir",
    "--output-dir": "--run-dir",
    "--model": "--base",
    "--checkpoint": "--resume",
}
"""What other codebases call options → which are meant. A name alone also finds its section, as `--width` does."""


def parse(arguments: Sequence[str]) -> Command:
    """The command line as a `Command`.

    Raises:
        ConfigError: one line that says what is wrong and what would do.
        SystemExit: help was asked for, and printed.
    """
    terminal.explain(__doc__ or "", arguments)
    arguments = ["--help" if argument == "--help-all" else argument for argument in arguments]
    starts = {"--scale": "laptop", "--world.name": "EmojiMaze-v0", "--algorithm": "ppo"}
    for index, argument in enumerate(arguments):
        name, equals, value = argument.partition("=")
        if name in starts:
            starts[name] = value if equals else next(iter(arguments[index + 1 :]), "")
    start = configs.start(*starts.values())
    worlds.check_arguments(start.world.name, arguments)
    board, default = worlds.read_board(arguments), Command(config=start)
    command = terminal.read(Command, board, default=default, synonyms=SYNONYMS)
    given = [name for a in arguments if (name := a.partition("=")[0]).startswith("--") and name != "--track"]
    if command.resume and len(given) > 1:
        raise ConfigError(f"--resume {command.resume}: takes the run's own config; give no other option")
    _check_read(command.config, given)
    return command


def _check_read(config: Config, given: Iterable[str]) -> None:
    """Refuse options that nothing reads, as the others stand; raises ConfigError."""
    reference, imitation = config.rl.reference != "none", config.rl.imitation == "sft"
    for prefixes, is_read, remedy in (
        (("--sft.",), config.sft.updates or imitation, "nobody is fine-tuned; add --sft.updates"),
        (("--rl.reference-weight",), reference, "there is no reference; add --rl.reference loss"),
        (("--rl.imitation-", "--rl.final-imitation-"), imitation, "RL imitates nobody; add --rl.imitation sft"),
    ):
        for name in given:
            if name.replace("_", "-").startswith(prefixes) and name != "--sft.updates" and not is_read:
                raise ConfigError(f"{name}: {remedy}")


def main(arguments: Sequence[str], begin: Callable[[], None] = lambda: None) -> int:
    """Run the command; returns the exit status. `begin` is called before JAX is used."""
    directory: Path | None = None
    try:
        # Several processes are one before they read their options, so that one says what is wrong.
        alone = processes.detect(os.environ) is None
        if not alone:
            begin()
        # Signals that come before `_train` looks after them; several processes must end together, and do so there.
        with signals.catch(at_once=True) if processes.count() == 1 else contextlib.nullcontext():
            command = parse(arguments)
            if alone:
                begin()
            console = terminal.console(markup=True, quiet=not processes.first())
            if not processes.same(" ".join(arguments)):
                raise ConfigError("the processes of this job were given different options; give all of them the same")
            with environment.enough_memory() if processes.count() == 1 else contextlib.nullcontext():
                directory = command.resume or command.run_dir or runs.fresh_name()
                if command.resume:
                    resume(directory, console, track=command.track)
                else:
                    train(command.config, directory, console, command.base, track=command.track)
            reporting.next_steps(console, directory)
    except (ConfigError, runs.RunError, stages.Diverged) as error:
        return _end(1 if isinstance(error, stages.Diverged) else 2, str(error))
    except signals.Interrupted as error:
        begun = directory and (directory / "config.json").exists()
        rest = f"; go on with --resume {shlex.quote(str(directory))}" if begun else " before it began"
        return _end(error.exit_status, f"{error}{rest}")
    except processes.Ended as error:
        return error.exit_status
    except Exception as error:
        if processes.count() == 1:
            raise
        processes.fail(error)
    return 0


def _end(status: int, message: str) -> int:
    """Say why the job ends, once; returns the exit status."""
    try:
        speaks = processes.leave(status)
    except Exception as error:
        processes.fail(error)
    if speaks:
        terminal.complain("train.py", message)
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], functools.partial(environment.start, "train.py", together=True)))
