"""The verdicts on disk: found, read and checked before anything is written of them."""

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ground import files
from ground.files import RunError
from studies import claims, study

_NUMBER = (int, float)
_MAYBE = (int, float, type(None))
_ANY = "*"
"""Stands in a specification for every key."""

_CRITERION = {
    "estimate": str,
    "side": frozenset({"above", "below"}),
    "bound": _NUMBER,
    "words": str,
    "verdict": frozenset(claims.VERDICTS),
}
_QUESTION = {
    "name": str,
    "text": str,
    "prediction": str,
    "refutation": str,
    "leading": bool,
    "verdict": frozenset(claims.VERDICTS),
    "criteria": [_CRITERION],
}
_ESTIMATE = {
    "mean": _MAYBE,
    "interval": (list, type(None)),
    "members": int,
    "meaning": str,
    "values": [_MAYBE],
    "control": str,
}
_RUN = {"path": str, "config_hash": str, "members": int, "git": (dict, type(None))}
SHAPE: Mapping[str, Any] = {
    "schema": int,
    "study": str,
    "title": str,
    "claim": str,
    "source": str,
    "method": str,
    "scale": str,
    "members": int,
    "verdict": frozenset(claims.VERDICTS),
    "rule": str,
    "questions": [_QUESTION],
    "estimates": {_ANY: _ESTIMATE},
    "limits": [str],
    "figure": str,
    "alt": str,
    "data": [str],
    "runs": {_ANY: _RUN},
    "config_hash": str,
    "command": str,
    "created": str,
    "seconds": _NUMBER,
    "seconds_of_runs": _NUMBER,
    "git": (dict, type(None)),
    "python": str,
    "platform": str,
    "packages": dict,
    "device": dict,
}
"""What `verdict.json` holds: a type, several of them, a set of words, a list of one kind, or a mapping."""


@dataclasses.dataclass(frozen=True)
class Result:
    """What one study has found at one scale."""

    out: Path
    """Folder of all studies."""
    folder: Path
    """Where the verdict lies."""
    document: Mapping[str, Any]
    """What `verdict.json` holds, as `SHAPE` says."""

    @property
    def name(self) -> str:
        """The study, as its folder is called."""
        return self.folder.parent.name

    @property
    def scale(self) -> str:
        """The scale, as its folder is called."""
        return self.folder.name

    @property
    def stem(self) -> str:
        """What the report calls its files."""
        return f"{self.name}-{self.scale}"

    @property
    def title(self) -> str:
        """Of the study."""
        return self.document["title"]

    @property
    def verdict(self) -> str:
        """Supported, refuted or inconclusive."""
        return self.document["verdict"]

    @property
    def leading(self) -> list[Mapping[str, Any]]:
        """The questions that the verdict rests on."""
        return [question for question in self.document["questions"] if question["leading"]]

    def inside(self, name: str) -> Path | None:
        """A file that the verdict names, if it is there and below the study's folder."""
        return _below(self.folder, name, Path.is_file)

    def run_path(self, name: str) -> Path | None:
        """The run directory of an arm, if it is there and below the folder of all studies."""
        return _below(self.out, self.document["runs"][name]["path"], Path.is_dir)


def _below(folder: Path, name: str, there: Any) -> Path | None:
    try:
        path = (folder / name).resolve()
        return path if path.is_relative_to(folder.resolve()) and there(path) else None
    except (OSError, ValueError):  # a name that no disk knows, such as one with a null byte
        return None


def find(out: Path) -> list[Result]:
    """Every verdict below a folder, by study, the largest scale first.

    Raises:
        RunError: one that cannot be read, in one line that names the file.
    """
    found = []
    for folder in files.entries(out):
        for scale in reversed(study.SCALES):
            path = folder / scale / study.VERDICT
            if path.is_file():
                found.append(Result(out, path.parent, read(path)))
    return sorted(found, key=lambda result: (result.name, -study.SCALES.index(result.scale)))  # pyright: ignore[reportArgumentType]


def read(path: Path) -> dict[str, Any]:
    """A checked verdict.

    Raises:
        RunError: the file is damaged, or of another version.
    """
    remedy = "move it away, or run the study again"
    try:
        document = files.read_json(path)
    except RunError as error:
        raise RunError(str(error).replace("restore it, or train again", remedy)) from error
    schema = document.get("schema")
    if type(schema) is int and schema > study.SCHEMA:
        raise RunError(f"{path}: schema {schema} is newer than {study.SCHEMA}, known here; update emojimaze")
    wrong = _misfit(document, SHAPE, "")
    if wrong is None:
        for name, estimate in document["estimates"].items():
            ends = estimate["interval"]
            if ends is not None and (len(ends) != 2 or any(_misfit(end, _NUMBER, "") is not None for end in ends)):
                wrong = f"estimates.{name}.interval"
                break
    if wrong is not None:
        raise RunError(f"{path}: {wrong or 'it'} is missing or wrong; {remedy}")
    return document


def _misfit(value: Any, wanted: Any, where: str) -> str | None:
    """Where a value is not what is wanted; None if all is well."""
    if isinstance(wanted, frozenset):
        return None if isinstance(value, str) and value in wanted else where
    if isinstance(wanted, list):
        if not isinstance(value, list):
            return where
        parts = ((item, wanted[0], f"{where}[{index}]") for index, item in enumerate(value))
    elif isinstance(wanted, dict):
        if not isinstance(value, dict):
            return where
        prefix = f"{where}." if where else ""
        keys = value if _ANY in wanted else wanted
        parts = ((value.get(key), wanted.get(_ANY, wanted.get(key)), f"{prefix}{key}") for key in keys)
    else:
        kinds = wanted if isinstance(wanted, tuple) else (wanted,)
        finite = not isinstance(value, float) or math.isfinite(value)
        return None if type(value) in kinds and finite else where
    return next((found for part in parts if (found := _misfit(*part)) is not None), None)
