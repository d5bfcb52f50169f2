"""Attacks on runs, at the size at which docs/reliability.md reports them. Linux alone; full-disk needs root.

uv run -m tests.endurance kills                               print what was done
uv run -m tests.endurance kills --into docs/reliability.md    and write it into the table, by docs/reliability.json
"""

import dataclasses
import importlib
import json
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from tests.endurance import tables
from tests.endurance.tables import TITLES


@dataclasses.dataclass(frozen=True)
class Attack:
    """Function, how often, on a run of which size (`kills.options`), and what else it is told."""

    function: str
    tries: int
    size: str = "tiny"
    more: tuple[Any, ...] = ()

    def call(self, tries: int, folder: Path, seed: int) -> dict[str, Any]:
        """Do it; imported only now, for some modules start a JAX backend and the others must not."""
        module, _, name = self.function.partition(".")
        function: Callable[..., dict[str, Any]] = getattr(importlib.import_module(f"tests.endurance.{module}"), name)
        return function(tries, folder, seed, self.size, *self.more)


ATTACKS = {
    "kills": Attack("kills.attack", 200, more=((signal.SIGKILL,),)),
    "signals": Attack("kills.attack", 40, size="smoke", more=((signal.SIGINT, signal.SIGTERM),)),
    "full-disk": Attack("faults.fill", 40),
    "damage": Attack("faults.damage", 100),
    "soak": Attack("soak.soak", 2000, size="smoke"),
    "determinism": Attack("determinism.compare", 4, size="smoke"),
    "checks": Attack("checks.cost", 10, size="laptop"),
}
assert tuple(ATTACKS) == tuple(TITLES)


def main(
    what: Annotated[
        Literal["kills", "signals", "full-disk", "damage", "soak", "determinism", "checks"], tyro.conf.Positional
    ],
    tries: int = 0,
    seed: int = 0,
    into: Path | None = None,
) -> None:
    """Attack runs and say what was lost.

    Args:
        what: the attack.
        tries: how often; by default as often as it is reported.
        seed: of where it strikes.
        into: the Markdown file whose table to write; the figures go beside it, with the ending .json.
    """
    attack, started = ATTACKS[what], time.monotonic()
    with tempfile.TemporaryDirectory(prefix="emojimaze-endurance-") as folder:
        found = attack.call(tries or attack.tries, Path(folder).resolve(), seed)
    found |= {"seconds": time.monotonic() - started, "seed": seed}
    print(json.dumps(found))
    if into:
        tables.write(into, what, found)


if __name__ == "__main__":
    sys.exit(tyro.cli(main))
