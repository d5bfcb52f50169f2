"""Look inside a run.

    uv run -m analysis concepts   RUN      the representation of reward, with every control
    uv run -m analysis steer      RUN      what pushing along it, or removing it, does
    uv run -m analysis updates    RUN      what changed in the parameters between two checkpoints
    uv run -m analysis subnetwork RUN      the changed parameters trained alone, against random masks
    uv run -m analysis pass-at-k  RUN      how often one of k attempts succeeds, before RL and after
    uv run -m analysis personas   RUN      whether the model knows its personas, and infers which of them it is

`uv run -m analysis COMMAND --help` lists the options of each.
"""

import importlib
import sys
from collections.abc import Sequence

from ground import devices

if __name__ == "__main__":
    devices.start()

from rich.console import Console

from agents import runs
from agents.runs.config import ConfigError
from ground import signals, terminal

COMMANDS = ("concepts", "steer", "updates", "subnetwork", "pass-at-k", "personas")
"""The analyses; each is a module of `analysis.commands`, dashes as underscores, with a `Command` and a `run`."""


def main(arguments: Sequence[str]) -> int:
    """Run the command; returns the exit status."""
    name = arguments[0] if arguments else ""
    if name in ("-h", "--help"):
        print((__doc__ or "").strip())
        return 0
    if name not in COMMANDS:
        wrong = f"{name}: no such analysis" if name else "which analysis?"
        terminal.complain("analysis", f"{wrong}; choose one of {', '.join(COMMANDS)}")
        return 2
    module = importlib.import_module(f"analysis.commands.{name.replace('-', '_')}")
    try:
        command = terminal.read(module.Command, arguments[1:], prog=f"analysis {name}")
        with signals.catch(at_once=True):
            module.run(command, Console())
    except (ConfigError, runs.RunError) as error:
        terminal.complain(f"analysis {name}", error)
        return 2
    except signals.Interrupted as error:
        terminal.complain(f"analysis {name}", f"{error}; nothing of it was written")
        return error.exit_status
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
