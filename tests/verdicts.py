"""A folder of studies as `studies run` leaves it, made by hand: verdicts, figures, data, and runs of no training."""

import json
from pathlib import Path

import jax
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from agents import runs
from agents.runs import Run
from agents.runs import config as configs
from envs import tokens
from studies import claims
from studies.claims import Criterion, Estimate, Question
from tests import tiny

ALTERNATIVE = "One line rises from left to right."
MEANS = {"supported": 0.3, "refuted": -0.3, "inconclusive": 0.0}
"""Means of the leading estimate that lead to each verdict."""


def write_run(folder: Path, config=tiny.CONFIG, seed: int = 0) -> Run:
    """A finished run whose policies are drawn at random, a base that all share, and no training."""
    run = runs.create(folder, configs.to_dict(config), members=len(config.members))
    make = jax.jit(config.make_policy().init)
    base = make(jax.random.key(seed))
    run.save_parameters("pretrain", jax.tree.map(lambda x: 2 * x[None], base))
    members = [make(jax.random.key(seed + 1 + index)) for index in range(run.members)]
    run.save_parameters("rl", jax.tree.map(lambda *leaves: 2 * np.stack(leaves), *members))
    returns = {"before_rl": [-1.0] * run.members, "after_rl": [float(index) for index in range(run.members)]}
    run.write_summary({"schema": 1, "members": run.members, "return": returns})
    return run


def write_concepts(run: Run, width: int, layers: int, seed: int = 0) -> dict:
    """An analysis of concepts with vectors drawn at random; returns them by arm, [member][layer][concept] → vector."""
    rng = np.random.default_rng(seed)
    rows = {name: [] for name in ("run", "arm", "member", "layer", "concept", "vector")}
    found = {}
    for arm, members in (("before RL", 1), ("after RL", run.members)):
        found[arm] = rng.normal(size=(members, layers, 3, width)).astype(np.float32)
        for member, layer, role in np.ndindex(members, layers, 3):
            name = tokens.ROLES[role].lower()
            for column, value in zip(rows.values(), ("", arm, member, layer + 1, name), strict=False):
                column.append(value)
            rows["vector"].append(found[arm][member, layer, role])
    arms = {arm: {"rule_layer": [layers] * len(vectors)} for arm, vectors in found.items()}
    document = {"schema": 1, "extraction": {"episodes": 120}, "arms": arms}
    run.analysis("concepts-0123abcd.json").write_text(json.dumps(document))
    pq.write_table(pa.table(rows), run.analysis("concepts-0123abcd.parquet"))
    return found


def document(verdict: str = "supported", words: str = "", **changes) -> dict:
    """What `verdict.json` holds; `words` are put into every text."""
    shift = MEANS[verdict]
    estimates = {
        f"gain{words}": Estimate.of(shift + np.linspace(-0.05, 0.05, 6), f"success gained{words}", f"base{words}"),
        f"base{words}": Estimate.of([0.4], f"success of the base{words}"),
        "nothing": Estimate.of([np.nan], "what could not be measured"),
    }
    questions = [
        Question(
            f"first{words}", f"Is there a gain?{words}", f"Yes.{words}", f"No.{words}",
            (Criterion(f"gain{words}", "above", 0.0),), leading=True,
        ),
        Question(f"second{words}", f"Is it small?{words}", f"Yes.{words}", f"No.{words}",
                 (Criterion(f"gain{words}", "below", 1.0), Criterion("never_made", "below", 0.0))),
    ]  # fmt: skip
    judged = claims.judge(questions, estimates)
    assert judged["verdict"] == verdict
    plain = {}
    for name, each in estimates.items():
        ends = [each.low, each.high]
        plain[name] = {
            "mean": each.mean if np.isfinite(each.mean) else None,
            "interval": ends if np.isfinite(ends).all() else None,
            "members": each.members,
            "meaning": each.meaning,
            "values": [value if np.isfinite(value) else None for value in each.values],
            "control": each.control,
        }
    made = {
        "schema": 1, "study": f"gains{words}", "title": f"RL gains{words}", "claim": f"RL gains something.{words}",
        "source": f"arXiv 2506.01347{words}", "method": f"It is tried.{words}", "scale": "smoke", "members": 6,
        **judged, "estimates": plain, "limits": [f"It is small.{words}"], "figure": "gains.png",
        "alt": f"{ALTERNATIVE}{words}", "data": ["data/gains.csv"], "runs": {}, "config_hash": f"0123456789ab{words}",
        "command": f"uv run -m studies run gains{words}", "created": "2026-11-22T10:00:00+01:00", "seconds": 3.5,
        "seconds_of_runs": 7200.0, "git": {"commit": f"abcdef012345{words}", "dirty": True}, "python": f"3.12.1{words}",
        "platform": f"Linux{words}", "packages": {f"jax{words}": f"0.11.2{words}", "gone": None},
        "device": {"platform": "cpu", "kind": f"cpu{words}", "devices": 1, "processes": 1},
    }  # fmt: skip
    return made | changes


def write(out: Path, name: str = "gains", scale: str = "smoke", **options) -> Path:
    """Write a study's folder; returns the path of its verdict. `options` as for `document`."""
    folder = out / name / scale
    (folder / "data").mkdir(parents=True)
    Image.new("RGB", (40, 20), "white").save(folder / "gains.png")
    (folder / "data" / "gains.csv").write_text("member,gain\n0,0.3\n")
    path = folder / "verdict.json"
    path.write_text(json.dumps(document(**options)))
    return path


def arm(out: Path, run: Run) -> dict:
    """A run as a verdict names it."""
    path = str(run.path.relative_to(out))
    return {"path": path, "config_hash": run.config_hash, "members": run.members, "git": None}
