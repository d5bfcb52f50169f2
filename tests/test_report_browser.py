"""The report in a real browser, opened from disk: it loads without a complaint, draws, plays and obeys the keyboard."""

import io
import itertools
import os
import re
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import xarray as xr
from rich.console import Console
from scipy import stats

from agents import runs
from agents.runs import config as configs
from analysis.measure import REGISTRY, measure
from envs.rooms import RoomsOptions
from ground import files, numbers
from studies.__main__ import NAMES, find
from studies.report import site
from tests import tiny, verdicts

BROWSER = Path("/usr/bin/chromium")
ARGUMENTS = (
    "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking", "--disable-component-update",
    "--disable-sync",
)  # fmt: skip
PATIENCE = 120_000
"""Milliseconds that a loaded machine may need."""
UPDATES = np.array([0, 1, 2, tiny.CONFIG.rl.updates])
EVEN = np.array([[0.3], [0.5], [0.6], [0.9]]) + np.linspace(-0.1, 0.1, 5)
"""Success, float[checkpoint, base], without skewness: intervals are Student's t alone."""
ARMS = {
    "one": EVEN,
    "two": np.array([[0.2, 0.3, 0.2, 0.3, 0.2], [0.4, 0.3, 0.5, 0.2, 0.3], [0.8, 1, 1, 1, 1], [0.1, 1, 1, 1, 1]]),
}
"""Success of two arms; the intervals of the second would leave 0 to 100 %."""

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not BROWSER.exists(), reason=f"{BROWSER} is missing: apt-get install chromium"),
]


def nats(name):
    """KL from the base of an arm, float[checkpoint, base]."""
    return (1 + len(name) % 2) * 0.01 * UPDATES[:, None] ** (2 if name == "one" else 3) * np.arange(1.0, 6)


def planted(out, name):
    """A run that nobody trained, and that keeps what `ARMS` says of its checkpoints."""
    config = tiny.changed(population={"seeds": EVEN.shape[1]}, pretrain={"shared": False})
    run = runs.create(out / "runs" / name, configs.to_dict(config), members=EVEN.shape[1])
    between = [f"rl-{update:06d}" for update in UPDATES[1:-1]]
    for checkpoint in ("init", "pretrain", *between, "rl"):
        run.save_parameters(checkpoint, {"nothing": np.zeros((EVEN.shape[1], 1), np.float32)})
    run.write_summary({"schema": 1, "members": EVEN.shape[1]})

    def divergence(run: runs.Run, checkpoint: str) -> xr.Dataset:
        """Numbers that are known."""
        at = ["pretrain", *between, "rl"].index(checkpoint)
        told = {
            "success": ("member", ARMS[name][at], {"long_name": "success", "units": "share"}),
            "kl": ("member", nats(name)[at], {"long_name": "KL from the base", "units": "nats"}),
        }
        alone = {"drop": ("member", -2000.0 * EVEN[at], {"long_name": "drop"})}
        return xr.Dataset(told | (alone if name == "one" else {}))

    with mock.patch.dict(REGISTRY):  # the explorer takes KL from measurements of this name
        del REGISTRY["divergence"]
        measure(version=1)(divergence)(run, ["pretrain", *between, "rl"])
    return run


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
def courses(tmp_path_factory):
    """The page of courses of known numbers, whose runs cannot be replayed."""
    out = tmp_path_factory.mktemp("courses")
    verdicts.write(out, name="courses", runs={name: verdicts.arm(out, planted(out, name)) for name in ARMS})
    return site.build(out, 2, Console(file=io.StringIO())).with_name("courses-smoke.html")


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    """The first page, with every study's own question and number, and takeaways as long as one would write them."""
    out = tmp_path_factory.mktemp("four")
    for name, verdict in zip(NAMES[:4], itertools.cycle(verdicts.MEANS), strict=False):
        asked = next(one for one in find(name).questions if one.primary)
        told = verdicts.document(verdict, takeaway=f"{'What this study has taught us of it, ' * 4}again.")
        question, estimate = told["questions"][0], asked.criteria[0].estimate
        question["text"], question["criteria"][0]["estimate"] = asked.text, estimate
        told["estimates"][estimate] = told["estimates"].pop("gain")
        (out / name / "smoke").mkdir(parents=True)
        files.write_json(out / name / "smoke" / "verdict.json", told)
    return site.build(out, 2, Console(file=io.StringIO()))


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


@pytest.fixture
def explorer(page, courses):
    """The page of courses, its table unfolded."""
    page.goto(courses.as_uri())
    page.get_by_text("The numbers as a table").click()
    return page


def rows(page):
    """Cells of the table of numbers."""
    script = "all => all.map(row => Array.from(row.cells).map(cell => cell.textContent))"
    return page.eval_on_selector_all("[data-part=numbers] tbody tr", script)


def plain(text):
    """The numbers of a text, each with how far it may be from what it shows."""
    for shown in re.findall(r"−?[\d,]+(?:\.\d+)?", text):
        value = shown.replace("−", "-").replace(",", "")
        yield pytest.approx(float(value), abs=0.5 * 10.0 ** -len(value.partition(".")[2]) + 2e-5 * abs(float(value)))


def curves(page):
    """Places of the points of every curve, float[curve][checkpoint, 2]."""
    lines = page.eval_on_selector_all(".course polyline", "all => all.map(x => x.getAttribute('points'))")
    return [np.array([point.split(",") for point in line.split()], float) for line in lines]


def affine(places, values):
    """Whether places are values on a scale: in a straight line, and not all one."""
    slope, start = np.polyfit(values, places, 1)
    return abs(slope) > 0 and np.allclose(slope * values + start, places, atol=0.05)


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


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_pages_fit_wide_and_narrow_screens(page, folder, courses, scheme):
    page.emulate_media(color_scheme=scheme)
    for path in (folder / "index.html", folder / "gains-smoke.html", courses):
        page.goto(path.as_uri())
        page.evaluate("document.querySelectorAll('details').forEach(fold => { fold.open = true; })")
        for width in (1280, 390):
            page.set_viewport_size({"width": width, "height": 800})
            page.wait_for_function("width => document.documentElement.scrollWidth <= width", arg=width)
            # What is drawn for one width is drawn anew for another.
            page.wait_for_function("width => Array.from(document.querySelectorAll('.course svg')).every("
                                   "x => x.getAttribute('width') <= x.parentNode.clientWidth)", arg=width)  # fmt: skip
        pictures = page.eval_on_selector_all("img", "all => all.every(x => x.complete && x.naturalWidth || x.loading)")
        assert pictures
        assert "Is there a gain?" in page.content()
    strokes = page.eval_on_selector_all(".course polyline", "all => all.map(x => getComputedStyle(x).stroke)")
    assert len(set(strokes)) == len(ARMS)
    paper = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, re.findall(r"\d+", paper))) > 384) == (scheme == "light")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_four_studies_are_seen_at_once(page, index, scheme):
    page.emulate_media(color_scheme=scheme)
    page.set_viewport_size({"width": 1280, "height": 800})
    page.goto(index.as_uri())
    cards = page.locator(".card")
    assert cards.count() == 4
    for card in cards.all():
        for part in ("h3", ":scope > .meta .badge", ".glance > p", ".figure-number", ".interval-plot"):
            box = card.locator(part).bounding_box()
            assert box["y"] + box["height"] < 800, part
            assert box["x"] + box["width"] <= 1280, part
        assert not card.get_by_text("Asked:").is_visible()
        size = "x => parseFloat(getComputedStyle(x).fontSize) * (x.getScreenCTM ? x.getScreenCTM().a : 1)"
        assert min(card.locator("p:visible, text").evaluate_all(f"all => all.map({size})")) > 11
    bottom = "Math.max(...Array.from(document.querySelectorAll('.card')).map(x => x.getBoundingClientRect().bottom))"
    assert page.evaluate(bottom) <= 800
    page.set_viewport_size({"width": 390, "height": 800})
    page.wait_for_function("document.documentElement.scrollWidth <= 390")
    assert page.evaluate("document.documentElement.scrollHeight") <= 2300


def test_the_table_tells_what_numpy_does(explorer):
    world, _ = tiny.CONFIG.world.make()
    tokens = UPDATES * tiny.CONFIG.rl.episodes * world.episode_length() / 1e6
    told = rows(explorer)
    assert [row[0] for row in told] == ["one"] * 4 + ["two"] * 4
    for index, (name, *cells) in enumerate(told):
        at, success = index % 4, 100 * ARMS[name][index % 4]
        position = [UPDATES[at], tokens[at], nats(name)[at].mean()]
        assert position == [number for cell in cells[:3] for number in plain(cell)]
        mean, low, high = plain(cells[3])
        assert success.mean() == mean
        short, long = stats.t.interval(0.95, 4, success.mean(), stats.sem(success))
        if name == "one":
            assert [short, long] == [low, high]
        else:
            assert 0 <= low.expected <= max(short, 0) + 0.5
            assert min(long, 100) - 0.5 <= high.expected <= 100
        assert cells[4] == "5"
    assert "[16, 100]" not in told[-1][4]
    assert told[-1][4].endswith(", 100]")


def test_arm_measure_and_axis_change_curves_and_table(explorer):
    measures, along = (explorer.get_by_role("combobox", name=name) for name in ("Measure", "Along"))
    assert measures.locator("option:checked").text_content() == "success (share)"
    tokens = curves(explorer)
    for axis in ("update", "tokens", "kl"):
        along.select_option(axis)
        for name, places in zip(ARMS, curves(explorer), strict=True):
            assert affine(places[:, 0], nats(name).mean(axis=1) if axis == "kl" else UPDATES)
            assert affine(places[:, 1], ARMS[name].mean(axis=1))
        named = explorer.locator(".course .title").text_content()
        assert {"update": "updates", "tokens": "tokens", "kl": "KL"}[axis] in named
        tokens = curves(explorer) if axis == "tokens" else tokens
    assert not np.allclose(curves(explorer)[0], tokens[0])
    explorer.get_by_role("checkbox", name="one").uncheck()
    assert len(curves(explorer)) == 1
    assert {row[0] for row in rows(explorer)} == {"two"}
    explorer.get_by_role("checkbox", name="one").check()
    measures.select_option(label="drop")
    assert len(curves(explorer)) == 1
    assert explorer.get_by_role("checkbox", name="two").is_disabled()
    assert [next(plain(row[4])) for row in rows(explorer)] == (-2000 * EVEN.mean(axis=1)).tolist()
    assert rows(explorer)[-1][4] == "−1,800 [−1,996, −1,604]"
    explorer.get_by_role("combobox", name="Axis below").select_option("log")
    assert not affine(curves(explorer)[0][:, 0], nats("one").mean(axis=1))


def test_the_keyboard_alone_reaches_the_explorer(page, courses):
    page.goto(courses.as_uri())
    reached = []
    while len(reached) < 40 and (not reached or "The numbers as a table" not in reached[-1]):
        page.keyboard.press("Tab")
        reached.append(page.evaluate("(x => x.getAttribute('aria-label') || x.labels && x.labels[0].textContent || "
                                     "x.textContent)(document.activeElement)"))  # fmt: skip
        keys = {"Measure": ("ArrowDown", "ArrowUp"), "Along": ("End",), "two": ("Space",)}.get(reached[-1], ())
        for key in keys:
            page.keyboard.press(key)
        if reached[-1].startswith("success along"):
            told = page.locator("[data-part=told]")
            last = told.text_content()
            page.keyboard.press("Home")
            assert told.text_content() == "KL 0: one 30 [20, 40] %."
            page.keyboard.press("ArrowRight")
            assert re.fullmatch(r"KL 0\.0\d+: one 50 \[\d+, \d+\] %\.", told.text_content())
            page.keyboard.press("End")
            assert told.text_content() == last
    assert reached[-7:-1] == ["Measure", "Along", "Axis below", "one", "two", reached[-2]]
    assert reached[-2].startswith("success along KL")
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.ariaLabel") == "Numbers of the curves"
    assert {row[0] for row in rows(page)} == {"one"}


def test_numbers_are_written_as_elsewhere(explorer):
    random = np.random.default_rng(0)
    middle = random.normal(size=100) * 10.0 ** random.integers(-4, 6, 100)
    width = np.abs(middle) * 10.0 ** -random.integers(0, 3, 100)
    values = [[float(x), float(x - w), float(x + w)] for x, w in zip(middle, width, strict=True)]
    told = explorer.evaluate("all => all.map(x => emojimazeCommon.shown(x[0], x[1], x[2]))", values)
    assert told == [numbers.shown(*value) for value in values]
    told = explorer.evaluate("all => all.map(x => emojimazeCommon.shown(x[0], null, null))", values)
    assert told == [numbers.shown(value[0]) for value in values]


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


def test_the_slider_shows_the_same_maze_along_training(page, tmp_path):
    run = verdicts.write_run(tmp_path / "runs" / "rooms", tiny.changed(world=RoomsOptions()))
    verdicts.follow(run, [[0, 0], [0.0123, 0.0123], [0.5, 0.5], [1, 2]])
    verdicts.write(tmp_path, runs={"rooms": verdicts.arm(tmp_path, run)})
    site.build(tmp_path, 2, Console(file=io.StringIO()))
    page.goto((tmp_path / "report" / "gains-smoke.html").as_uri())
    page.locator("#replay").scroll_into_view_if_needed()
    assert "After RL: about to begin" in line(page, "Turn 1 of ")
    slider, side = page.get_by_role("slider", name="Along training"), page.locator("[data-part=side]").nth(1)
    shares = side.locator("[data-part=personas] .share").all_text_contents()
    assert sum(int(share.split()[0]) for share in shares) in (99, 100, 101)
    page.get_by_role("button", name="One turn on").click()
    line(page, "Turn 2 of ")
    after = side.locator("[data-part=chances]").text_content()
    slider.focus()
    page.keyboard.press("Home")
    told = line(page, "Turn 2 of ")
    assert "Before RL: " in told
    assert "After 1 update of RL: " in told
    assert "0.012 nats per episode" in side.locator("[data-part=mean]").text_content()
    assert "0.012 nats" in slider.get_attribute("aria-valuetext")
    assert side.locator("[data-part=personas] .chosen").count() == side.get_by_text("its name").count() <= 1
    assert side.locator("[data-part=chances]").text_content() != after
    page.keyboard.press("End")
    assert "After RL: " in line(page, "Turn 2 of ")
    assert side.locator("[data-part=chances]").text_content() == after
