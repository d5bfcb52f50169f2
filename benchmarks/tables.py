"""What was measured as tables in Markdown, on the terminal or between markers, made from the JSON alone."""

import contextlib
import dataclasses
import json
import re
from collections.abc import Callable, Mapping, Sequence, Set
from pathlib import Path
from typing import Annotated, Any

import tyro

from agents.runs.config import ConfigError
from benchmarks.machine import CEILINGS
from ground import files, terminal

SCHEMA = 1
"""Version of the documents that `--json` writes."""

KEYS = frozenset({"schema", "what", "machine", "ceilings", "results", "ratios"})
"""What such a document has."""

HEADINGS = ("case", "median per second", "lowest", "highest", "fraction of the limit", "compile, s", "memory")


@dataclasses.dataclass(frozen=True)
class Report:
    """Write the tables of earlier measurements."""

    files: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """What `--json` wrote; of measurements, where two hold the same case, the later one counts."""
    into: Path | None = None
    """A Markdown file with a pair of markers for every table; without it, the tables are printed."""


def report(arguments: Sequence[str], prog: str, keys: Set[str], sections: Callable[[list], dict[str, str]]) -> None:
    """Carry out `report FILE... [--into PAGE]`.

    Args:
        arguments: what follows the word `report`.
        prog: what its help calls it.
        keys: that every document has.
        sections: of the documents, marker → Markdown.

    Raises:
        ConfigError: a file is no such document, or the page has no place for it.
        RunError: the page cannot be written.
    """
    asked = terminal.read(Report, arguments, prog=prog)
    if not asked.files:
        raise ConfigError("report: no files; give those that --json wrote")
    documents = [read(path, keys) for path in asked.files]
    for path, document in zip(asked.files, documents, strict=True):
        with whole(path):
            sections([document])
    with whole(*asked.files):
        named = sections(documents)
    if asked.into:
        put(asked.into, named)
    else:
        print("\n\n".join(named.values()))


def whole(*paths: Path) -> contextlib.AbstractContextManager[None]:
    """Name the files where something that is read of them is missing, or is no such thing; raises ConfigError."""
    return files.shaped(f"{', '.join(map(str, paths))}: lacks something", "measure again with --json", ConfigError)


def check(only: str, file: Path | None, keys: Set[str] = KEYS) -> None:
    """Refuse a choice of cases that is no regular expression, and a file of figures that cannot be.

    Args:
        only: the choice.
        file: of figures, if they are to be written.
        keys: that such a file has already, where it is there.

    Raises:
        ConfigError: one line that names the option, its value and the remedy.
    """
    try:
        re.compile(only)
    except re.error as error:
        raise ConfigError(f"--only={only}: {error}; use a regular expression") from None
    files.check_json(file, keys)


def read(path: Path, keys: Set[str] = KEYS) -> dict[str, Any]:
    """A document that `--json` wrote, with these keys.

    Raises:
        ConfigError: it is none; one line says why.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror or error}; give files that --json wrote") from None
    except (ValueError, RecursionError):
        raise ConfigError(f"{path}: not JSON; give files that --json wrote") from None
    if not isinstance(document, dict) or not document.keys() >= keys or document.get("schema", SCHEMA) != SCHEMA:
        raise ConfigError(f"{path}: not a benchmark of schema {SCHEMA}; measure again with --json")
    return document


def merged(documents: Sequence[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """One document for each word on the command line; of a case measured twice the later result is kept.

    Every result keeps the fraction of its own run's ceilings; `ceilings` becomes the list of those of all runs.

    Raises:
        ConfigError: they come from different machines.
    """
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


def sections(documents: Sequence[dict[str, Any]]) -> dict[str, str]:
    """Marker → Markdown, of documents `merged`."""
    by_word, machine = merged(documents), documents[0]["machine"]
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


def put(path: Path, named: Mapping[str, str]) -> None:
    """Put sections between the markers of their names.

    Raises:
        ConfigError: the file cannot be read, or has no marker for a section; nothing is written.
        RunError: it cannot be written, and stays as it was.
    """
    try:
        text = path.read_text(encoding="utf-8")
        for name, section in named.items():
            start, end = f"<!-- benchmarks: {name} -->", "<!-- benchmarks: end -->"
            parts = re.split(f"(?<={start}\n).*?(?={end})", text, maxsplit=1, flags=re.DOTALL)
            if len(parts) != 2 or start in parts[1]:
                raise ConfigError(f"--into={path}: expected one pair of markers '{start}' and '{end}'; add them")
            text = f"\n{section}\n\n".join(parts)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--into={path}: {files.one_line(error)}; give a Markdown file with markers") from None
    files.write(path, text.encode())


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
    """Three digits and a letter for thousands, millions, and on to millions of millions."""
    for size, letter in ((1e12, " T"), (1e9, " G"), (1e6, " M"), (1e3, " k")):
        if x >= size:
            return f"{x / size:.{max(3 - len(str(int(x / size))), 0)}f}{letter}"
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
