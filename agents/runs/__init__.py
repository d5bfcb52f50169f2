"""A run: its config, its directory, the stages that fill it, and what it earns in the end."""

from agents.runs.run import (
    LOSS,
    STAGES,
    Run,
    RunError,
    State,
    checkpoint_name,
    config_hash,
    create,
    fresh_name,
    open,
    provenance,
)

__all__ = [
    "LOSS",
    "STAGES",
    "Run",
    "RunError",
    "State",
    "checkpoint_name",
    "config_hash",
    "create",
    "fresh_name",
    "open",
    "provenance",
]
