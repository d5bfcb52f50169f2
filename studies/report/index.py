"""The first page: a card for every study."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from studies import claims
from studies.report import numbers, parts
from studies.report.documents import Result
from studies.report.markup import Markup, join, tag
from studies.study import Study

_INTRODUCTION = (
    "Claims about what reinforcement learning does inside small sequence models. Each was stated with its prediction "
    "and its refutation before it was run, and each is judged by bounds on intervals. A refutation honestly obtained "
    "is a result."
)


def page(results: Sequence[Result], figures: Mapping[str, str | None], missing: Sequence[Study]) -> bytes:
    """The page.

    Args:
        results: of every study, the largest scale first.
        figures: by `Result.stem`, the path of the figure in the site, None where it is missing.
        missing: studies that have not been run.
    """
    by_study = [list(group) for _, group in itertools.groupby(results, key=lambda result: result.name)]
    counts = [(verdict, sum(group[0].verdict == verdict for group in by_study)) for verdict in claims.VERDICTS]
    tally = tag(
        "ul",
        *(tag("li", tag("strong", count), " ", parts.badge(verdict)) for verdict, count in counts if count),
        class_="tally",
        aria_label="Verdicts of all studies, at their largest scale",
    )
    header = tag(
        "header",
        tag("p", "emojimaze", class_="eyebrow"),
        tag("h1", "What reinforcement learning changes"),
        tag("p", _INTRODUCTION, class_="lead"),
        tally,
        class_="hero",
    )
    cards = tag("div", *(_card(group, figures[group[0].stem]) for group in by_study), class_="cards")
    studies = tag("section", tag("h2", "Studies", id="studies", class_="unseen"), cards, aria_labelledby="studies")
    rest = parts.section("waiting", "Not run yet", _waiting(missing)) if missing else None
    rule = parts.section("rule", "How a verdict comes about", tag("p", claims.RULE))
    return parts.page("emojimaze: studies", join((tag("main", header, studies, rest, rule, id="main"), parts.FOOTER)))


def _card(group: Sequence[Result], figure: str | None) -> Markup:
    """One study at its largest scale, with links to the others."""
    result = group[0]
    document = result.document
    page = parts.link(f"{result.stem}.html")
    heading = f"study-{result.name}"
    others = None
    if len(group) > 1:
        links = (
            tag("li", tag("a", other.scale, href=parts.link(f"{other.stem}.html")), " ", parts.badge(other.verdict))
            for other in group[1:]
        )
        others = tag("div", tag("p", "Also run at", class_="label"), tag("ul", *links, class_="scales"))
    words = tag(
        "div",
        tag("p", parts.badge(result.verdict), tag("span", _when(document), class_="muted"), class_="meta"),
        tag("h3", tag("a", result.title, href=page), id=heading),
        tag("p", document["claim"], class_="claim"),
        *(tag("p", numbers.sentence(name, estimate), class_="estimate") for name, estimate in _first(result)),
        tag("p", tag("a", "Questions, numbers and replays", href=page, aria_label=f"All about: {result.title}")),
        class_="words",
    )
    beside = tag(
        "div",
        parts.figure(figure, document["alt"], lazy=True),
        tag("p", "Run it again", class_="label"),
        tag("pre", tag("code", document["command"]), tabindex="0"),
        others,
        class_="side-note",
    )
    return tag("article", words, beside, class_="card", aria_labelledby=heading)


def _first(result: Result) -> list[tuple[str, Any]]:
    """The estimates that the verdict rests on, one for each leading question."""
    names = [question["criteria"][0]["estimate"] for question in result.leading if question["criteria"]]
    return [(name, result.document["estimates"].get(name)) for name in dict.fromkeys(names)]


def _when(document: Mapping[str, Any]) -> str:
    return f"scale {document['scale']}, {document['members']} members, {document['created'][:10]}"


def _waiting(missing: Sequence[Study]) -> Markup:
    entries = (
        tag("li", tag("p", tag("strong", study.title), ". ", study.claim), tag("pre", tag("code", _command(study))))
        for study in missing
    )
    return tag("ul", *entries, class_="waiting")


def _command(study: Study) -> str:
    return f"uv run -m studies run {study.name} --scale laptop"
