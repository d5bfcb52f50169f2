"""Names: of stages, their checkpoints, configurations and new runs."""

import datetime
import hashlib
import json
import math
import re
import secrets
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ground.files import RunError

STAGES = ("pretrain", "sft", "rl")
"""The stages of training, in their order."""


def config_hash(config: Mapping[str, Any]) -> str:
    """Twelve hexadecimal digits that name a configuration of plain JSON values."""
    return hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()[:12]


def fresh_name(root: str | Path = "runs", prefix: str = "maze") -> Path:
    """A path for a new run, such as `runs/maze-2026-11-21-1423-5f0c3a`; nothing is created.

    The last digits are random: jobs of an array begin in the same minute.
    """
    return Path(root) / f"{prefix}-{datetime.datetime.now():%Y-%m-%d-%H%M}-{secrets.token_hex(3)}"


def checkpoint_name(stage: str, update: int | None = None) -> str:
    """Name of the checkpoint after `update` updates of `stage`, such as `rl-000004`, or of the stage's end."""
    if stage not in STAGES or not (update is None or 0 <= update < 2**31):
        raise RunError(f"{stage}-{update}: no update of a stage; the stages are {', '.join(STAGES)}")
    return stage if update is None else f"{stage}-{update:06d}"


def in_order(names: Iterable[str]) -> list[str]:
    """Those that name checkpoints, in the order of training."""
    order = {}
    for name in names:
        match = re.fullmatch(r"(init)|([a-z]+)(?:-([0-9]{6,10}))?", name)
        if match and match[1]:
            order[name] = (-1, 0)
        elif match and match[2] in STAGES and (not match[3] or f"{int(match[3]):06d}" == match[3]):
            order[name] = (STAGES.index(match[2]), int(match[3]) if match[3] else math.inf)
    return sorted(order, key=order.__getitem__)
