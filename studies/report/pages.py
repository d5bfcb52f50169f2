"""The page of one study at one scale."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from studies.report import numbers, parts, player
from studies.report.documents import Result
from studies.report.markup import Markup, join, source, table, tag


@dataclasses.dataclass(frozen=True)
class Files:
    """What the site holds of a study besides its page."""

    figure: str | None
    """Path of the figure in the site; None where it is missing."""
    data: dict[str, tuple[str, int]]
    """By name, the path as seen from the site and the size in bytes."""
    replays: list[player.Arm]
    """Recordings of its runs."""
    notes: list[str]
    """Why something is not there, a sentence each."""


_LEGEND = (
    "In the small plots the dashed line is the bound, the shaded side the predicted one, the thick line the 95 % "
    "interval, the diamond the mean, and every dot a member."
)
_CONTROLS = "An estimate without a control beside it is a difference to its control already, or a control itself."
_PARTS = {
    "figure": "Figure",
    "questions": "Questions",
    "estimates": "Estimates",
    "replay": "Replay",
    "method": "Method",
    "limits": "What this cannot show",
    "runs": "Runs and versions",
}


def page(result: Result, files: Files) -> bytes:
    """The page."""
    document = result.document
    contents = (tag("li", tag("a", name, href=f"#{identity}")) for identity, name in _PARTS.items())
    body = tag(
        "main",
        _hero(result),
        tag("nav", tag("ul", *contents), aria_label="On this page", class_="contents"),
        parts.section("figure", _PARTS["figure"], parts.figure(files.figure, document["alt"], document["alt"])),
        parts.section(
            "questions",
            _PARTS["questions"],
            tag("p", document["rule"], class_="muted"),
            tag("p", _LEGEND, class_="muted"),
            *(_question(question, document["estimates"]) for question in document["questions"]),
        ),
        parts.section(
            "estimates", _PARTS["estimates"], tag("p", _CONTROLS, class_="muted"), _estimates(document["estimates"])
        ),
        parts.section("replay", _PARTS["replay"], player.player(files.replays, files.notes)),
        parts.section(
            "method", _PARTS["method"], tag("p", document["method"]), tag("p", "Source: ", source(document["source"]))
        ),
        parts.section("limits", _PARTS["limits"], tag("ul", *(tag("li", limit) for limit in document["limits"]))),
        parts.section("runs", _PARTS["runs"], *_runs(document), *_data(files.data)),
        id="main",
    )
    home = tag("header", tag("a", "All studies", href="index.html"), class_="site")
    title = f"{result.title} ({result.scale}): {result.verdict}"
    return parts.page(title, join((home, body, parts.FOOTER)), player.SCRIPTS if files.replays else ())


def _hero(result: Result) -> Markup:
    document = result.document
    criteria = [criterion for question in result.leading for criterion in question["criteria"]]
    names = dict.fromkeys(criterion["estimate"] for criterion in criteria)
    return tag(
        "header",
        tag("p", f"{result.name}, scale {result.scale}", class_="eyebrow"),
        tag("h1", result.title),
        tag("p", document["claim"], class_="lead"),
        tag("p", parts.badge(result.verdict), tag("span", source(document["source"]), class_="muted"), class_="meta"),
        *(tag("p", numbers.sentence(name, document["estimates"].get(name)), class_="estimate") for name in names),
        class_="hero",
    )


def _question(question: Mapping[str, Any], estimates: Mapping[str, Any]) -> Markup:
    """A question with what was predicted, what would refute it, and what decided it."""
    criteria = []
    for criterion in question["criteria"]:
        estimate = estimates.get(criterion["estimate"])
        criteria.append(
            tag(
                "li",
                tag("p", parts.badge(criterion["verdict"]), tag("strong", criterion["words"]), class_="meta"),
                numbers.plot(criterion, estimate),
                tag("p", numbers.sentence(criterion["estimate"], estimate)),
                tag("p", numbers.reason(criterion, estimate), class_="muted"),
            )
        )
    leading = tag("span", "The verdict rests on this", class_="leading") if question["leading"] else None
    return tag(
        "article",
        tag("p", parts.badge(question["verdict"]), leading, class_="meta"),
        tag("h3", question["text"]),
        tag(
            "dl",
            tag("div", tag("dt", "Predicted"), tag("dd", question["prediction"])),
            tag("div", tag("dt", "Would refute it"), tag("dd", question["refutation"])),
            class_="pair",
        ),
        tag("ul", *criteria, class_="criteria", aria_label="What decided it"),
        class_="question",
    )


def _estimates(estimates: Mapping[str, Any]) -> Markup:
    rows = []
    for name, estimate in estimates.items():
        control = estimates.get(estimate["control"])
        beside = None
        if estimate["control"]:
            mean = "not measured" if control is None else numbers.signed(control["mean"])
            beside = join((mean, tag("span", f" {numbers.words(estimate['control'])}", class_="muted")))
        rows.append(
            (
                join((numbers.words(name), tag("span", estimate["meaning"], class_="meaning"))),
                tag("strong", numbers.signed(estimate["mean"])),
                numbers.interval(estimate),
                estimate["members"],
                beside or "–",
            )
        )
    headers = ("Estimate", "Mean", "95 % interval", "Members", "Control")
    return table(headers, rows, "All estimates with intervals and controls", frozenset({1, 2, 3}))


def _runs(document: Mapping[str, Any]) -> list[Markup]:
    rows = [
        (
            name,
            tag("code", run["path"]),
            tag("code", run["config_hash"]),
            tag("code", _commit(run["git"])),
            run["members"],
        )
        for name, run in document["runs"].items()
    ]
    device = document["device"]
    packages = ", ".join(f"{name} {version}" for name, version in document["packages"].items() if version)
    facts = {
        "Run it again": tag("pre", tag("code", document["command"]), tabindex="0"),
        "Judged": f"{document['created']}, at commit {_commit(document['git'])}",
        "Time": f"{parts.duration(document['seconds_of_runs'])} of training, "
        f"{parts.duration(document['seconds'])} in the last call",
        "Device": f"{device.get('devices', '?')} × {device.get('kind', '?')} ({device.get('platform', '?')}), "
        f"processes: {device.get('processes', '?')}; {document['platform']}",
        "Versions": f"Python {document['python']}, {packages}",
        "Hash of all configs": tag("code", document["config_hash"]),
    }
    headers = ("Arm", "Run", "Config", "Commit", "Members")
    listed = tag("dl", *(tag("div", tag("dt", name), tag("dd", fact)) for name, fact in facts.items()), class_="facts")
    return [table(headers, rows, "Runs of this study", frozenset({4})), listed]


def _commit(git: Mapping[str, Any] | None) -> str:
    if not git or not git.get("commit"):
        return "unknown"
    return f"{str(git['commit'])[:12]}{', files changed' if git.get('dirty') else ''}"


def _data(data: Mapping[str, tuple[str, int]]) -> list[Markup]:
    if not data:
        return [tag("p", "No data files.", class_="muted")]
    links = (
        tag("li", tag("a", name, href=parts.link(path)), tag("span", f" {parts.size(count)}", class_="muted"))
        for name, (path, count) in data.items()
    )
    return [tag("h3", "Data behind the figure"), tag("ul", *links, class_="data")]
