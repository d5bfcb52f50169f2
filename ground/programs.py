"""Compiled programs, kept between commands: JAX's own persistent compilation cache, in a folder of the user's, bounded.

JAX's variables of the environment come first: `JAX_COMPILATION_CACHE_DIR` moves it, to a folder that is then the user's
to bound, and `JAX_ENABLE_COMPILATION_CACHE=false` turns it off.
"""

import contextlib
import hashlib
import os
import platform
import sys
import warnings
from collections.abc import Mapping
from pathlib import Path

import jax

LIMIT = 2**30
"""Bytes that all programs of all machines may take; seen to when a command starts."""


def keep() -> None:
    """Find programs that an earlier command compiled, and keep those that this one compiles."""
    # What cannot be read or written, because the disk is full or another process has just removed it, is compiled.
    warnings.filterwarnings("ignore", r"Error (reading|writing) persistent compilation cache entry", UserWarning)
    wanted = jax.config.jax_enable_compilation_cache  # pyright: ignore[reportAttributeAccessIssue]
    if not wanted or "JAX_COMPILATION_CACHE_DIR" in os.environ:
        return
    try:
        folder = home(os.environ)
        mine = folder / _machine()
        mine.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError):  # RuntimeError: a user without a home
        return
    if not os.access(mine, os.W_OK):
        return
    bound(folder, LIMIT)
    jax.config.update("jax_compilation_cache_dir", str(mine))
    if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)  # a command has a hundred small ones


def home(environment: Mapping[str, str]) -> Path:
    """The folder of all programs: in the user's folder for caches, which may be thrown away at any time.

    Raises:
        RuntimeError: the user has no home.
    """
    default = "~/Library/Caches" if sys.platform == "darwin" else "~/.cache"
    given = environment.get("XDG_CACHE_HOME", "")
    parent = Path(given) if os.path.isabs(given) else Path(default).expanduser()  # as the XDG specification has it
    return parent / "emojimaze" / "programs"


def bound(folder: Path, limit: int) -> None:
    """Remove what was used longest ago until the rest is at most `limit` bytes. Others may do the same meanwhile.

    JAX's own bound (`jax_compilation_cache_max_size`) reads the times of all files whenever it writes one.
    """
    files = []
    for path in folder.glob("*/*"):
        with contextlib.suppress(OSError):
            status = path.stat()
            files.append((max(status.st_atime, status.st_mtime), status.st_size, path))
    total = sum(size for _, size, _ in files)
    for _, size, path in sorted(files):
        if total <= limit:
            break
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)
        total -= size


def _machine() -> str:
    """A name for what programs for the CPU depend on besides JAX's own key: its instructions, and how many cores.

    A home may be shared by machines; what one compiled could stop the other, or round otherwise.
    """
    facts = [platform.machine(), platform.processor(), str(os.cpu_count())]
    with contextlib.suppress(OSError):  # Linux alone
        facts += [
            line
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith(("flags", "model", "Features"))
        ]
    if hasattr(os, "sched_getaffinity"):
        facts.append(str(len(os.sched_getaffinity(0))))
    return hashlib.sha256("\n".join(sorted(set(facts))).encode()).hexdigest()[:16]
