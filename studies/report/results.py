"""Verdicts on disk: found, checked where they come from files that anybody may have written, and kept for good."""

import contextlib
import dataclasses
import datetime
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2

from ground import files, numbers
from ground.estimates import INDEPENDENT
from ground.files import RunError
from ground.terminal import ConfigError
from studies.study import SCALES, SCHEMA, VERDICT, Study

BEGIN, END = "<!-- studies: begin -->", "<!-- studies: end -->"
"""Between these lines of a Markdown file the table of verdicts stands."""


@dataclasses.dataclass(frozen=True)
class Result:
    """A study that has been run, at one scale and seed."""

    folder: Path
    document: dict[str, Any]
    """What `verdict.json` holds."""

    @property
    def name(self) -> str:
        """The study's."""
        return self.folder.parent.name

    @property
    def variant(self) -> str:
        """Scale, and seed where it is another than 0."""
        return self.folder.name

    @property
    def stem(self) -> str:
        """Of its files in the site."""
        return f"{self.name}-{self.variant}"

    @property
    def rank(self) -> tuple[int, int]:
        """Larger scales first, and the first seed before its replications."""
        return (-SCALES.index(self.document["scale"]), self.document["seed"])

    @property
    def deciding(self) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any] | None]:
        """The question that says what the study says, the primary if it does; likewise a criterion; its estimate."""
        questions, verdict = self.document["questions"], self.document.get("verdict")
        leading = sorted((one for one in questions if one["leading"]), key=lambda one: not one["primary"]) or questions
        question = next((one for one in leading if one["verdict"] == verdict), leading[0])
        criteria = question["criteria"]
        criterion = next((one for one in criteria if one["verdict"] == question["verdict"]), criteria[0])
        return question, criterion, self.document["estimates"].get(criterion["estimate"])

    @property
    def stated_first(self) -> bool | None:
        """Whether the criteria were committed before the first run began; None where that is not known."""
        criteria, created = self.document["criteria"], [run.get("created") for run in self.document["runs"].values()]
        if not criteria["date"] or not created or not all(created):
            return None
        return not criteria["dirty"] and _utc(criteria["date"]) < min(map(_utc, created))

    def whole(self) -> contextlib.AbstractContextManager[None]:
        """Name the verdict where something that is read of it is missing, or is no such thing.

        Raises:
            RunError: in one line.
        """
        complaint, remedy = f"{self.folder / VERDICT}: lacks something", "run the study again, or move it away"
        return files.shaped(complaint, remedy, also=(jinja2.TemplateError,))

    def inside(self, name: object) -> Path | None:
        """A file of its folder; None where there is none of that name, or it lies elsewhere."""
        path = (self.folder / str(name)).resolve()
        return path if path.is_file() and path.parent == self.folder.resolve() else None

    def run_path(self, arm: str) -> Path | None:
        """The run of an arm; None where it is gone, or lies outside the folder of all studies."""
        out = self.folder.parent.parent.resolve()
        path = (out / str(self.document["runs"][arm]["path"])).resolve()
        return path if path.is_relative_to(out) and (path / "config.json").is_file() else None


def _utc(text: str) -> datetime.datetime:
    return datetime.datetime.fromisoformat(text).astimezone(datetime.UTC)


def find(out: Path) -> list[Result]:
    """Every verdict below a folder, study by study, the largest scale first.

    Raises:
        RunError: a verdict is damaged, or of another version.
    """
    results = []
    for path in sorted(out.glob(f"*/*/{VERDICT}")):
        document = files.read_json(path)
        scale, seed, runs = (document.get(key) for key in ("scale", "seed", "runs"))
        known = document.get("schema") == SCHEMA and scale in SCALES and type(seed) is int
        arms = isinstance(runs, dict) and all(isinstance(run, dict) and "path" in run for run in runs.values())
        if not (known and arms and isinstance(document.get("files"), list)):
            raise RunError(f"{path}: no verdict of this version; run the study again, or move it away")
        results.append(Result(path.parent, document))
    return sorted(results, key=lambda result: (result.name, *result.rank))


def by_study(results: Sequence[Result]) -> dict[str, list[Result]]:
    """The results of each study, the one that counts first."""
    return {name: list(group) for name, group in itertools.groupby(results, key=lambda result: result.name)}


def keep(out: Path, into: Path, studies: Sequence[Study]) -> tuple[list[Path], list[str]]:
    """Copy what must last into a folder, and write the table of verdicts into its README.md.

    A study's results are never replaced by those of a smaller scale.

    Args:
        out: folder of all studies.
        into: such as docs/results; its README.md has the lines `BEGIN` and `END`.
        studies: whose table.

    Returns:
        What was written, and a line for everything that was left as it is.

    Raises:
        ConfigError: no such file, or not UTF-8, or without the lines; nothing has been run; both are one folder.
        RunError: a file cannot be read or written.
    """
    if into.resolve() == out.resolve():
        raise ConfigError(f"--into={into}: is --out={out} itself; choose another folder")
    page = into / "README.md"
    if not page.is_file():
        raise ConfigError(f"--into={into}: has no README.md; make one with the lines {BEGIN} and {END}")
    try:
        with files.reporting(page, "read"):
            text = page.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(f"--into={into}: README.md is not UTF-8 ({error}); save it as UTF-8") from None
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ConfigError(f"--into={into}: README.md has no lines {BEGIN} and {END}; write them where the table goes")
    fresh = find(out)
    if not fresh:
        raise ConfigError(f"--out={out}: holds no verdicts yet; run a study first")
    old, notes, written = find(into), [], []
    together = {(one.name, one.rank): one for one in (*old, *fresh)}  # a fresh one takes the place of an old one
    largest = {one.name: one for one in sorted(together.values(), key=lambda one: one.rank, reverse=True)}
    lasting = [one for one in together.values() if one.rank[0] == largest[one.name].rank[0]]
    table = markdown(lasting, studies)  # refuses what is damaged before anything is replaced
    for result in fresh:
        if result not in lasting:
            first = largest[result.name]
            notes.append(f"{result.name}: {first.variant} is kept there; {result.variant} is smaller and left out")
            continue
        target = into / result.name / result.variant
        with files.reporting(target, "write"):
            target.mkdir(parents=True, exist_ok=True)
            for path in (result.folder / VERDICT, *map(result.inside, result.document["files"])):
                if path is not None:
                    files.write(target / path.name, path.read_bytes())
                    written.append(target / path.name)
    for result in old:
        if result.rank[0] > largest[result.name].rank[0]:
            with files.reporting(result.folder, "remove"):
                files.remove(result.folder)
    files.write(page, f"{before}{BEGIN}\n{table}{END}{after}".encode())
    return [page, *written], notes


def markdown(results: Sequence[Result], studies: Sequence[Study]) -> str:
    """The verdicts as a table, replications below the first; studies without one say so."""
    rows = ["| study | verdict | deciding number | asked | what was learnt |", "|---|---|---|---|---|"]
    for study in studies:
        run = sorted((result for result in results if result.name == study.name), key=lambda result: result.rank)
        for result in run:
            with result.whole():
                _, criterion, estimate = result.deciding
                told = result.document
                commit = told["criteria"]["commit"][:12] or "unknown"
                about = (
                    f"{told['title']} ({told['source']}; {result.variant}, {told['bases']} bases, criteria {commit})"
                )
                number = shown(estimate) if estimate else "–"
                cells = (about, told["words"], number, criterion["words"], told["takeaway"] or "")
                rows.append(f"| {' | '.join(map(_cell, cells))} |")
        if not run:
            rows.append(f"| {_cell(study.title)} | not run yet | | | |")
    return "\n".join(rows) + "\n"


def shown(estimate: dict[str, Any]) -> str:
    """The mean of an estimate and its interval."""
    mean, ends = estimate["mean"], estimate["interval"] or (None, None)
    return numbers.shown(*(float("nan") if value is None else float(value) for value in (mean, *ends)))


def outcome(criterion: dict[str, Any], estimate: dict[str, Any] | None) -> str:
    """What became of a criterion, as a sentence."""
    if estimate is None or estimate["mean"] is None:
        return "It was not measured at this scale."
    if not estimate["interval"]:
        return f"Fewer than {INDEPENDENT} bases have no interval, and decide nothing."
    bar, (low, high) = criterion["bar"], estimate["interval"]
    side = "above" if low > bar else "below" if high < bar else ""
    if not side:
        return f"The interval contains {numbers.signed(bar, 'g')}."
    said = f"The interval lies wholly {side} {numbers.signed(bar, 'g')}"
    if (side == "above") == (criterion["side"] == ">"):
        return f"{said}, as predicted."
    against = "against the prediction" if criterion["smallest"] is not None else "where it is not shown, nor refuted"
    return f"{said}, {against}."


def probability(value: float) -> str:
    """A p value."""
    return "below 0.001" if value < 0.001 else numbers.number(value, 3)


def _cell(text: Any) -> str:
    return " ".join(str(text).replace("|", "\\|").replace("<", "&lt;").split())
