"""The verdicts as a table in Markdown, written between markers of a file."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from agents.runs.config import ConfigError
from analysis.figures import learning_curve
from ground import files
from studies import study as frame
from studies.study import Study

BEGIN, END = "<!-- studies: begin -->", "<!-- studies: end -->"
_HEADINGS = ("question", "estimate", "mean and 95 % interval", "its control", "asked", "verdict")


def write(into: Path, out: Path, studies: Sequence[Study]) -> None:
    """Write the verdicts of all studies that have been run into a Markdown file, each at its largest scale.

    Args:
        into: a file with a pair of markers; what lies between them is replaced.
        out: where the results of studies lie.
        studies: which.

    Raises:
        ConfigError: the file has no markers, or nothing has been run.
        RunError: a file cannot be read or written.
    """
    with files.reporting(into, "read"):
        text = into.read_text(encoding="utf-8")
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ConfigError(f"--into={into}: has no lines {BEGIN} and {END}; write them where the table shall stand")
    found = [document for study in studies if (document := _latest(out, study))]
    if not found:
        raise ConfigError(f"--out={out}: holds no verdicts yet; run a study first")
    files.write(into, f"{before}{BEGIN}\n{markdown(found)}{END}{after}".encode())


def _latest(out: Path, study: Study) -> dict[str, Any] | None:
    """The verdict of a study at the largest scale at which it has been run."""
    for scale in reversed(frame.SCALES):
        path = frame.directory(out, study, scale) / frame.VERDICT
        if path.exists():
            return files.read_json(path)
    return None


def markdown(documents: Sequence[dict[str, Any]]) -> str:
    """A table of verdicts, leading questions in bold, and below it what was run."""
    rows = [_row(_HEADINGS), _row(["---"] * len(_HEADINGS))]
    for document in documents:
        rows.append(_row([f"**{document['title']}** ({document['source']})", *[""] * 4, f"**{document['verdict']}**"]))
        for question in document["questions"]:
            for index, criterion in enumerate(question["criteria"]):
                text = f"**{question['text']}**" if question["leading"] else question["text"]
                estimate = document["estimates"].get(criterion["estimate"])
                control = document["estimates"].get(estimate["control"]) if estimate else None
                asked = f"{criterion['side']} {learning_curve.signed(criterion['bound'], 'g')}"
                meaning = estimate["meaning"] if estimate else criterion["words"]
                cells = (text if index == 0 else "", meaning, _number(estimate), _number(control), asked)
                rows.append(_row([*cells, criterion["verdict"]]))
    notes = [
        f"`{document['study']}`: scale {document['scale']}, {document['members']} members, "
        f"{document['seconds_of_runs'] / 60:.0f} minutes of training and {document['seconds'] / 60:.0f} of the last "
        f"command, {_device(document)}, configs {document['config_hash']}, commit {_commit(document)}."
        for document in documents
    ]
    return "\n".join([*rows, "", *notes]) + "\n"


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def _number(estimate: dict[str, Any] | None) -> str:
    if not estimate or not estimate["members"]:
        return ""
    mean = learning_curve.signed(estimate["mean"], "+.2f")
    if not estimate["interval"]:
        return mean
    low, high = (learning_curve.signed(end, "+.2f") for end in estimate["interval"])
    return f"{mean} [{low}, {high}]"


def _device(document: dict[str, Any]) -> str:
    device = document["device"]
    return f"{device['devices']} × {device['kind']}, JAX {document['packages']['jax']}"


def _commit(document: dict[str, Any]) -> str:
    git = document["git"]
    return f"{str(git['commit'])[:12]}{' with changes' if git['dirty'] else ''}"
