"""The static report: whole, safe with any text, small, and true to what was played."""

import io
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rich.console import Console

from analysis.figures import replays
from envs import tokens
from envs.replay import Replay
from ground import seeds
from ground.files import RunError
from studies import __main__ as command
from studies.report import pictures, recordings, results, site
from tests import tiny, verdicts

HOSTILE = "</script></title><script>alert(1)</script><img src=x onerror=alert(1)>\"'&amp;"
QUIET = Console(file=io.StringIO())


class Page(HTMLParser):
    """Elements of a page with their attributes, and its text; refuses tags that do not close in order."""

    def __init__(self, path):
        super().__init__()
        self.elements, self.text, self.open = [], "", []
        self.feed(path.read_text())
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in {"img", "input", "link", "meta"}:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data

    def all(self, name):
        return [attributes for tag, attributes in self.elements if tag == name]


def build(out, **options):
    """Build the site; its pages by name."""
    index = site.build(out, 2, QUIET, **options)
    return {path.name: Page(path) for path in index.parent.glob("*.html")}


def contents(folder):
    """Every file below a folder, by name."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def studied(tmp_path_factory):
    """A folder with a run, and the verdict of a study of it."""
    out = tmp_path_factory.mktemp("studies")
    run = verdicts.write_run(out / "runs" / "ppo-1")
    lost = verdicts.arm(out, run) | {"path": "runs/lost"}
    verdicts.write(out, runs={"PPO (ours)": verdicts.arm(out, run), "lost": lost})
    return out, run, build(out)


def recorded(out):
    """The recording that the page loads, as its script holds it."""
    text = (out / "report" / "replays" / "replay-gains-smoke-0-ppo-ours.js").read_text()
    found = re.fullmatch(r".*\)\[(\".*?\")\] = (\{.*\});\n", text)
    assert found is not None
    key, document = found.groups()
    assert json.loads(key) == "gains-smoke-0-ppo-ours"
    return json.loads(document)


@pytest.mark.parametrize("verdict", verdicts.MEANS)
def test_pages_tell_what_the_verdict_holds(tmp_path, verdict):
    verdicts.write(tmp_path, verdict=verdict)
    pages = build(tmp_path)
    assert set(pages) == {"index.html", "gains-smoke.html"}
    document = verdicts.document(verdict)
    told = " ".join(pages["gains-smoke.html"].text.split())
    for key in ("title", "claim", "method", "rule", "command", "config_hash", "platform", "takeaway"):
        assert document[key] in told
    for question in document["questions"]:
        for key in ("text", "prediction", "refutation"):
            assert question[key] in told
        for criterion in question["criteria"]:
            assert criterion["words"] in told
    for name, estimate in document["estimates"].items():
        assert name in told
        assert estimate["meaning"] in told
        assert results.shown(estimate) in told
    for comparison in document["compared"]:
        assert comparison["paper"] in told
        assert comparison["differs"] in told
    first = " ".join(pages["index.html"].text.split())
    assert first.index(document["questions"][0]["text"]) < first.index(document["takeaway"])
    assert first.index(document["takeaway"]) < first.index(document["claim"])
    for page in pages.values():
        badges = [attributes["class"] for attributes in page.all("span") if "badge" in attributes.get("class", "")]
        assert f"badge {verdict}" in badges
        assert document["words"] in page.text
        assert document["command"] in page.text


def test_the_pages_say_whether_criteria_came_before_runs(tmp_path):
    run = verdicts.write_run(tmp_path / "runs" / "one")
    for number, (created, words) in enumerate(
        (("2026-11-21T10:00:00+01:00", "stated before the first run began"),
         ("2026-11-20T09:30:00+01:00", "changed after the first run began"),
         (None, "whether before the runs is not known"))
    ):  # fmt: skip
        arm = verdicts.arm(tmp_path, run) | {"created": created, "path": "runs/lost"}
        verdicts.write(tmp_path / str(number), runs={"one": arm})
        assert words in build(tmp_path / str(number))["gains-smoke.html"].text


def test_no_text_becomes_markup(tmp_path):
    run = verdicts.write_run(tmp_path / "runs" / "one")
    gone = verdicts.arm(tmp_path, run) | {"path": f"runs/{HOSTILE}", "config_hash": HOSTILE}
    verdicts.write(tmp_path, words=HOSTILE, runs={HOSTILE: gone, f"2{HOSTILE}": gone})
    pages = build(tmp_path)
    for page in pages.values():
        assert HOSTILE in page.text
        assert not page.all("script")
        assert all("onerror" not in attributes for _, attributes in page.elements)
        assert {image["alt"] for image in page.all("img")} <= {verdicts.document(words=HOSTILE)["alt"]}
        for anchor in page.all("a"):
            assert anchor["href"].startswith(("#", "https://arxiv.org/abs/2", "gains", "index", "figures/", "data/"))


def test_everything_on_the_pages_is_there_and_can_be_used_by_all(studied):
    out, _, pages = studied
    folder = out / "report"
    for page in pages.values():
        identities = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
        assert len(identities) == len(set(identities))
        for _, attributes in page.elements:
            for key in ("aria-labelledby", "for"):
                assert attributes.get(key, identities[0]) in identities
            for key in ("src", "href", "data-script"):
                target = attributes.get(key)
                if not target or target.startswith(("https://arxiv.org/", "data:")):
                    continue
                if target.startswith("#"):
                    assert target[1:] in identities
                else:
                    assert (folder / unquote(target)).is_file()
        assert all(image["alt"] for image in page.all("img"))
        assert all(script.get("type") is None for script in page.all("script"))  # modules do not load from disk
        assert all(button["type"] == "button" and button["aria-label"] for button in page.all("button"))
        assert [len(page.all(name)) for name in ("main", "h1", "title", "html")] == [1, 1, 1, 1]
        assert page.all("html")[0]["lang"] == "en"
    for name in ("style.css", "common.js", "board.js", "player.js", "explorer.js"):
        told = (folder / "assets" / name).read_text()
        assert "fetch(" not in told
        assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", told)
        assert "innerHTML" not in told


def sides(out, run):
    """What was played, by member, episode and side, played once more and not cropped."""
    config = tiny.CONFIG
    params = config.world_params()
    keys = jax.random.split(seeds.held_out("report"), 2)
    for member in range(run.members):
        played = []
        for name in ("pretrain", "rl"):
            own, at = jax.tree.map(lambda x, m=member: jnp.asarray(x[m]), (run.parameters(name), params))
            played.append(replays.record(config, own, at, keys, ""))
        yield list(zip(*played, strict=True))


def test_recordings_hold_what_was_played(studied):
    out, run, _ = studied
    document = recorded(out)
    assert document["sides"] == ["before RL", "after RL"]
    assert [member["returns"] for member in document["members"]] == [[-1, 0], [-1, 1]]
    for member, played in zip(document["members"], sides(out, run), strict=True):
        for episode, pair in zip(member["episodes"], played, strict=True):
            height, width = episode["height"], episode["width"]
            starts = []
            for side, replay in zip(episode["sides"], pair, strict=True):
                assert isinstance(replay, Replay)
                positions = np.array(side["positions"]).reshape(-1, 2)
                corner = replay.positions[0] - positions[0]
                starts.append(corner)
                np.testing.assert_array_equal(positions + corner, replay.positions)
                np.testing.assert_array_equal(np.array(side["midpoints"]).reshape(-1, 2) + corner, replay.midpoints)
                window = replay.tiles[:, corner[0] : corner[0] + height, corner[1] : corner[1] + width]
                tiles = np.array([int(digit) for digit in side["board"]])
                for turn, changes in enumerate([[], *side["changes"]]):
                    tiles[changes[::2]] = changes[1::2]
                    np.testing.assert_array_equal(tiles.reshape(height, width), window[turn])
                for turn in range(replay.turns + 1):
                    seen = replay.seen(turn)[corner[0] : corner[0] + height, corner[1] : corner[1] + width]
                    np.testing.assert_array_equal(np.array(side["seen"]).reshape(height, width) <= turn, seen)
                assert [int(x) for x in side["actions"]] == replay.actions.tolist()
                assert [int(x) for x in side["winds"]] == replay.winds.tolist()
                np.testing.assert_allclose(side["rewards"], replay.rewards, atol=1e-4)
                found = np.array(side["probabilities"]).reshape(-1, 4) / 1000
                assert replay.probabilities is not None
                np.testing.assert_allclose(found, replay.probabilities, atol=6e-4)
                observations = np.reshape(side["observations"], (replay.turns, -1)).tolist()
                assert observations == [replay.observation(turn) for turn in range(replay.turns)]
                assert episode["tileMap"] == list(tokens.TILE_MAP)
            np.testing.assert_array_equal(*starts)  # one window for both sides
            assert episode["sides"][0]["values"] is None  # the value head has not been trained yet
            np.testing.assert_allclose(episode["sides"][1]["values"], pair[1].values, atol=6e-4)


def test_values_are_shown_of_members_that_learn_them(tmp_path):
    population = {"seeds": 1, "sweep": ("rl.value_weight=0.5,0",)}
    run = verdicts.write_run(tmp_path / "run", tiny.changed(population=population))
    replays = recordings.record(run.path, 1).replays
    assert [pair[0][1].values is not None for pair in replays] == [True, False]


def test_what_is_missing_is_said(studied):
    _, _, pages = studied
    assert "lost: its run is no longer there" in pages["gains-smoke.html"].text


def test_a_figure_that_is_missing_is_told_in_words(tmp_path):
    path = verdicts.write(tmp_path)
    (path.parent / "gains.png").unlink()
    page = build(tmp_path)["gains-smoke.html"]
    assert not page.all("img")
    assert verdicts.document()["alt"] in page.text


def test_every_form_of_a_figure_can_be_reached(tmp_path):
    verdicts.write(tmp_path)
    (tmp_path / "gains" / "smoke" / "gains.pdf").write_bytes(b"%PDF")
    path = tmp_path / "gains" / "smoke" / "verdict.json"
    told = json.loads(path.read_text())
    del told["crc32"]
    told["files"].append("gains.pdf")
    path.write_text(json.dumps(told))
    page = build(tmp_path)["gains-smoke.html"]
    links = {anchor["href"] for anchor in page.all("a")}
    assert links >= {"figures/gains-smoke.png", "data/gains-smoke/gains.pdf", "data/gains-smoke/gains.csv"}
    caption = (tmp_path / "report" / "figures" / "gains-smoke.txt").read_text()
    assert told["meaning"] in caption
    assert told["title"] in caption


def test_questions_that_the_verdict_does_not_rest_on_are_folded(tmp_path):
    verdicts.write(tmp_path)
    build(tmp_path)
    text = (tmp_path / "report" / "gains-smoke.html").read_text()
    folded = re.findall(r"<details.*?</details>", text, re.DOTALL)
    assert any("Is it small?" in part for part in folded)
    assert not any("Is there a gain?" in part for part in folded)
    assert any("All estimates" in part for part in folded)
    assert text.count("<details") == text.count('<details class="fold"')


@pytest.mark.parametrize(
    ("bar", "side", "smallest", "interval", "words"),
    [
        (0.0, ">", 0.0, [0.1, 0.3], "The interval lies wholly above 0, as predicted."),
        (-0.5, "<", None, [-0.9, -0.6], "The interval lies wholly below −0.5, as predicted."),
        (0.0, ">", 0.0, [-0.3, -0.1], "The interval lies wholly below 0, against the prediction."),
        (0.0, ">", None, [-0.3, -0.1], "The interval lies wholly below 0, where it is not shown, nor refuted."),
        (0.0, ">", 0.0, [-0.3, 0.1], "The interval contains 0."),
        (0.0, ">", 0.0, None, "Fewer than 4 bases have no interval, and decide nothing."),
    ],
)
def test_what_became_of_a_criterion_is_a_sentence(bar, side, smallest, interval, words):
    criterion = {"bar": bar, "side": side, "smallest": smallest}
    assert results.outcome(criterion, {"mean": 0.0, "interval": interval}) == words


def test_the_small_figure_keeps_order_and_sides():
    estimate = {"mean": 0.2, "interval": [0.1, 0.3], "values": [0.05, None, 0.35, float("nan")]}
    plot = pictures.interval_plot(estimate, {"bar": -0.1, "side": ">"})
    assert plot is not None
    assert plot.interval is not None
    places = [0, plot.bar, plot.bases[0], plot.interval[0], plot.mean, plot.interval[1], plot.bases[1]]
    assert places == sorted(places)
    assert plot.predicted == (plot.bar, pytest.approx(pictures.WIDTH - plot.bar))
    assert "−0.1" in plot.words
    below = pictures.interval_plot(estimate, {"bar": -0.1, "side": "<"})
    assert below is not None
    assert below.predicted == (0, below.bar)
    assert pictures.interval_plot(None, {"bar": 0, "side": ">"}) is None
    for place, text in plot.ticks:  # ticks stand where their numbers are
        share = (place - plot.bar) / (plot.mean - plot.bar)
        assert float(text.replace("−", "-")) == pytest.approx(-0.1 + 0.3 * share, abs=2e-3)


def test_a_verdict_reaches_no_file_outside_its_folder(tmp_path):
    secret = tmp_path / "secret.png"
    secret.write_bytes(b"secret")
    outside = {"path": "..", "config_hash": "", "members": 1, "git": None, "created": None}
    out = tmp_path / "studies"
    changes = {
        "figure": "../../../secret.png",
        "files": ["../../../secret.csv", "../../secret.csv"],
        "runs": {"x": outside},
    }
    (tmp_path / "secret.csv").write_bytes(b"secret")
    verdicts.write(out, **changes)
    pages = build(out)
    assert "no longer there" in pages["gains-smoke.html"].text
    written = [path for path in (out / "report").rglob("*") if path.is_file()]
    assert written
    assert not any(b"secret" == path.read_bytes() for path in written)


def test_the_largest_scale_has_the_card_and_links_to_the_others(tmp_path):
    verdicts.write(tmp_path, scale="smoke", verdict="inconclusive")
    verdicts.write(tmp_path, scale="laptop", verdict="refuted", seed=100)
    verdicts.write(tmp_path, scale="laptop", verdict="refuted")
    page = build(tmp_path)["index.html"]
    assert len(page.all("article")) == 1
    links = [anchor["href"] for anchor in page.all("a") if anchor["href"].startswith("gains")]
    assert links == ["gains-laptop.html", "gains-laptop-seed-100.html", "gains-smoke.html"]


def test_the_site_keeps_its_size_and_says_what_it_left_out(studied):
    out, _, _ = studied
    assets = sum(path.stat().st_size for path in (out / "report" / "assets").iterdir())
    limit = 2 * site.PAGE + assets + 2000
    page = build(out, limit=limit)["gains-smoke.html"]
    assert sum(path.stat().st_size for path in (out / "report").rglob("*") if path.is_file()) <= limit
    assert "PPO (ours): its replay is left out" in page.text
    assert not page.all("script")
    build(out)


def test_a_folder_that_is_no_report_is_left_alone(tmp_path):
    verdicts.write(tmp_path)
    kept = tmp_path / "report" / "thesis.txt"
    kept.parent.mkdir()
    kept.write_text("years of work")
    with pytest.raises(RunError, match="holds something that is no report"):
        build(tmp_path)
    assert kept.read_text() == "years of work"


@pytest.mark.parametrize("key", sorted(set(verdicts.document()) - {"study", "figure"}))
def test_a_verdict_that_lacks_something_is_named_and_the_older_report_stays(tmp_path, key):
    path = verdicts.write(tmp_path)
    build(tmp_path)
    older = contents(tmp_path / "report")
    told = json.loads(path.read_text())
    del told["crc32"], told[key]
    path.write_text(json.dumps(told))
    with pytest.raises(RunError, match=r"verdict.json: .*run the study again, or move it away") as caught:
        build(tmp_path)
    assert "\n" not in str(caught.value)
    assert contents(tmp_path / "report") == older
    assert [path.name for path in tmp_path.glob(".*")] == []


@pytest.mark.parametrize("key", ["questions", "takeaway", "estimates", "words", "runs"])
def test_a_verdict_that_lacks_something_ends_every_command_in_a_line(tmp_path, capsys, key):
    path = verdicts.write(tmp_path, name="sparse_updates")
    told = json.loads(path.read_text())
    del told["crc32"], told[key]
    path.write_text(json.dumps(told))
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "README.md").write_text(f"{results.BEGIN}\n{results.END}\n")
    verdicts.write(tmp_path / "docs", name="sparse_updates")
    older = contents(tmp_path / "docs")
    for arguments in (["list"], ["report"], ["report", "--into", str(tmp_path / "docs")]):
        assert command.main([*arguments, "--out", str(tmp_path)]) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        assert "verdict.json" in error
        assert "run the study again, or move it away" in error
    assert contents(tmp_path / "docs") == older


def test_what_lasts_is_kept_and_a_larger_scale_is_never_replaced(tmp_path, capsys):
    out, into = tmp_path / "out", tmp_path / "docs"
    into.mkdir()
    keep = ["report", "--out", str(out), "--into", str(into)]
    verdicts.write(out, scale="laptop", verdict="refuted")
    assert command.main(keep) == 2
    assert "has no README.md" in capsys.readouterr().err
    (into / "README.md").write_bytes(b"\xff")
    assert command.main(keep) == 2
    assert "README.md is not UTF-8" in capsys.readouterr().err
    (into / "README.md").write_text("# ours\nnothing\n")
    assert command.main(keep) == 2
    assert "has no lines <!-- studies: begin -->" in capsys.readouterr().err
    (into / "README.md").write_text(f"# ours\n{results.BEGIN}\nold\n{results.END}\nkept\n")
    assert command.main(keep) == 0
    text = (into / "README.md").read_text()
    assert text.startswith(f"# ours\n{results.BEGIN}\n| study | verdict |")
    assert text.endswith(f"{results.END}\nkept\n")
    assert "old" not in text
    kept = into / "gains" / "laptop"
    assert {path.name for path in kept.iterdir()} == {"verdict.json", "gains.png", "gains.csv"}

    shutil.rmtree(out)
    verdicts.write(out, scale="smoke", verdict="supported")
    assert command.main(keep) == 0
    assert "gains: laptop is kept there; smoke is smaller and left out" in " ".join(capsys.readouterr().out.split())
    assert not (into / "gains" / "smoke").exists()
    assert json.loads((kept / "verdict.json").read_text())["verdict"] == "refuted"
    shutil.rmtree(out)
    verdicts.write(out, scale="paper", verdict="supported")
    assert command.main(keep) == 0
    assert [path.name for path in (into / "gains").iterdir()] == ["paper"]
    verdicts.write(out, scale="smoke", verdict="supported")
    shutil.rmtree(into / "gains")
    assert command.main(keep) == 0
    assert [path.name for path in (into / "gains").iterdir()] == ["paper"]  # nor laid beside one that is as new


def test_a_replication_has_a_row_of_its_own_and_stands_beside_the_first(tmp_path, capsys):
    out, into = tmp_path / "out", tmp_path / "docs"
    for folder, seed, verdict in ((into, 0, "refuted"), (out, 100, "supported"), (out, 0, "inconclusive")):
        verdicts.write(folder, name="sparse_updates", verdict=verdict, scale="laptop", seed=seed)
    verdicts.write(out, name="sparse_updates", verdict="refuted", scale="smoke")
    (into / "README.md").write_text(f"{results.BEGIN}\n{results.END}\n")
    assert command.main(["report", "--out", str(out), "--into", str(into)]) == 0
    rows = [row for row in (into / "README.md").read_text().splitlines() if "bases, criteria" in row]
    assert ["laptop-seed-100" in row for row in rows] == [False, True]  # the first seed, as it was judged last
    words = [verdicts.document(verdict)["words"] for verdict in ("inconclusive", "supported")]
    assert [f"| {word} |" in row for word, row in zip(words, rows, strict=True)] == [True, True]
    index = build(out)["index.html"]
    links = [link["href"] for link in index.all("a") if "sparse_updates-laptop-seed-100" in link["href"]]
    assert len(links) == 1
    assert index.text.index("laptop-seed-100") < index.text.index("The claim, and where it comes from")


def test_the_list_tells_what_was_learnt(tmp_path, capsys):
    verdicts.write(tmp_path, name="negative_reinforcement", verdict="refuted")
    assert command.main(["list", "--out", str(tmp_path)]) == 0
    told = " ".join(capsys.readouterr().out.split())
    assert "smoke: does not replicate in this regime. It gains. (gain above 0: −0.300" in told
    assert told.count("not run yet") == len(command.NAMES) - 1


def test_the_command_prints_the_first_page(tmp_path, capsys):
    verdicts.write(tmp_path)
    assert command.main(["report", "--out", str(tmp_path)]) == 0
    assert str(tmp_path / "report" / "index.html") in capsys.readouterr().out


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"schema": 2}', "{}", '{"schema": 2, "scale": "smoke", "seed": 0}'])
def test_a_damaged_verdict_ends_the_command_in_a_line(tmp_path, capsys, damage):
    path = verdicts.write(tmp_path)
    path.write_text(damage)
    assert command.main(["report", "--out", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert str(path) in error


def test_with_nothing_run_the_command_says_so(tmp_path, capsys):
    for out in (tmp_path, tmp_path / "nowhere"):
        assert command.main(["report", "--out", str(out)]) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        assert "no study has been run yet" in error
    assert not list(tmp_path.iterdir())
    assert command.main(["report", "--out", str(tmp_path), "--episodes", "0"]) == 2
    assert "--episodes=0" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("answer", "criteria", "deciding"),
    [
        ("refuted", ("supported", "refuted"), 1),
        ("supported", ("supported", "supported"), 0),
        ("inconclusive", ("supported", "supported"), 0),  # a gate was closed
        ("inconclusive", ("supported", "inconclusive"), 1),
    ],
)
def test_the_deciding_number_is_that_of_a_criterion_that_says_what_the_question_says(answer, criteria, deciding):
    told = [{"estimate": f"x{place}", "verdict": verdict} for place, verdict in enumerate(criteria)]
    question = {"primary": True, "leading": True, "verdict": answer, "criteria": told}
    other = {"primary": False, "leading": False, "verdict": answer, "criteria": []}
    document = {"verdict": answer, "questions": [other, question], "estimates": {f"x{x}": {"mean": x} for x in (0, 1)}}
    assert results.Result(Path(), document).deciding == (question, told[deciding], {"mean": deciding})
    # Where another leading question decides the study, it is that one.
    against = {"primary": False, "leading": True, "verdict": "refuted", "criteria": [told[0] | {"verdict": "refuted"}]}
    document |= {"verdict": "refuted", "questions": [other, question, against]}
    decides = question if answer == "refuted" else against
    assert results.Result(Path(), document).deciding[0] is decides
