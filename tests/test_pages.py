"""Pages: links go somewhere, every page is in the navigation, every measurement has its line, models are today's."""

import dataclasses
import functools
import re
import tomllib
from pathlib import Path

import jax
import pytest

from agents import runs
from agents.runs import config as configs
from analysis import measures
from analysis.measure import REGISTRY

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")] + sorted(DOCS.rglob("*.md"))
NAVIGATION = re.findall(r"^ +- (?:.+: )?(\S+\.md)$", (ROOT / "mkdocs.yml").read_text(encoding="utf-8"), re.MULTILINE)
MODELS = sorted(path.parent for path in (DOCS / "models").glob("*/config.json"))
LARGEST = 500_000
"""Bytes of a policy that is shipped."""


@functools.cache
def prose(page: Path) -> str:
    """A page without its fenced blocks."""
    return re.sub(r"^ *```.*?^ *```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)


@functools.cache
def anchors(page: Path) -> set[str]:
    """What the headings of a page are called in links: as code hosts and the site make them."""
    headings = re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


def lost(page: Path) -> list[str]:
    """Links of a page that go nowhere."""
    wrong = []
    for link in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        if "://" not in link and (not target.exists() or (anchor and anchor not in anchors(target))):
            wrong.append(link)
    return wrong


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_go_somewhere(page):
    assert lost(page) == []


def test_a_lost_link_is_noticed(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("# A `word`, or two\n[a](gone.md) [b](#a-word-or-two) [c](#nowhere) [d](https://e.f)\n")
    assert lost(page) == ["gone.md", "#nowhere"]


def test_every_page_is_in_the_navigation_once():
    assert sorted(NAVIGATION) == sorted(str(page.relative_to(DOCS)) for page in PAGES if DOCS in page.parents)


def test_every_measurement_has_its_line_and_command():
    rows = re.findall(
        r"^\| `([\w-]+)`(?: \(`([\w-]+)`\))? \| (.+) \| `uv run -m analysis ([\w-]+) RUN` \|$",
        (DOCS / "analyses.md").read_text(encoding="utf-8"), re.MULTILINE,
    )  # fmt: skip
    told = {name: words for name, _, words, _ in rows}
    # Tests register measurements of their own while they run.
    ours = {name: one for name, one in REGISTRY.items() if one.function.__module__.startswith("analysis.")}
    assert told == {measurement.name: measurement.summary for measurement in ours.values()}, (
        "docs/analyses.md: give each measurement one row, with the first line of its docstring"
    )
    assert len(rows) == len(told)
    assert {name for name, also, _, asked in rows if asked != name} == set()
    assert {also for _, also, _, _ in rows if also} == {name for name, of in ours.items() if name != of.name}
    assert set(told) == {getattr(measures, name).name for name in measures.__all__}


def test_one_version():
    version = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    assert f"\nversion: {version}\n" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert re.findall(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)[0] == version


@pytest.mark.parametrize("folder", MODELS, ids=lambda folder: folder.name)
def test_a_policy_that_is_shipped_is_what_todays_defaults_make(folder):
    written = [p for name in ("", "metrics", "checkpoints") for p in (folder / name).iterdir() if p.is_file()]
    written += [p for p in (folder / "checkpoints").rglob("*") if p.is_file()]
    assert sum(path.stat().st_size for path in set(written)) <= LARGEST
    run = runs.open(folder)
    today = configs.start("laptop", run.config.world.name)
    assert run.config == dataclasses.replace(today, seed=run.config.seed, population=configs.PopulationConfig(seeds=1))
    assert sum(leaf.size for leaf in jax.tree.leaves(run.kept_parameters("rl"))) > 100_000
    assert run.summary()["return"]["after_rl"][0] > run.summary()["return"]["before_rl"][0]
