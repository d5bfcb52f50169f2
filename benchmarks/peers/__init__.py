"""Other libraries' mazes and rooms, and a plain PyTorch PPO on our maze."""

import importlib.util

NEEDED = {
    "env": (("navix", "xminigrid", "jumanji", "jaxued", "gymnax"), "`uv run --extra peers -m benchmarks … --peers`"),
    # No part of the extra: its package for Linux brings gigabytes of CUDA.
    "train": (("torch",), "`uv pip install torch` (its CPU build will do), then `uv run --no-sync …`"),
}
"""Word on the command line → the packages of its peers, and what installs them."""


def missing(what: str) -> str | None:
    """One line that says what there is to install before peers can be measured; None if nothing is."""
    if what not in NEEDED:
        return f"{what} has no peers; use {' or '.join(NEEDED)}"
    packages, remedy = NEEDED[what]
    absent = [name for name in packages if not _imports(name)]
    return f"{', '.join(absent)} not installed; use {remedy}" if absent else None


def _imports(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except (ImportError, ValueError):
        return False
