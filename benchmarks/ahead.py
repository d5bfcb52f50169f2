"""Compile training ahead of time for an accelerator that is not there, and count what it would take.

uv run --extra cuda -m benchmarks.ahead h100 --json h100.json
uv run --extra tpu -m benchmarks.ahead v5e --only 'paper.* rl' --json v5e.json
uv run -m benchmarks.ahead report h100.json v5e.json --into docs/performance.md

Needs no accelerator, only the extra: XLA compiles for a description of the device. What it says of memory is the
compiler's own plan, what it says of kernels is read from the program that it made. A program takes a minute or two.
"""

import dataclasses
import functools
import json
import os
import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from ground import environment

if __name__ == "__main__":
    os.environ.setdefault("JAX_PLATFORMS", "cpu")  # where arrays of a config live; nothing is computed
    environment.prepare("benchmarks.ahead")

import jax
import numpy as np
import tyro
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import envs
from agents.runs import config as configs
from agents.runs import stages
from agents.runs.config import Config, ConfigError
from benchmarks import tables
from ground import files, signals, terminal


@dataclasses.dataclass(frozen=True)
class Target:
    """An accelerator to compile for."""

    title: str
    """Its name."""
    memory: int
    """Bytes that programs may fill of one device."""
    topology: Mapping[str, Any]
    """Arguments of `jax.experimental.topologies.get_topology_desc`."""

    def mesh(self) -> Mesh:
        """One such device as a mesh (member, episode).

        Raises:
            ConfigError: the compiler for it is not installed.
        """
        try:
            devices = topologies.get_topology_desc(**self.topology).devices[:1]
        except (RuntimeError, ValueError, NotImplementedError) as error:
            why = files.one_line(error)
            raise ConfigError(f"{self.title}: no compiler for it here ({why}); see the extras in --help") from None
        return Mesh(np.asarray(devices).reshape(1, 1), ("member", "episode"))


_H100 = """
gpu_device_info {
  threads_per_block_limit: 1024 threads_per_warp: 32 shared_memory_per_block: 49152 shared_memory_per_core: 233472
  threads_per_core_limit: 2048 core_count: 132 fpus_per_core: 128 block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535 block_dim_limit_z: 65535 memory_bandwidth: 3352320000000 l2_cache_size: 52428800
  clock_rate_ghz: 1.98 device_memory_size: 84929347584 shared_memory_per_block_optin: 232448
  cuda_compute_capability { major: 9 } registers_per_core_limit: 65536 registers_per_block_limit: 65536
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 28 }
runtime_version { major: 13 }
device_description_str: "NVIDIA H100 80GB HBM3"
"""

TARGETS = {
    "h100": Target(
        "H100, 80 GB", int(0.75 * 84929347584), {"platform": "cuda", "target_config": _H100, "topology": "1x1x1"}
    ),
    "v5e": Target(
        "TPU v5e, 16 GB",
        int(15.75 * 2**30),
        {"platform": "tpu", "topology_name": "v5e:1x1x1", "chips_per_host_bounds": (1, 1, 1)},
    ),
}
"""What can be compiled for. JAX takes three quarters of a GPU's memory unless told otherwise."""


@dataclasses.dataclass(frozen=True)
class Loop:
    """A loop of a compiled program."""

    scope: str
    """Where it comes from, as JAX names it."""
    turns: int
    """How often it runs."""
    kernels: int
    """Launched by one turn of it, inner loops in full."""


_FREE = frozenset(
    [
        *("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "opt-barrier", "partition-id"),
        *("replica-id", "add-dependency", "async-update", "domain"),
    ]
)
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?[\w.-]+ = (.*?) ([a-z][\w-]*)\((.*)$")


class Program:
    """The text of an optimised program, read for what it launches."""

    def __init__(self, text: str):
        self.text = text
        self.computations: dict[str, list[tuple[str, str]]] = {}
        self.limits: dict[str, list[int]] = {}
        self.loops: list[Loop] = []
        entry = current = ""
        for line in text.splitlines():
            if start := _COMPUTATION.match(line):
                current = start[2]
                self.computations[current] = []
                entry = current if start[1] else entry
            elif current and (found := _INSTRUCTION.match(line)):
                self.computations[current].append((found[2], found[3]))
                if limit := re.match(r"s32\[\].* constant\((\d+)\)", line.partition(" = ")[2]):
                    self.limits.setdefault(current, []).append(int(limit[1]))
        self.kernels = self._count(entry)
        """Launched by one call."""

    def _count(self, name: str) -> int:
        return sum(self._launched(kind, rest) for kind, rest in self.computations[name])

    def _counted(self, condition: str) -> int:
        """How often a loop runs that does nothing but count up to a number, as TPUs' texts have them; else 0."""
        compared = [rest for kind, rest in self.computations[condition] if kind == "compare"]
        others = {kind for kind, _ in self.computations[condition]} - {"compare", *_FREE}
        simple = len(compared) == 1 and "direction=LT" in compared[0] and not others
        limits = self.limits.get(condition, [])
        return limits[0] if simple and len(limits) == 1 else 0

    def _launched(self, kind: str, rest: str) -> int:
        called = dict(re.findall(r"(body|condition|to_apply|calls)=%?([\w.-]+)", rest))
        if kind == "while":
            known = re.search(r'"known_trip_count":\{"n":"(\d+)"', rest)
            turns = int(known[1]) if known else self._counted(called["condition"])
            inside = self._count(called["body"]) + (0 if turns else self._count(called["condition"]))
            turns = turns or 1
            scope = re.search(r'op_name="([^"]*)"', rest)
            self.loops.append(Loop(scope[1] if scope else "", turns, inside))
            return turns * inside
        if kind in ("call", "async-start") and called:
            return self._count(called.get("to_apply") or called["calls"])
        if kind == "conditional":
            branches = re.search(r"branch_computations=\{([^}]*)\}", rest)
            names = (
                branches[1].replace("%", "").split(", ") if branches else re.findall(r"_computation=%?([\w.-]+)", rest)
            )
            return max(map(self._count, names))
        return 0 if kind in _FREE or kind.endswith("-done") else 1


@dataclasses.dataclass(frozen=True)
class Figures:
    """What one update of a stage takes on one device."""

    case: str
    """World, scale and stage."""
    choice: str
    """Members at a time, as `--population.at-once 0` has chosen."""
    microbatch: int
    """Episodes of a member in one forward and backward pass."""
    arguments: int
    """Bytes of what is given: parameters, moments, keys."""
    temporaries: int
    """Bytes that it uses besides."""
    kernels: int
    """Launched by an update."""
    per_turn: int
    """Of those, by a turn of play."""
    per_step: int
    """Of those, by a step of the optimiser, its microbatches in full; 0 where an update is one."""
    doubles: int
    """Operations on 64-bit floats."""
    calls_home: int
    """Operations that the host takes part in."""
    compile_seconds: float
    """Of all attempts to find how many members fit."""


_HOME = re.compile(r"^(infeed|outfeed|send|recv)$")
_CALLBACK = re.compile(r'custom_call_target="[^"]*(callback|HostCompute|MoveToHost)[^"]*"')


def compiled(
    case: str, config: Config, name: str, mesh: Mesh | None = None, limit: int | None = None, chunk: int = 1
) -> tuple[Figures, stages.Stage]:
    """Compile a stage of a run.

    Args:
        case: what to call it.
        config, name: of the run and the stage.
        mesh: of devices that may not be there; the machine's own by default.
        limit: bytes of a device that the program may take; as many as the device has by default.
        chunk: updates of one call; should be no other loop's length.

    Returns:
        What an update takes, and the stage, its program compiled.
    """
    single = dataclasses.replace(config, **{name: dataclasses.replace(getattr(config, name), chunk=chunk)})
    stage = stages.make_stage(single, name, mesh)
    sharding = NamedSharding(stage.program.mesh, PartitionSpec("member"))
    given = (jax.eval_shape(lambda: stage.initial(None)), *stage.arguments)
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), given)
    start = time.perf_counter()
    stage.program.compile(*shapes, limit=limit)
    seconds = time.perf_counter() - start
    program, plan = Program(stage.program.program.as_text()), stage.program.program.memory_analysis()
    operations = [part for computation in program.computations.values() for part in computation]

    def most(turns: int) -> int:
        return max((loop.kernels for loop in program.loops if loop.turns == turns), default=0)

    figures = Figures(
        case=case,
        choice=stage.program.choice,
        microbatch=stage.microbatch,
        arguments=plan.argument_size_in_bytes,
        temporaries=plan.temp_size_in_bytes,
        kernels=program.kernels // chunk,
        per_turn=most(config.world.turns),
        per_step=most(config.rl.epochs * config.rl.minibatches) if name == "rl" else 0,
        doubles=program.text.count(" f64["),
        calls_home=sum(bool(_HOME.match(kind) or _CALLBACK.search(rest)) for kind, rest in operations),
        compile_seconds=seconds,
    )
    return figures, stage


def cases() -> Iterator[tuple[str, Config, str]]:
    """Name, config and stage of all that is compiled: each world, scale and stage, RL by PPO and by GRPO."""
    for world in envs.WORLDS:
        for scale in configs.SCALES:
            yield f"{world} {scale} pretrain", configs.start(scale, world), "pretrain"
            for algorithm in ("ppo", "grpo"):
                yield f"{world} {scale} rl {algorithm}", configs.start(scale, world, algorithm), "rl"


@dataclasses.dataclass(frozen=True)
class Command:
    """Compile training for an accelerator that is not there."""

    target: Annotated[str, tyro.conf.Positional]
    """h100 (extra `cuda`) or v5e (extra `tpu`). (`report FILE...` writes the table of earlier figures.)"""
    only: str = ""
    """A regular expression: compile only what has such a name, world, scale, stage and algorithm."""
    json: Path | None = None
    """Write the figures to this file, after each program; what it holds already is not compiled again."""


KEYS = frozenset({"target", "results"})
"""What a document of figures has."""

HEADINGS = (
    *("one update of", "members at a time, memory", "episodes of each in a pass", "arguments", "temporaries"),
    *("kernels", "a turn", "a step", "compile, s"),
)


def table(documents: Sequence[Mapping[str, Any]]) -> str:
    """The figures of some targets as Markdown."""
    rows = []
    for document in documents:
        for figures in document["results"]:
            counted = (f"{figures[name]:,}" if figures[name] else "" for name in ("kernels", "per_turn", "per_step"))
            sizes = (f"{figures[name] / 2**30:.2f} GiB" for name in ("arguments", "temporaries"))
            named = (f"{figures['case']}, {document['target']}", figures["choice"], str(figures["microbatch"]))
            rows.append((*named, *sizes, *counted, f"{figures['compile_seconds']:.0f}"))
    return tables.table(HEADINGS, rows)


def _earlier(file: Path | None, about: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """The results that a file holds, by case; raises ConfigError where they are of another target or JAX."""
    if file is None or not files.holds(file, KEYS):
        return {}
    document = tables.read(file, KEYS)
    if {name: document.get(name) for name in about} != about:
        of = f"{document['target']}, JAX {document.get('jax')}"
        raise ConfigError(f"--json={file}: holds figures of {of}; name another file")
    with tables.whole(file):
        table([document])
        return {figures["case"]: figures for figures in document["results"]}


def main(arguments: list[str], begin: Callable[[], None] = lambda: None) -> int:
    """Run the command; returns the exit status. `begin` is called before JAX is used."""
    try:
        if arguments[:1] == ["report"]:
            tables.report(arguments[1:], "benchmarks.ahead report", KEYS, lambda found: {"ahead": table(found)})
            return 0
        command = terminal.read(Command, arguments, prog="benchmarks.ahead")
        if command.target not in TARGETS:
            raise ConfigError(f"{command.target}: unknown; choose one of {', '.join(TARGETS)}")
        tables.check(command.only, command.json, KEYS)
        chosen = [case for case in cases() if re.search(command.only, case[0])]
        if not chosen:
            raise ConfigError(f"--only={command.only}: no program has such a name; see --help")
        target = TARGETS[command.target]
        about = {"target": target.title, "jax": jax.__version__}
        done = _earlier(command.json, about)
        with signals.catch(at_once=True):
            begin()
            for case, config, name in chosen:
                fresh = case not in done
                if fresh:
                    figures, _ = compiled(case, config, name, target.mesh(), target.memory)
                    done[case] = dataclasses.asdict(figures)
                print(table([{**about, "results": [done[case]]}]).splitlines()[-1], flush=True)
                if fresh and command.json:
                    document = {**about, "results": list(done.values())}
                    files.write(command.json, (json.dumps(document, indent=1) + "\n").encode())
    except (ConfigError, files.RunError) as error:
        terminal.complain("benchmarks.ahead", error)
        return 2
    except signals.Interrupted as error:
        terminal.complain("benchmarks.ahead", f"{error}; what was compiled is kept")
        return error.exit_status
    return 0


if __name__ == "__main__":
    begin = functools.partial(environment.start, "benchmarks.ahead", keep_programs=False)
    sys.exit(main(sys.argv[1:], begin))
