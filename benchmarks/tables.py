"""Tables of what was measured: on the terminal, and in Markdown between markers, written from the JSON alone."""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from agents.runs.config import ConfigError
from benchmarks.ceilings import LABELS

SCHEMA = 1
"""Version of the documents that `--json` writes."""

HEADINGS = ("case", "median per second", "lowest", "highest", "fraction of the limit", "compile, s", "memory")

_KEYS = ("what", "machine", "ceilings", "results", "ratios")
_MARKED = r"(?<=<!-- benchmarks: {} -->\n).*?(?=<!-- benchmarks: end -->)"


def read(path: Path) -> dict[str, Any]:
    """A document that `--json` wrote.

    Raises:
        ConfigError: it is none; one line says why.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror or error}; give files that --json wrote") from None
    except ValueError:
        raise ConfigError(f"{path}: not JSON; give files that --json wrote") from None
    if not isinstance(found, dict) or found.get("schema") != SCHEMA or any(key not in found for key in _KEYS):
        raise ConfigError(f"{path}: not a benchmark of schema {SCHEMA}; measure again with --json")
    return found


def merged(documents: Sequence[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """One document for each word on the command line; of a case measured twice the later result is kept.

    Every result keeps the fraction of its own run's ceilings; `ceilings` becomes the list of those of all runs.

    Raises:
        ConfigError: no documents, or they come from different machines.
    """
    if not documents:
        raise ConfigError("report: no files; give those that --json wrote")
    first, found = documents[0], {}
    for document in documents:
        if document["machine"] != first["machine"]:
            raise ConfigError("report: the files come from different machines or versions; make one report of each")
        kept = found.setdefault(document["what"], {**document, "ceilings": [], "results": [], "ratios": []})
        kept["ceilings"].append(document["ceilings"])
        kept["commit"] = document.get("commit")
        for key, name in (("results", "case"), ("ratios", "what")):
            both = {entry[name]: entry for entry in kept[key]} | {entry[name]: entry for entry in document[key]}
            kept[key] = list(both.values())
    return found


def sections(found: dict[str, dict[str, Any]]) -> dict[str, str]:
    """Marker → Markdown, of merged documents."""
    first = next(iter(found.values()))
    machine = first["machine"]
    commits = {document["commit"] or "unknown" for document in found.values()}
    made = {
        "machine": f"{machine['processor']}, {machine['cores']} cores, {machine['devices']} JAX device(s) of kind "
        f"{machine['device']}, Python {machine['python']}, JAX {machine['jax']}, commit {', '.join(sorted(commits))}",
        "ceilings": _ceilings(found),
    }
    for what, document in found.items():
        made[what] = _markdown(HEADINGS, [row(result) for result in document["results"]])
    ratios = [entry for document in found.values() for entry in document["ratios"]]
    if ratios:
        made["ratios"] = _markdown(
            ("compared", "ratio"), [(entry["what"], f"{entry['ratio']:.2f}") for entry in ratios]
        )
    return made


def write(path: Path, found: dict[str, dict[str, Any]]) -> None:
    """Put every table between its markers.

    Raises:
        ConfigError: the file cannot be read or has no marker for a table; nothing is written.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"--into={path}: {error.strerror or error}; give a Markdown file with markers") from None
    for name, table in sections(found).items():
        pattern = re.compile(_MARKED.format(name), re.DOTALL)
        if text.count(f"<!-- benchmarks: {name} -->\n") != 1 or not pattern.search(text):
            raise ConfigError(
                f"--into={path}: expected one pair of markers '<!-- benchmarks: {name} -->' and "
                "'<!-- benchmarks: end -->'; add them"
            )
        text = pattern.sub(lambda _, table=table: f"\n{table}\n\n", text, count=1)
    path.write_text(text, encoding="utf-8")


def show(console: Console, document: dict[str, Any]) -> None:
    """The tables of one document on the terminal."""
    machine = document["machine"]
    limits = Table(
        title=f"{machine['processor']}, {machine['cores']} cores, JAX {machine['jax']}", title_justify="left"
    )
    limits.add_column("ceiling of this run")
    limits.add_column("best", justify="right")
    for name, value in document["ceilings"].items():
        limits.add_row(*_ceiling(name, value))
    console.print(limits)
    table = Table()
    for heading in HEADINGS:
        table.add_column(heading, justify="left" if heading == "case" else "right", no_wrap=heading == "case")
    for result in document["results"]:
        table.add_row(*row(result))
    console.print(table)
    for entry in document["ratios"]:
        console.print(f"{entry['what']}: {entry['ratio']:.2f}", highlight=False)


def row(result: dict[str, Any]) -> tuple[str, ...]:
    """A result as the columns of `HEADINGS`."""
    fraction = "" if result["fraction"] is None else f"{_percent(result['fraction'])} of {result['of_what']}"
    memory = result["peak_memory"]
    temporary = result["temporary_memory"]
    return (
        result["case"],
        f"{number(result['median'])} {result['unit']}",
        number(result["low"]),
        number(result["high"]),
        fraction.replace("_", " "),
        f"{result['compile_seconds']:.1f}",
        ("" if memory is None else _mebibytes(memory))
        + ("" if temporary is None else f" ({_mebibytes(temporary)} temporary)"),
    )


def number(x: float) -> str:
    """Three digits and a letter for thousands or millions."""
    for size, letter in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if x >= size:
            return f"{x / size:.{max(0, 2 - len(str(int(x / size))) + 1)}f}{letter}"
    return f"{x:.3g}"


def _percent(fraction: float) -> str:
    return f"{100 * fraction:.{0 if fraction >= 0.1 else 1}f} %"


def _mebibytes(count: int) -> str:
    return f"{count / 2**20:,.0f} MiB" if count >= 2**20 else f"{count / 2**10:,.0f} KiB"


def _ceiling(name: str, value: float) -> tuple[str, str]:
    label, size, unit = LABELS[name]
    return label, f"{value / size:,.0f} {unit}"


def _ceilings(found: dict[str, dict[str, Any]]) -> str:
    """A column for each word; where its table comes from several runs, the lowest and the highest of theirs."""

    def best(name, runs):
        ends = [_ceiling(name, end(run[name] for run in runs))[1] for end in (min, max)]
        return ends[0] if ends[0] == ends[1] else f"{ends[0].split()[0]} to {ends[1]}"

    rows = [(LABELS[name][0], *(best(name, document["ceilings"]) for document in found.values())) for name in LABELS]
    return _markdown(("ceiling", *(f"run of `{what}`" for what in found)), rows)


def _markdown(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(cells) + " |" for cells in (headings, ["---"] * len(headings), *rows)]
    return "\n".join(lines)
