"""Who has worked on a run: every process, with the code, packages, settings and machine that it had, and its time.

`config.json` tells of the process that made the run, `sessions.json` of each that has trained it.
"""

import datetime
import functools
import importlib.metadata
import os
import platform
import time
import zlib
from pathlib import Path
from typing import Any

import jax

from ground import files, git, processes
from ground.files import RunError
from ground.terminal import ConfigError

NAME = "sessions.json"
PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "gymnax", "chex", "numpy", "pyarrow")
"""Packages whose versions are recorded."""
SETTINGS = (
    *("jax_enable_x64", "jax_default_matmul_precision", "jax_default_prng_impl", "jax_threefry_partitionable"),
    *("jax_random_seed_offset", "jax_disable_jit", "jax_disable_most_optimizations"),
)
"""Settings of JAX that may change bits."""
VARIABLES = ("XLA_FLAGS", "LIBTPU_INIT_ARGS", "NVIDIA_TF32_OVERRIDE")
"""Variables of the environment that may."""
SECONDS = 60.0
"""After so long a session notes anew how long it has worked; at a kill that much may go untold."""


def provenance() -> dict[str, Any]:
    """What makes a result besides its config: code, packages, settings, machine."""
    settings = {name: getattr(jax.config, name, None) for name in SETTINGS}
    return {
        "git": _git(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: _version(name) for name in PACKAGES},
        "settings": settings | {name: os.environ.get(name) for name in VARIABLES},
        "device": {
            "platform": jax.default_backend(),
            "kind": jax.devices()[0].device_kind,
            "devices": jax.device_count(),
            "processes": jax.process_count(),
        },
    }


def differences(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """What of the provenance has changed between two sessions, such as `jax 0.10.1 → 0.10.2`; [] where nothing has.

    What one of them did not record, or could not find out, is not compared.
    """
    one, other = _facts(before), _facts(now)
    return [f"{name} {one[name]} → {other[name]}" for name in one if name in other and one[name] != other[name]]


def _facts(provenance: dict[str, Any]) -> dict[str, Any]:
    """What of it is known, by name; None is a value of settings alone."""
    parts = {name: provenance.get(name) or {} for name in ("git", "packages", "settings", "device")}
    parts["python"] = {"Python": provenance.get("python")}
    every = ((part, name, value) for part, facts in parts.items() for name, value in facts.items())
    return {name: value for part, name, value in every if value is not None or part == "settings"}


def foreign(path: Path) -> list[str]:
    """How this process differs from those that have trained a run, as `differences` says it.

    Raises:
        RunError: the file is damaged.
    """
    now = provenance()
    return list(dict.fromkeys(words for session in read(path) for words in differences(session, now)))


def read(path: Path) -> list[dict[str, Any]]:
    """The sessions of a run directory, oldest first: `started`, provenance, `seconds` and `tokens` of each stage.

    Runs of older versions tell of the process that made them alone, without its time.

    Raises:
        RunError: the file is damaged.
    """
    if not (path / NAME).exists():
        made = files.read_json(path / "config.json")
        known = {key: made[key] for key in ("git", "packages", "device") if isinstance(made.get(key), dict)}
        return [{"started": made.get("created")} | known]
    every = files.read_json(path / NAME).get("sessions")
    if not isinstance(every, list) or not all(_is_session(one) for one in every):
        raise RunError(f"{path / NAME}: not the sessions of a run; restore it, or delete it and what it tells is lost")
    return every


def _is_session(told: Any) -> bool:
    """Whether each part of it is of facts by name, and those of time are numbers."""
    if not isinstance(told, dict):
        return False
    parts = {name: told.get(name) or {} for name in ("git", "packages", "settings", "device", "seconds", "tokens")}
    return all(isinstance(facts, dict) for facts in parts.values()) and all(
        isinstance(value, (int, float)) for kind in ("seconds", "tokens") for value in parts[kind].values()
    )


class Session:
    """This process's part in a run, noted in `sessions.json` as it works.

    Args:
        path: the run directory, locked; None where there is none, and nothing is written.
        begun: whether another session has trained the run before.

    Raises:
        ConfigError: the processes of this job do not have the same code.
        RunError: the file is damaged, or cannot be written.
    """

    def __init__(self, path: Path | None, *, begun: bool):
        self._path = path
        self._since = self._noted = time.perf_counter()
        self._mine = {"started": datetime.datetime.now().astimezone().isoformat(timespec="seconds"), **provenance()}
        code = {key: self._mine[key] for key in ("git", "packages", "python")}
        if processes.meet(len(differences(processes.by_first(lambda: code), code)))[:, 0].any():
            raise ConfigError("the processes of this job have different code or packages; give all of them the same")
        self._earlier = read(path) if path and begun and processes.first() else []
        self.timings: dict[str, Any] = {}
        """Stage → its `stages.Timing` in this session."""
        self.evaluation = 0.0
        """Seconds of evaluating in this session."""
        self.note()

    def changes(self) -> list[str]:
        """What differs from the session before, as `differences` says it."""
        return differences(self._earlier[-1], self._mine) if self._earlier else []

    @property
    def trained(self) -> bool:
        """Whether this session has made any update."""
        return any(timing.tokens for timing in self.timings.values())

    def note(self, *, now_and_then: bool = False) -> None:
        """Write how long this session has worked; `now_and_then` only every `SECONDS`."""
        now = time.perf_counter()
        if not processes.first() or (now_and_then and now - self._noted < SECONDS):
            return
        self._noted = now
        self._mine["seconds"] = {
            "compile": sum(timing.compile_seconds for timing in self.timings.values()),
            **{name: timing.run_seconds for name, timing in self.timings.items()},
            "evaluation": self.evaluation,
            "total": now - self._since,
        }
        self._mine["tokens"] = {name: timing.tokens for name, timing in self.timings.items()}
        if self._path:
            files.write_json(self._path / NAME, {"sessions": [*self._earlier, self._mine]})

    def speed(self) -> dict[str, dict[str, float]]:
        """What `summary.json` says of time: `seconds` and `tokens_per_second`, of all sessions together."""
        self.note()
        total: dict[str, dict[str, float]] = {"seconds": {}, "tokens": {}}
        for session in (*self._earlier, self._mine):
            for kind, sums in total.items():
                for name, value in (session.get(kind) or {}).items():
                    sums[name] = sums.get(name, 0) + value
        seconds, tokens = total["seconds"], total["tokens"]
        rates = {name: count / seconds[name] for name, count in tokens.items() if seconds.get(name)}
        return {"seconds": seconds, "tokens_per_second": rates}


@functools.cache
def _git() -> dict[str, Any]:
    """Commit of this checkout, whether files differ from it, and a checksum of how; None where unknown. Asked once."""
    root = Path(__file__).resolve().parents[2]
    ask = functools.partial(git.answer, root)
    if ask("rev-parse", "--show-toplevel") != str(root):  # a copy inside somebody else's repository
        return {"commit": None, "dirty": None, "changes": None}
    status, changes = ask("status", "--porcelain"), ask("diff", "HEAD")
    return {
        "commit": ask("rev-parse", "HEAD"),
        "dirty": None if status is None else bool(status),
        "changes": None if changes is None else f"{zlib.crc32(changes.encode()):08x}",
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
