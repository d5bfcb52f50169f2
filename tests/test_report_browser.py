"""The report in a real browser, opened from disk: it loads without a complaint, plays, steps and obeys the keyboard."""

import io
import os
import re
from pathlib import Path

import pytest
from rich.console import Console

from envs.rooms import RoomsOptions
from studies.report import site
from tests import tiny, verdicts

BROWSER = Path("/usr/bin/chromium")
ARGUMENTS = (
    "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking", "--disable-component-update",
    "--disable-sync",
)  # fmt: skip
PATIENCE = 120_000
"""Milliseconds that a loaded machine may need."""

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not BROWSER.exists(), reason=f"{BROWSER} is missing: apt-get install chromium"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    out = tmp_path_factory.mktemp("studies")
    arms = {}
    for name, seed in (("first", 0), ("second", 9)):
        run = verdicts.write_run(out / "runs" / name, seed=seed)
        arms[name] = verdicts.arm(out, run)
    verdicts.write(out, runs=arms)
    return site.build(out, 2, Console(file=io.StringIO())).parent


@pytest.fixture(scope="module")
def browser():
    api = pytest.importorskip("playwright.sync_api", reason="uv run --group browser pytest brings playwright")
    with api.sync_playwright() as started:
        opened = started.chromium.launch(executable_path=os.fspath(BROWSER), args=list(ARGUMENTS), timeout=PATIENCE)
        yield opened
        opened.close()


@pytest.fixture
def page(browser):
    """An empty page; what it complains of, or asks a network for, fails the test."""
    context = browser.new_context(viewport={"width": 390, "height": 800}, color_scheme="dark")
    opened, wrong = context.new_page(), []
    opened.set_default_timeout(PATIENCE)
    opened.on("console", lambda message: wrong.append(message.text))
    opened.on("pageerror", lambda error: wrong.append(str(error)))
    opened.on("requestfailed", lambda request: wrong.append(request.url))
    opened.on("request", lambda request: request.url.startswith(("file:", "data:")) or wrong.append(request.url))
    yield opened
    context.close()
    assert wrong == []


@pytest.fixture
def replay(page, folder):
    """The replay of the study's page, loaded."""
    page.goto((folder / "gains-smoke.html").as_uri())
    page.locator("#replay").scroll_into_view_if_needed()
    line(page, "Turn 1 of 4")
    return page


def line(page, words):
    """Wait until the line that tells the turn begins with some words; returns all of it."""
    told = page.locator("[data-part=turn]")
    page.wait_for_function(
        "words => document.querySelector('[data-part=turn]').textContent.startsWith(words)", arg=words
    )
    return told.text_content()


def boards(page):
    """Accessible names of all tiles."""
    return page.eval_on_selector_all(".board-frame td .sprite[role=img]", "all => all.map(x => x.ariaLabel)")


def chances(page):
    """Probabilities before RL and after, as the page tells them, over all turns."""
    page.get_by_role("button", name="First turn").click()
    told = []
    for _ in range(tiny.CONFIG.world.turns):
        told.append(page.locator("[data-part=chances]").all_text_contents())
        page.get_by_role("button", name="One turn on").click()
    return [list(side) for side in zip(*told, strict=True)]


def test_index_and_page_fit_a_narrow_screen(page, folder):
    for name in ("index.html", "gains-smoke.html"):
        page.goto((folder / name).as_uri())
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        pictures = page.eval_on_selector_all("img", "all => all.every(x => x.complete && x.naturalWidth || x.loading)")
        assert pictures
    assert "Is there a gain?" in page.content()


def test_recordings_load_only_when_the_replay_comes_near(page, folder):
    page.goto((folder / "gains-smoke.html").as_uri())
    assert page.evaluate("window.emojimazeReplays === undefined || scrollY === 0")
    assert page.locator("head script").count() == 4
    page.locator("#replay").scroll_into_view_if_needed()
    line(page, "Turn 1 of 4")
    assert page.locator("head script").count() == 5


def test_buttons_step_and_play(replay):
    first = boards(replay)
    assert sum("the agent is here" in name for name in first) == 2
    assert any("not seen yet" in name for name in first)
    replay.get_by_role("button", name="One turn on").click()
    told = line(replay, "Turn 2 of 4")
    assert "Before RL:" in told
    assert "After RL:" in told
    assert "return so far" in told
    replay.get_by_role("button", name="One turn back").click()
    line(replay, "Turn 1 of 4")
    assert boards(replay) == first
    replay.get_by_role("button", name="Last turn").click()
    line(replay, "The end, after 4 turns")
    replay.get_by_role("button", name="First turn").click()
    replay.get_by_role("combobox", name="Speed").select_option("4")
    replay.get_by_role("button", name="Play").click()
    line(replay, "The end")
    replay.get_by_role("button", name="Play").wait_for()  # it has stopped by itself


def test_pause_stops_where_it_is(replay):
    replay.get_by_role("combobox", name="Speed").select_option("0.5")
    replay.get_by_role("button", name="Play").click()
    assert replay.locator("[data-part=turn]").get_attribute("aria-live") == "off"
    line(replay, "Turn 2 of 4")
    replay.get_by_role("button", name="Pause").click()
    stopped = replay.locator("[data-part=turn]").text_content()
    replay.wait_for_timeout(2500)
    assert replay.locator("[data-part=turn]").text_content() == stopped
    assert replay.locator("[data-part=turn]").get_attribute("aria-live") == "polite"


def test_the_keyboard_alone_is_enough(replay):
    replay.locator(".player").focus()
    replay.keyboard.press("ArrowRight")
    line(replay, "Turn 2 of 4")
    replay.keyboard.press("ArrowLeft")
    line(replay, "Turn 1 of 4")
    replay.keyboard.press("End")
    line(replay, "The end")
    replay.keyboard.press("Home")
    line(replay, "Turn 1 of 4")
    replay.keyboard.press("Space")
    line(replay, "Turn 2 of 4")
    replay.keyboard.press("Space")
    replay.get_by_role("button", name="Play").wait_for()
    replay.get_by_role("button", name="One turn on").focus()
    replay.keyboard.press("Home")
    replay.keyboard.press("Space")  # the button's own, and not play as well
    line(replay, "Turn 2 of 4")
    replay.get_by_role("combobox", name="Member").focus()
    replay.keyboard.press("ArrowRight")  # the field's own
    assert not replay.locator("[data-part=turn]").text_content().startswith("Turn 3")


def test_members_mazes_and_arms_can_be_chosen(replay):
    seen = [boards(replay)]
    replay.get_by_role("combobox", name="Maze").select_option(index=1)
    assert replay.get_by_role("combobox", name="Maze").input_value() == "1"
    line(replay, "Turn 1 of 4")
    seen.append(boards(replay))
    assert seen[0] != seen[1]
    before = chances(replay)
    other = "1" if replay.get_by_role("combobox", name="Member").input_value() == "0" else "0"
    replay.get_by_role("combobox", name="Member").select_option(index=int(other))
    line(replay, "Turn 1 of 4")
    changed = chances(replay)
    assert changed[0] == before[0]  # members share their base
    assert changed[1] != before[1]
    replay.get_by_role("combobox", name="Arm").select_option(label="second")
    replay.wait_for_function("Object.keys(window.emojimazeReplays).length === 2")
    assert replay.get_by_role("combobox", name="Maze").input_value() == "1"
    assert replay.get_by_role("combobox", name="Member").input_value() == other
    line(replay, "Turn 1 of 4")
    assert chances(replay)[0] != changed[0]
    assert replay.get_by_text("not trained yet").count() == 1


def test_rooms_are_played_on_a_map_and_told_in_words(page, tmp_path):
    run = verdicts.write_run(tmp_path / "runs" / "rooms", tiny.changed(world=RoomsOptions()))
    verdicts.write(tmp_path, runs={"rooms": verdicts.arm(tmp_path, run)})
    site.build(tmp_path, 2, Console(file=io.StringIO()))
    page.goto((tmp_path / "report" / "gains-smoke.html").as_uri())
    page.locator("#replay").scroll_into_view_if_needed()
    told = line(page, "Turn 1 of ")
    assert re.search(r"After RL: about to begin, [a-z ]+ room", told)
    names = boards(page)
    assert sum("room, the start" in name and "the agent is here" in name for name in names) == 2
    assert sum(", goal" in name for name in names) == 2
    assert sum(bool(re.match(r"(North|East|South|West) door of the [a-z ]+ room", name)) for name in names) >= 2 * (
        RoomsOptions.size - 1
    )
    page.locator(".player").focus()
    page.keyboard.press("ArrowRight")
    told = line(page, "Turn 2 of ")
    assert re.search(r"(bumped [A-Z][a-z]+, a closed door|went [A-Z][a-z]+, to the [a-z ]+ room)", told)
