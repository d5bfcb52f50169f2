"""A run in a few words, and as a notebook shows it."""

import base64
import html as markup
import math
from typing import TYPE_CHECKING, Any

from agents.runs import reporting
from ground import files, numbers
from ground.files import RunError

if TYPE_CHECKING:
    from agents.runs.run import Run


def words(run: "Run") -> str:
    """One line: where it is, who it is, how far it is."""
    config = run.document
    world, algorithm = (config.get("world") or {}).get("name", "?"), config.get("algorithm", "?")
    ended = ", ".join(run.ended()) or "nothing"
    return f"<Run {run.path}: {run.members} member{'s' * (run.members != 1)}, {world}, {algorithm}; trained: {ended}>"


def html(run: "Run") -> str:
    """What a notebook shows: the line, returns where they were evaluated, the learning curve where it was drawn."""
    parts = [f"<p><code>{markup.escape(words(run)[1:-1])}</code></p>"]
    if not run.has_summary:
        return parts[0]
    try:
        with files.shaped(f"{run.path / 'summary.json'}: not the summary of a run", "have it written anew by --resume"):
            parts += _returns(run, run.summary().get("return"))
    except RunError as error:
        parts.append(f"<p>{markup.escape(str(error))}</p>")
    curve = run.path / "figures" / "learning_curve.png"
    if run.on_disk and curve.exists():
        data = base64.b64encode(curve.read_bytes()).decode()
        parts.append(f'<img alt="learning curve" style="max-width:100%" src="data:image/png;base64,{data}">')
    return "".join(parts)


def _returns(run: "Run", found: Any) -> list[str]:
    """The table of returns, where there are any."""
    if not found:
        return []
    scores = [("random", found["random"]), *found["personas"].items()]
    scores += [("before RL", sum(found["before_rl"]) / run.members), *reporting.after_rl(found, "after RL")]
    rows = "".join(f"<tr><td>{markup.escape(name)}</td><td>{_shown(*x)}</td></tr>" for name, *x in scores)
    return [f"<table><tr><th>policy</th><th>return per episode</th></tr>{rows}</table>"]


def _shown(mean: float | None, *interval: float) -> str:
    return numbers.shown(math.nan if mean is None else mean, *interval)
