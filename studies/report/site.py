"""Builds the site: pages from templates, style and scripts, copies of figures, data and recordings, in a fixed size.

A study's texts come from files that anybody may have written: the templates escape all of them.
"""

import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import jinja2
import markupsafe
from rich.console import Console

from envs import sprites
from ground import files
from ground.files import RunError
from ground.terminal import ConfigError
from studies import questions
from studies.report import explorer, pictures, recordings, results
from studies.report.results import Result
from studies.study import Study

FOLDER = "report"
"""Name of the site below the folder of all studies."""
LIMIT = 20 * 2**20
"""Bytes of the whole site; what no longer fits is left out, and the page says so."""
PAGE = 2**17
"""Bytes of it that are kept free for each page."""
_HERE = Path(__file__).parent
_OURS = "assets/vocabulary.js"
"""A file by which an older report is known, so that nobody's folder is cleared by mistake."""
_ARXIV = re.compile(r"arXiv (\d{4}\.\d{4,5})")


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
            path.write_bytes(data)
        self.filled += len(data)

    def offer(self, name: str, path: Path | None = None, data: bytes = b"") -> str | None:
        """Write data, or a copy of a file, if it still fits; the name where it does."""
        if path is not None:
            with files.reporting(path, "read"):
                data = path.read_bytes()
        if not data or self.filled + len(data) > self.limit:
            return None
        self.write(name, data)
        return name


def build(out: Path, episodes: int, console: Console, studies: Sequence[Study] = (), limit: int = LIMIT) -> Path:
    """Write the site of everything that has been run.

    Args:
        out: folder of all studies; the site is its `report`, of which an older one stays until this one is whole.
        episodes: mazes that every member replays.
        console: where to say what is being done.
        studies: all there are; the first page names those that have not been run.
        limit: bytes of the whole site.

    Returns:
        Path of the first page.

    Raises:
        RunError: nothing has been run, or a verdict is damaged.
    """
    if episodes < 1:
        raise ConfigError(f"--episodes={episodes}: use at least 1")
    found = results.find(out)
    if not found:
        raise RunError(f"{out}: no study has been run yet; begin with uv run -m studies run NAME")
    folder = out / FOLDER
    if files.entries(folder) and not (folder / _OURS).exists():
        raise RunError(f"{folder}: holds something that is no report; move it away, or choose another --out")
    files.sweep(out)
    with files.reporting(folder, "write"), files.replacing(folder, folder=True) as partial:
        _fill(Shelf(partial, limit, PAGE * (len(found) + 1)), found, episodes, console, studies)
    return folder / "index.html"


def _fill(shelf: Shelf, found: Sequence[Result], episodes: int, console: Console, studies: Sequence[Study]) -> None:
    """Write pages and all that they need."""
    for path in sorted((_HERE / "assets").iterdir()):
        shelf.write(f"assets/{path.name}", path.read_bytes())
    shelf.write(_OURS, recordings.vocabulary())
    shelf.write("assets/emoji.png", sprites.ATLAS.read_bytes())

    # What matters most comes first: figures, then courses, then replays of the largest scales, then data.
    figures = {
        result.stem: shelf.offer(f"figures/{result.stem}.png", result.inside(result.document.get("figure")))
        for result in found
    }
    courses = {result.stem: _courses(shelf, result) for result in found}
    played: dict[Path, recordings.Recording | str] = {}
    replays = {result.stem: _replays(shelf, result, episodes, played, console) for result in found}
    groups = results.by_study(found)
    for result in found:
        held = {
            path.name: shelf.offer(f"data/{result.stem}/{path.name}", path)
            for path in map(result.inside, result.document["files"])
            if path is not None
        }
        caption = shelf.offer(f"figures/{result.stem}.txt", data=_caption(result).encode())
        page = {
            "figure": figures[result.stem],
            "links": _links(result, held) | ({"caption": caption} if caption else {}),
            "data": held,
            "course": courses[result.stem],
            "replay": replays[result.stem],
            "others": [other for other in groups[result.name] if other is not result],
        }
        with result.whole():
            text = _page("study.html", r=result, **page)
        shelf.write(f"{result.stem}.html", text)
    waiting = [study for study in studies if study.name not in groups]
    shelf.write("index.html", _page("index.html", groups=groups, waiting=waiting))


def _page(template: str, **content: Any) -> bytes:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_HERE / "templates"), autoescape=True, undefined=jinja2.StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.filters |= {
        "shown": results.shown, "source": _source, "probability": results.probability, "link": quote,
        "duration": _duration, "commit": _commit, "outcome": results.outcome, "plot": pictures.interval_plot,
        "agreement": questions.agreement,
    }  # fmt: skip
    return environment.get_template(template).render(words=questions.WORDS, rule=questions.RULE, **content).encode()


def _source(text: str) -> markupsafe.Markup:
    """A source, its arXiv numbers as links."""
    parts = _ARXIV.split(str(text))  # text, number, text, …
    link = markupsafe.Markup('<a href="https://arxiv.org/abs/{0}" rel="noreferrer">arXiv {0}</a>')
    return markupsafe.Markup("").join(link.format(part) if index % 2 else part for index, part in enumerate(parts))


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _commit(git: dict[str, Any] | None) -> str:
    if not git or not git.get("commit"):
        return "unknown"
    return f"{str(git['commit'])[:12]}{', files changed' if git.get('dirty') else ''}"


def _caption(result: Result) -> str:
    """The caption of a study's figure, as a text of its own."""
    told = result.document
    identity = f"{result.name}, scale {result.variant}, {told.get('bases')} bases, configs {told.get('config_hash')}"
    return "\n\n".join(map(str, (f"{told.get('title')}: {told.get('words')}", told.get("meaning"), identity))) + "\n"


def _links(result: Result, held: dict[str, str | None]) -> dict[str, str]:
    """The figure in other forms: its PDF and the CSV of what is drawn, where they are in the site."""
    stem = Path(str(result.document.get("figure"))).stem
    forms = {ending.upper(): held.get(f"{stem}.{ending}") for ending in ("pdf", "csv")}
    return {name: path for name, path in forms.items() if path}


def _courses(shelf: Shelf, result: Result) -> dict[str, Any]:
    """The script of a study's courses, and what is missing."""
    paths = {label: path for label in result.document["runs"] if (path := result.run_path(label))}
    document, notes = explorer.gather(paths)
    if document is None:
        nothing = f"No run kept a measurement of {explorer.FEWEST} checkpoints or more."
        return {"script": None, "notes": [*notes, nothing]}
    written = shelf.offer(f"courses/{result.stem}.js", data=explorer.script(document))
    left_out = [] if written else ["The courses are left out, so that the report stays below its size."]
    return {"script": written, "notes": notes + left_out}


def _replays(
    shelf: Shelf, result: Result, episodes: int, played: dict[Path, recordings.Recording | str], console: Console
) -> dict[str, Any]:
    """Recordings of the arms of a study, and why some are not there."""
    arms: list[dict[str, str]] = []
    notes: list[str] = []
    for number, label in enumerate(result.document["runs"]):
        path = result.run_path(label)
        if path is None:
            notes.append(f"{label}: its run is no longer there, so that it cannot be replayed.")
            continue
        if path not in played:
            console.print(f"{result.stem}: playing {label}", highlight=False, markup=False)
            try:
                played[path] = recordings.record(path, episodes)
            except (RunError, ConfigError) as error:
                played[path] = str(error).replace(str(path), path.name)  # the site may travel
        recording = played[path]
        if isinstance(recording, str):
            notes.append(f"{label} cannot be replayed. {recording}")
            continue
        key = f"{result.stem}-{number}-{re.sub(r'[^a-z0-9_]+', '-', label.lower()).strip('-')[:60]}"
        if name := shelf.offer(f"replays/replay-{key}.js", data=recordings.script(key, recording)):
            arms.append({"key": key, "label": label, "path": name})
        else:
            notes.append(f"{label}: its replay is left out, so that the report stays below its size.")
    return {"arms": arms, "notes": notes}
