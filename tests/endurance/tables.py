"""The table of what runs have survived, written from figures that are kept beside it."""

import json
import platform
import subprocess
from pathlib import Path
from typing import Any

TITLES = {
    "kills": "SIGKILL, half of them exactly before a file operation, the others up to half a second after one",
    "signals": "SIGINT and SIGTERM, in the same way, at smoke scale",
    "full-disk": "training on a disk that is too small",
    "damage": "a bit flipped, half a file lost, a file empty, gone, or a folder in its place",
    "soak": "chunks in one process at smoke scale",
    "determinism": "the same run again, interrupted, with other members at once, on other devices, at smoke scale",
    "checks": "time of the checks for failed members, in updates of RL at laptop scale",
}
BEGIN, END = "<!-- endurance: begin -->\n", "<!-- endurance: end -->"


def write(into: Path, what: str, found: dict[str, Any]) -> None:
    """Keep the figures of an attack, and write the table of all that were kept.

    Args:
        into: a Markdown file with a pair of markers; the figures lie beside it.
        what: the attack.
        found: its figures.
    """
    kept = into.with_suffix(".json")
    every = json.loads(kept.read_text(encoding="utf-8")) if kept.exists() else {}
    every[what] = found | {"machine": _machine(), "commit": _commit()}
    every = {name: every[name] for name in TITLES if name in every}
    kept.write_text(json.dumps(every, indent=1) + "\n", encoding="utf-8")
    text = into.read_text(encoding="utf-8")
    before, rest = text.split(BEGIN, 1)
    into.write_text(before + BEGIN + _table(every) + END + rest.split(END, 1)[1], encoding="utf-8")


def _table(every: dict[str, dict[str, Any]]) -> str:
    rows = ["| attack | tries | losses | seen | minutes | command |", "|---|---|---|---|---|---|"]
    for name, found in every.items():
        cells = (TITLES[name], f"{found['tries']:,}", str(found["losses"]), _seen(found))
        minutes = f"{found['seconds'] / 60:.0f}"
        rows.append(f"| {' | '.join(cells)} | {minutes} | `uv run -m tests.endurance {name}` |")
    return "\n".join(rows) + "\n"


def _seen(found: dict[str, Any]) -> str:
    """What else was counted, in words."""
    said = []
    if "runs" in found:
        said.append(f"{found['runs']} runs brought to the same end")
    if found.get("slowest_seconds"):
        said.append(f"slowest end {found['slowest_seconds']:.1f} s after the signal")
    if "outcomes" in found:
        said.append(", ".join(f"{name} {count}" for name, count in sorted(found["outcomes"].items())))
    if "places" in found:
        said.append("while at " + ", ".join(f"{name} {count}" for name, count in found["places"].items()))
    if "share of an update" in found:
        said.append(f"{100 * found['share of an update']:.2f} % of an update, at the most")
    if "ways" in found:
        said.append(f"{found['same bits']} repetitions (every second interrupted) equal to the bit")
        *some, last = map(str, found["at once"])
        said.append(f"{', '.join(some)} or {last} members at once: equal to the bit")
        said += [
            f"{way}: {'equal to the bit' if not any(apart.values()) else _apart(apart)}"
            for way, apart in found["ways"].items()
        ]
    if "mebibytes_per_100_chunks" in found:
        first, last = found["mebibytes"]
        said.append(
            f"memory {first:.0f} to {last:.0f} MiB, slope {found['mebibytes_per_100_chunks']:+.2f} per 100 chunks"
        )
        said.append(f"no program compiled after chunk {found['last_compilation_before_chunk']}")
        said.append(
            f"at most {found['files_beside_metrics'][1]} files, and {found['metrics_parts']:,} parts of metrics at once"
        )
    return "; ".join(said)


def _apart(found: dict[str, float]) -> str:
    """How far two programs have come apart."""
    said = []
    for key, what in (("base", "the base"), ("after RL", "the policy after RL")):
        said.append(f"{what} " + (f"within {found[key]:.0e} of its size" if found[key] else "the same"))
    if found["return after"]:
        said.append(f"a member's return within {found['return after']:.2f}")
        said.append(f"their mean within {found['return after, mean']:.2f}")
    else:
        said.append("every return the same")
    return ", ".join(said)


def _machine() -> str:
    """Processor, cores and Python, in a few words."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    cores = sum(line.startswith("processor") for line in lines)
    return f"{cores} cores, {platform.machine()}, Python {platform.python_version()}"


def _commit() -> str:
    """Of this checkout; marked where files differ from it."""
    root = Path(__file__).resolve().parent
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
