"""Other libraries' mazes and rooms, each behind the same four fields, and a plain PyTorch PPO on our maze."""

import importlib.util

from benchmarks.peers.libraries import LIBRARIES, environments


def missing() -> str | None:
    """One line that says which peers are not installed and how to install them; None if all are."""
    absent = [name for name in LIBRARIES if not _imports(name)]
    if absent:
        return f"--peers: {', '.join(absent)} not installed; use `uv run --extra peers -m benchmarks … --peers`"
    return None


def torch_missing() -> str | None:
    """The same for PyTorch, which is no part of the extra: its package for Linux brings gigabytes of CUDA."""
    if _imports("torch"):
        return None
    return "--peers: torch not installed; `uv pip install torch` (its CPU build will do), then `uv run --no-sync …`"


def _imports(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except (ImportError, ValueError):
        return False


__all__ = ["environments", "missing", "torch_missing"]
