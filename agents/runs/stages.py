"""Running the stages of a run: compiled chunks on the device, and between them metrics, checkpoints and signals."""

import contextlib
import dataclasses
import functools
import math
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from agents import runs
from agents.learning import imitation, learner, population, rl, rollout
from agents.policies import Parameters, Policy
from agents.runs.config import Config
from ground import processes, seeds, signals

PASS = 2**18
"""Tokens of one forward and backward pass of all members that an accelerator computes at once, at most."""

LONG = {"pretrain": (160, 4), "sft": (160, 4), "rl": (256, 8)}
"""From so many tokens on a CPU reads so many episodes in one pass and not 16, so that they stay in its cache; of RL
more, since those of one group read their prompt once."""


class Diverged(Exception):
    """Training has no finite member left."""


@dataclasses.dataclass
class Timing:
    """Seconds and tokens of a stage, as far as this process ran it."""

    compile_seconds: float = 0.0
    run_seconds: float = 0.0
    tokens: int = 0


@dataclasses.dataclass(frozen=True)
class Stage:
    """A stage of a run, ready to be compiled."""

    name: str
    updates: int
    chunk: int
    members: int
    """Policies that it trains; as many as there are bases where it makes those."""
    rows: np.ndarray
    """int[M], the policy that each member of the run gets from this stage; several get one where they share a base."""
    of_a_pass: Callable[[int, int], int]
    """Members that a device computes at once, 0 for all, and portions of a pass → episodes of each in one, at most."""
    tokens_per_update: int
    """Tokens that one update reads, of all members."""
    update: Callable[[int, int], learner.Update]
    """Members that a device computes at once, 0 for all, and the portions of a pass → what it does to one of them."""
    program: population.Chunk
    arguments: tuple[Any, Any]
    """Config and world parameters per member."""
    initial: Callable[[Any], learner.TrainState]
    """Parameters before the stage, or None → state of all members before the first update."""
    begin: Callable[[Any, jax.Array], learner.TrainState]
    """Parameters of one member before the stage, and its key → its state before the first update."""
    salt: int
    """Of the keys that it draws; see `seeds.training`."""

    @property
    def microbatch(self) -> int:
        """Episodes of a member in one forward and backward pass of its program, at most."""
        return self.of_a_pass(self.program.at_once, self.program.portions)

    def of_members(self, trained: Any) -> Any:
        """What the stage has trained, laid out by the members of the run; a single policy stays one, for all."""
        return jax.tree.map(lambda x: x if len(x) == 1 else x[self.rows], trained)


def make_stage(config: Config, name: str, mesh: Mesh | None = None, members: int | None = None) -> Stage:
    """A stage of a run by name, on the mesh that suits it best unless one is given.

    Args:
        config, name: of the run, and of one of its stages.
        mesh: from `population.mesh`.
        members: train only the first ones of the stage; all by default. As many devices share a member's episodes as
            in the stage of all members.
    """
    policy, (world, _) = config.make_policy(), config.world.make()
    salt, keeps_start, stale, length = 0, False, 0, world.episode_length()
    part: Any = getattr(config, name)
    episodes = part.episodes
    everyone, rows = config.members, np.arange(len(config.members))
    if name == "pretrain":
        everyone, rows, salt = config.bases, config.base_of, part.seed
    elif name == "sft":
        keeps_start = part.source == "successes"
    else:
        keeps_start, stale = part.reference != "none", part.staleness
        episodes //= part.minibatches
        if part.imitation == "sft":
            episodes = math.gcd(episodes, config.sft.episodes // part.minibatches)
    if name != "rl":
        length = world.episode_length(part.trips)
    trained = everyone[:members]
    mesh = mesh or population.mesh(len(everyone), episodes)
    if mesh.shape["member"] > 1:
        mesh = Mesh(mesh.devices[: math.gcd(len(trained), mesh.shape["member"])], mesh.axis_names)
    accelerated = not population.on_cpu(mesh)
    policy = dataclasses.replace(policy, sparing=accelerated)
    here = len(trained) // mesh.shape["member"]
    least, fewer = LONG[name]
    few = fewer if length >= least else 16

    def of_a_pass(at_once: int, portions: int) -> int:
        chosen = side_by_side(min(at_once or here, here) * portions, length) if accelerated else few
        return config.population.microbatch or chosen

    def update(at_once: int, portions: int) -> learner.Update:
        microbatch = of_a_pass(at_once, portions)
        if name == "rl":
            playing = 0 if accelerated else rollout.AT_ONCE
            return rl.update_function(policy, world, microbatch, config.sft, playing)
        return imitation.update_function(policy, world, microbatch)

    large = 0
    if name == "rl":  # what those who play remember
        cache = jax.eval_shape(lambda: policy.empty_cache(part.episodes // mesh.shape["episode"], length - 1))
        large = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(cache))
    program = population.Chunk(update, mesh, part.chunk, config.population.at_once, large)
    if name == "pretrain":
        arguments = (config.per_member(name, trained), config.world_params(trained))
    else:
        arguments = jax.tree.map(lambda x: x[:members], (config.per_member(name), config.world_params()))
    drawn = [member.seed for member in trained]
    keys = seeds.training(drawn, name, salt)

    def begin(parameters: Any, key: jax.Array) -> learner.TrainState:
        state = learner.fresh(parameters, key)
        if keeps_start:
            state = dataclasses.replace(state, reference=jax.tree.map(jnp.copy, state.parameters))
        if stale:
            versions = jax.tree.map(lambda x: jnp.repeat(x[None], stale + 1, axis=0), state.parameters)
            state = dataclasses.replace(state, versions=versions)
        return state

    def initial(parameters: Any) -> learner.TrainState:
        if parameters is None:
            parameters = _first(policy, seeds.training(drawn, "init", config.pretrain.seed))
        return jax.vmap(begin)(jax.tree.map(jnp.asarray, parameters), keys)

    return Stage(
        name=name,
        updates=part.updates,
        chunk=part.chunk,
        members=len(trained),
        rows=rows,
        of_a_pass=of_a_pass,
        tokens_per_update=len(trained) * part.episodes * length,
        update=update,
        program=program,
        arguments=arguments,
        initial=initial,
        begin=begin,
        salt=salt,
    )


@functools.partial(jax.jit, static_argnames="policy")
def _first(policy: Policy, keys: jax.Array) -> Parameters:
    """Parameters of members before any training, with the member as axis 0."""
    return jax.vmap(policy.init)(keys)


def side_by_side(members: int, length: int) -> int:
    """Episodes of so many tokens that each of so many members reads in one forward and backward pass.

    Enough for an accelerator to be busy, few enough for what the backward pass needs to fit into its memory.
    """
    return 2 ** max(3, min(9, (PASS // (members * length)).bit_length() - 1))


def run_stage(
    run: runs.Run,
    stage: Stage,
    state: learner.TrainState,
    caught: Callable[[], int],
    report: Callable[[int, dict[str, np.ndarray], Timing], None],
    timing: Timing | None = None,
    tell: Callable[[str], None] = lambda line: None,
) -> tuple[learner.TrainState, Timing]:
    """Train from `state` to the end of the stage.

    After every chunk its metrics are written; parameters are kept at the end and, but for pretraining, after 1, 2, 4,
    8, … chunks; the whole state is saved as often as that costs less than a twentieth of the time. A stage of no
    updates ends as it began.

    Args:
        run, stage, state: where to write, what to train, where to start.
        caught: from `signals.catch`; asked before the first chunk and after each. While the program is compiled, a
            signal ends a single process at once.
        report: called after each chunk with the updates done, the chunk's metrics [M, updates] and the time taken.
        timing: where to keep the time taken, also where the stage is interrupted.
        tell: called with one line on what was chosen to fit an accelerator's memory, where there is one.

    Raises:
        signals.Interrupted: after a signal, with the state saved.
        Diverged: when no member could make its last update.
    """
    timing = timing or Timing()
    program, arguments = stage.program, stage.program.place(stage.arguments)
    done = int(np.max(state.update))  # that of a member that has diverged stands still
    if not stage.updates:
        run.save_parameters(stage.name, stage.of_members(_host(program, state.parameters)))
    state = program.place(state)

    def end_if_asked():
        # Nothing has been trained that is not saved.
        if stopped := processes.meet(caught())[:, 0].max():
            raise signals.Interrupted(int(stopped))

    end_if_asked()
    if done < stage.updates and program.takes_part:
        start = time.perf_counter()
        # Several processes must end together.
        with signals.catch(at_once=True) if processes.count() == 1 else contextlib.nullcontext():
            program.compile(state, *arguments)
        timing.compile_seconds = time.perf_counter() - start
        if program.choice:
            tell(f"{stage.name}: {program.choice}, {stage.microbatch} episodes of each in one pass")
    saved_at, save_seconds = time.perf_counter(), 0.05
    end_if_asked()
    while done < stage.updates:
        start = time.perf_counter()
        metrics = {}
        if program.takes_part:
            state, metrics = program(state, *arguments)
            metrics = population.on_host(metrics)
        timing.run_seconds += time.perf_counter() - start
        timing.tokens += stage.tokens_per_update * stage.chunk
        run.write_metrics(stage.name, done, {name: x.T[:, stage.rows] for name, x in metrics.items()})
        done += stage.chunk
        if metrics:
            report(done, metrics, timing)
            if not np.isfinite(metrics[runs.LOSS][:, -1]).any():
                raise Diverged(f"{stage.name}: the loss of every member is NaN or infinite after update {done}")
        # Signals and clocks differ between processes; what they do next must not.
        met = processes.meet(caught(), time.perf_counter() - saved_at > 20 * save_seconds)
        stopped, due = int(met[:, 0].max()), bool(met[0, 1])
        chunks = done // stage.chunk
        if done == stage.updates:
            run.save_parameters(stage.name, stage.of_members(_host(program, state.parameters)))
        elif stage.name != "pretrain" and chunks & (chunks - 1) == 0:
            parameters = stage.of_members(_host(program, state.parameters))
            run.save_parameters(runs.checkpoint_name(stage.name, done), parameters)
        if done == stage.updates or stopped or due:
            start = time.perf_counter()
            run.save_state(stage.name, done, _host(program, state))
            saved_at = time.perf_counter()
            save_seconds = saved_at - start
        if stopped:
            raise signals.Interrupted(stopped)
    return state, timing


def _host(program: population.Chunk, tree: Any) -> Any:
    return population.on_host(tree) if program.takes_part else None
