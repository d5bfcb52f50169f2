"""What was measured as tables in Markdown, on the terminal or between markers, made from the JSON alone."""

import dataclasses
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import tyro

from agents.runs.config import ConfigError
from benchmarks.machine import CEILINGS

SCHEMA = 1
"""Version of the documents that `--json` writes."""

HEADINGS = ("case", "median per second", "lowest", "highest", "fraction of the limit", "compile, s", "memory")


@dataclasses.dataclass(frozen=True)
class Report:
    """Write the tables of earlier measurements."""

    files: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """What `--json` wrote; of measurements, where two hold the same case, the later one counts."""
    into: Path | None = None
    """A Markdown file with a pair of markers for every table; without it, the tables are printed."""


def read(path: Path) -> dict[str, Any]:
    """A document that `--json` wrote.

    Raises:
        ConfigError: it is none; one line says why.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror or error}; give files that --json wrote") from None
    except ValueError:
        raise ConfigError(f"{path}: not JSON; give files that --json wrote") from None
    keys = {"what", "machine", "ceilings", "results", "ratios"}
    if not isinstance(document, dict) or document.get("schema") != SCHEMA or not document.keys() >= keys:
        raise ConfigError(f"{path}: not a benchmark of schema {SCHEMA}; measure again with --json")
    return document


def merged(documents: Sequence[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """One document for each word on the command line; of a case measured twice the later result is kept.

    Every result keeps the fraction of its own run's ceilings; `ceilings` becomes the list of those of all runs.

    Raises:
        ConfigError: no documents, or they come from different machines.
    """
    if not documents:
        raise ConfigError("report: no files; give those that --json wrote")
    by_word = {}
    for document in documents:
        if document["machine"] != documents[0]["machine"]:
            raise ConfigError("report: the files come from different machines or versions; make one report of each")
        kept = by_word.setdefault(document["what"], {**document, "ceilings": [], "results": [], "ratios": []})
        kept["ceilings"].append(document["ceilings"])
        kept["commit"] = document.get("commit")
        for key, name in (("results", "case"), ("ratios", "what")):
            kept[key] = list({entry[name]: entry for entry in kept[key] + document[key]}.values())
    return by_word


def sections(by_word: dict[str, dict[str, Any]]) -> dict[str, str]:
    """Marker → Markdown, of merged documents."""
    machine = next(iter(by_word.values()))["machine"]
    commits = sorted({document["commit"] or "unknown" for document in by_word.values()})
    runs = [document["ceilings"] for document in by_word.values()]
    ceilings = [(label, *(_ceiling(name, of_word) for of_word in runs)) for name, (label, _) in CEILINGS.items()]
    ratios = [(entry["what"], f"{entry['ratio']:.2f}") for document in by_word.values() for entry in document["ratios"]]
    return {
        "machine": f"{machine['processor']}, {machine['cores']} cores, {machine['devices']} JAX device(s) of kind "
        f"{machine['device']}, Python {machine['python']}, JAX {machine['jax']}, commit {', '.join(commits)}",
        "ceilings": table(("ceiling", *(f"run of `{what}`" for what in by_word)), ceilings),
        **{what: table(HEADINGS, map(row, document["results"])) for what, document in by_word.items()},
        **({"ratios": table(("compared", "ratio"), ratios)} if ratios else {}),
    }


def write(path: Path, by_word: dict[str, dict[str, Any]]) -> None:
    """Put the sections of merged documents between their markers.

    Raises:
        ConfigError: the file cannot be read or has no marker for a section; nothing is written.
    """
    put(path, sections(by_word))


def put(path: Path, named: Mapping[str, str]) -> None:
    """Put sections between the markers of their names; errors as of `write`."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"--into={path}: {error.strerror or error}; give a Markdown file with markers") from None
    for name, section in named.items():
        start, end = f"<!-- benchmarks: {name} -->", "<!-- benchmarks: end -->"
        parts = re.split(f"(?<={start}\n).*?(?={end})", text, maxsplit=1, flags=re.DOTALL)
        if len(parts) != 2 or start in parts[1]:
            raise ConfigError(f"--into={path}: expected one pair of markers '{start}' and '{end}'; add them")
        text = f"\n{section}\n\n".join(parts)
    path.write_text(text, encoding="utf-8")


def row(result: dict[str, Any]) -> tuple[str, ...]:
    """A result as the columns of `HEADINGS`."""
    fraction, temporary = result["fraction"], result["temporary_memory"]
    return (
        result["case"],
        f"{number(result['median'])} {result['unit']}",
        number(result["low"]),
        number(result["high"]),
        "" if fraction is None else f"{_percent(fraction)} of {result['of_what'].replace('_', ' ')}",
        f"{result['compile_seconds']:.1f}",
        _bytes(result["peak_memory"]) + ("" if temporary is None else f" ({_bytes(temporary)} temporary)"),
    )


def number(x: float) -> str:
    """Three digits and a letter for thousands, millions or thousands of millions."""
    for size, letter in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if x >= size:
            return f"{x / size:.{3 - len(str(int(x / size)))}f}{letter}"
    return f"{x:.3g}"


def _percent(fraction: float) -> str:
    return f"{100 * fraction:.{0 if fraction >= 0.1 else 1}f} %"


def _bytes(count: int) -> str:
    return f"{count / 2**20:,.0f} MiB" if count >= 2**20 else f"{count / 2**10:,.0f} KiB"


def _ceiling(name: str, runs: Sequence[dict[str, float]]) -> str:
    """A ceiling of several runs: where they differ, the lowest and the highest."""
    low, high = (number(end(run[name] for run in runs)) + CEILINGS[name][1] for end in (min, max))
    return low if low == high else f"{low} to {high}"


def table(headings: Sequence[str], rows: Any) -> str:
    """A table in Markdown."""
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (headings, ["---"] * len(headings), *rows))
