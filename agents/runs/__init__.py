"""A run: its config, its directory, the stages that fill it, and what it earns in the end."""

from agents.runs.names import STAGES, checkpoint_name, config_hash, fresh_name
from agents.runs.run import LOSS, Run, RunError, State, create, open, withdraw
from agents.runs.sessions import differences, provenance

__all__ = [
    "LOSS",
    "STAGES",
    "Run",
    "RunError",
    "State",
    "checkpoint_name",
    "config_hash",
    "create",
    "differences",
    "fresh_name",
    "open",
    "provenance",
    "withdraw",
]
