"""Attacks on runs, at the size at which they are reported: what docs/reliability.md tells was printed by these.

uv run -m tests.endurance kills
"""

import sys
import tempfile
from pathlib import Path
from typing import Annotated, Literal

import tyro


def main(
    what: Annotated[Literal["kills"], tyro.conf.Positional],
    tries: int = 200,
    seed: int = 0,
) -> None:
    """Attack runs and say what was lost.

    Args:
        what: the attack.
        tries: how many.
        seed: of where they strike.
    """
    from tests.endurance import kills

    with tempfile.TemporaryDirectory(prefix="emojimaze-endurance-") as folder:
        print(kills.attack(tries, Path(folder), seed))


if __name__ == "__main__":
    sys.exit(tyro.cli(main))
