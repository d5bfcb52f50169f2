"""The notebook runs from its first cell to its last, as somebody who has cloned the repository runs it."""

import ast
import json
import sys
from pathlib import Path

import pytest

from agents.runs import config as configs
from tests import tiny

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOK = ROOT / "docs" / "tour.ipynb"


@pytest.fixture(scope="module")
def document():
    return json.loads(NOTEBOOK.read_text(encoding="utf-8"))


def sources(document, kind):
    return ["".join(cell["source"]) for cell in document["cells"] if cell["cell_type"] == kind]


def test_it_is_a_notebook_without_outputs(document):
    assert (document["nbformat"], document["nbformat_minor"]) == (4, 5)
    assert len({cell["id"] for cell in document["cells"]}) == len(document["cells"])
    code = [cell for cell in document["cells"] if cell["cell_type"] == "code"]
    assert all((cell["outputs"], cell["execution_count"]) == ([], None) for cell in code)
    for source in sources(document, "code"):
        ast.parse(source)


def test_its_links_lead_somewhere(document):
    text = "\n".join(sources(document, "markdown"))
    links = [part.partition(")")[0] for part in text.split("](")[1:]]
    assert links
    assert all((NOTEBOOK.parent / link).exists() for link in links)


def test_in_a_clone_the_set_up_changes_nothing_but_the_place(document, monkeypatch):
    monkeypatch.chdir(ROOT / "docs")
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr("subprocess.run", lambda *arguments, **options: pytest.fail(f"{arguments}"))
    exec(sources(document, "code")[0], {})
    assert Path.cwd() == ROOT
    assert sys.path[0] == str(ROOT)


def shown(value) -> str:
    """What a notebook makes of the last value of a cell."""
    for name in ("_repr_html_", "_repr_png_"):
        if callable(draw := getattr(value, name, None)) and (picture := draw()):
            assert len(picture) > 100
            return name
    return repr(value)


@pytest.mark.slow
def test_every_cell_runs(document, monkeypatch, tmp_path):
    monkeypatch.setitem(configs.SCALES, "smoke", tiny.CONFIG)
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "path", [*sys.path])
    names: dict = {}
    faces = []
    for place, source in enumerate(sources(document, "code")):
        if place == 1:  # after the set-up; nothing is written
            monkeypatch.chdir(tmp_path)
        tree = ast.parse(source)
        last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
        exec(compile(tree, str(NOTEBOOK), "exec"), names)
        if last is not None:
            value = eval(compile(ast.Expression(last.value), str(NOTEBOOK), "eval"), names)  # noqa: S307 (our own)
            faces += [] if value is None else [shown(value)]
    png, html = "_repr_png_", "_repr_html_"
    assert faces == [png, html, png, html, png, png, png]  # maze, run, curve, replay, concepts, steering, ledger
    assert names["run"].members == 4
    assert not list(tmp_path.iterdir())
