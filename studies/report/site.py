"""Builds the site: pages, style and scripts, and copies of figures, data and recordings, within a fixed size."""

import dataclasses
import re
import shutil
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from agents.runs.config import ConfigError
from envs import sprites
from ground import files
from ground.files import RunError
from studies.report import documents, index, pages, parts, player, recordings
from studies.report.documents import Result
from studies.report.recordings import Recording
from studies.study import Study

FOLDER = "report"
"""Name of the site below the folder of all studies."""
LIMIT = 20 * 2**20
"""Bytes of the whole site; what no longer fits is left out, and the page says so."""
PAGE = 2**17
"""Bytes of it that are kept free for each page."""
ASSETS = ("style.css", "board.js", "player.js")
_OURS = "assets/vocabulary.js"
"""A file by which an older report is known, so that nobody's folder is cleared by mistake."""


@dataclasses.dataclass
class Shelf:
    """The site on disk, and how much of it is filled."""

    folder: Path
    limit: int
    filled: int = 0
    """Bytes written, and kept free for pages."""

    def write(self, name: str, data: bytes) -> None:
        """Write a file that the site cannot do without."""
        path = self.folder / name
        with files.reporting(path, "write"):
            path.parent.mkdir(parents=True, exist_ok=True)
        files.write(path, data)
        self.filled += len(data)

    def offer(self, name: str, data: bytes) -> bool:
        """Write a file if it still fits; returns whether it does."""
        fits = self.filled + len(data) <= self.limit
        if fits:
            self.write(name, data)
        return fits


def build(out: Path, episodes: int, console: Console, missing: Sequence[Study] = (), limit: int = LIMIT) -> Path:
    """Write the site of everything that has been run.

    Args:
        out: folder of all studies; the site is its `report`, made anew.
        episodes: mazes that every member replays.
        console: where to say what is being done.
        missing: studies that have not been run, for the first page.
        limit: bytes of the whole site.

    Returns:
        Path of the first page.

    Raises:
        RunError: nothing has been run, or a verdict is damaged.
    """
    if episodes < 1:
        raise ConfigError(f"--episodes={episodes}: use at least 1")
    results = documents.find(out)
    if not results:
        raise RunError(f"{out}: no study has been run yet; begin with uv run -m studies run NAME")
    folder = out / FOLDER
    if files.entries(folder) and not (folder / _OURS).exists():
        raise RunError(f"{folder}: holds something that is no report; move it away, or choose another --out")
    with files.reporting(folder, "clear"):
        if folder.exists():
            shutil.rmtree(folder)
    shelf = Shelf(folder, limit, PAGE * (len(results) + 1))
    for name in ASSETS:
        shelf.write(f"assets/{name}", (parts.ASSETS / name).read_bytes())
    shelf.write(_OURS, recordings.vocabulary())
    shelf.write("assets/emoji.png", sprites.ATLAS.read_bytes())

    # What matters most comes first: figures, then replays of the largest scales, then data.
    figures = {result.stem: _figure(shelf, result) for result in results}
    played: dict[Path, Recording | str] = {}
    replays = {result.stem: _replays(shelf, result, episodes, played, console) for result in results}
    for result in results:
        arms, notes = replays[result.stem]
        held = pages.Files(figures[result.stem], _data(shelf, result), arms, notes)
        shelf.write(f"{result.stem}.html", pages.page(result, held))
    done = {result.name for result in results}
    waiting = [study for study in missing if study.name not in done]
    shelf.write("index.html", index.page(results, figures, waiting))
    return folder / "index.html"


def _figure(shelf: Shelf, result: Result) -> str | None:
    path = result.inside(result.document["figure"])
    if path is None or path.suffix != ".png":
        return None
    name = f"figures/{result.stem}.png"
    with files.reporting(path, "read"):
        return name if shelf.offer(name, path.read_bytes()) else None


def _data(shelf: Shelf, result: Result) -> dict[str, tuple[str, int]]:
    """Copies of the data files; what no longer fits is linked where it lies."""
    held = {}
    for given in result.document["data"]:
        path = result.inside(given)
        if path is None or path.suffix != ".csv":
            continue
        with files.reporting(path, "read"):
            data = path.read_bytes()
        name = f"data/{result.stem}/{path.name}"
        if not shelf.offer(name, data):
            name = f"../{result.name}/{result.scale}/{path.relative_to(result.folder.resolve())}"
        held[path.name] = (name, len(data))
    return held


def _replays(
    shelf: Shelf, result: Result, episodes: int, played: dict[Path, Recording | str], console: Console
) -> tuple[list[player.Arm], list[str]]:
    """Recordings of the arms of a study, and why some are not there."""
    arms, notes, taken = [], [], set()
    for number, label in enumerate(result.document["runs"]):
        path = result.run_path(label)
        if path is None:
            notes.append(f"{label}: its run is no longer there, so that it cannot be replayed.")
            continue
        if path not in played:
            console.print(f"{result.stem}: playing {label}", highlight=False, markup=False)
            played[path] = _record(path, episodes)
        recording = played[path]
        if isinstance(recording, str):
            notes.append(f"{label} cannot be replayed. {recording}")
            continue
        slug = re.sub(r"[^a-z0-9_]+", "-", label.lower()).strip("-")[:60] or str(number)
        slug = slug if slug not in taken else f"{slug}-{number}"
        taken.add(slug)
        key = f"{result.stem}-{slug}"
        name = f"replays/replay-{key}.js"
        if shelf.offer(name, recordings.script(key, recording)):
            arms.append(player.Arm(key, label, name))
        else:
            notes.append(f"{label}: its replay is left out, so that the report stays below {parts.size(shelf.limit)}.")
    return arms, notes


def _record(path: Path, episodes: int) -> Recording | str:
    """The recording of a run, or why there is none."""
    try:
        return recordings.record(path, episodes)
    except (RunError, ConfigError) as error:
        return str(error).replace(str(path), path.name)  # the site may travel
