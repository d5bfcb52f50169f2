"""A folder of studies as `studies run` leaves it: real verdicts of made-up estimates, figures, runs of no training."""

from collections.abc import Sequence
from pathlib import Path
from unittest import mock

import jax
import numpy as np
import xarray as xr
from PIL import Image

from agents import runs
from agents.runs import Run
from agents.runs import config as configs
from analysis.figures.panels import Rows
from analysis.measure import REGISTRY, measure
from ground import files
from ground.estimates import Estimate
from studies import study
from studies.study import Comparison, Results, Study, ask
from tests import tiny

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


def follow(run: Run, nats: Sequence[Sequence[float]]) -> list[str]:
    """Checkpoints of a run that was followed through RL, and KL from its base as it keeps it, by checkpoint and member.

    What lies between the ends has the parameters of the end, a little smaller.
    """
    names = ["pretrain", *(f"rl-{2**power:06d}" for power in range(len(nats) - 2)), "rl"]
    for name in names[1:-1]:
        run.save_parameters(name, jax.tree.map(lambda x: np.float32(0.9) * x, run.parameters("rl")))

    def divergence(run: Run, checkpoint: str) -> xr.Dataset:
        """Numbers that are known."""
        return xr.Dataset({"kl": ("member", np.asarray(nats[names.index(checkpoint)]), {"units": "nats per episode"})})

    with mock.patch.dict(REGISTRY):  # KL is taken from measurements of this name
        del REGISTRY["divergence"]
        measure(version=1)(divergence)(run, names)
    return names


def document(
    verdict: str = "supported", words: str = "", scale: study.Scale = "smoke", seed: int = 0, **changes
) -> dict:
    """What `verdict.json` holds; `words` are put into every text."""
    gains = MEANS[verdict] + np.linspace(-0.05, 0.05, 6)
    estimates = {
        f"gain{words}": Estimate.of(gains, f"what it gains{words}", f"base{words}"),
        f"base{words}": Estimate.of([0.4], f"success of the base{words}"),
        "nothing": Estimate.of([np.nan], "what could not be measured"),
    }
    questions = (
        ask(
            "first", f"Is there a gain?{words}", f"Yes.{words}", f"No.{words}", f"gain{words} > 0", smallest=0.0,
            primary=True,
        ),
        ask("second", f"Is it small?{words}", f"Yes.{words}", f"No.{words}", f"gain{words} < 1", "never made < 0"),
    )  # fmt: skip
    one = Study(
        name="gains", title=f"RL gains{words}", claim=f"RL gains something.{words}", source=f"arXiv 2506.01347{words}",
        method=f"It is tried.{words}", limits=(f"It is small.{words}",), questions=questions, arms={}, options={},
        measure=lambda runs, options: Results(estimates, [], ""),
        compared=(Comparison(f"gain{words}", f"0.5{words}", f"gain{words}", f"size{words}"),),
    )  # fmt: skip
    results = Results(estimates, [Rows({}, f"gain{words}")], f"dots: bases{words}")
    judged = study.verdict(one, results, scale, seed)
    assert judged["verdict"] == verdict
    return judged | {
        "takeaway": f"It gains.{words}", "figure": "gains.png", "files": ["gains.png", "gains.csv"], "runs": {},
        "criteria": {
            "file": f"studies/gains.py{words}", "commit": f"abcdef012345{words}", "date": "2026-11-20T10:00:00+01:00",
            "dirty": False,
        },
        "config_hash": f"0123456789ab{words}", "command": f"uv run -m studies run gains{words}",
        "created": "2026-11-22T10:00:00+01:00", "seconds": 3.5, "seconds_of_runs": 7200.0,
        "git": {"commit": f"abcdef012345{words}", "dirty": True}, "python": f"3.12.1{words}",
        "platform": f"Linux{words}", "packages": {f"jax{words}": f"0.11.2{words}"},
        "device": {"platform": "cpu", "kind": f"cpu{words}", "devices": 1, "processes": 1},
    } | changes  # fmt: skip


def write(out: Path, name: str = "gains", **options) -> Path:
    """Write a study's folder; returns the path of its verdict. `options` as for `document`."""
    told = document(**options)
    folder = out / name / (f"{told['scale']}-seed-{told['seed']}" if told["seed"] else told["scale"])
    folder.mkdir(parents=True)
    Image.new("RGB", (40, 20), "white").save(folder / "gains.png")
    (folder / "gains.csv").write_text("member,gain\n0,0.3\n")
    files.write_json(folder / "verdict.json", told)
    return folder / "verdict.json"


def arm(out: Path, run: Run, created: str = "2026-11-21T10:00:00+01:00") -> dict:
    """A run as a verdict names it."""
    path = str(run.path.relative_to(out))
    return {"path": path, "config_hash": run.config_hash, "members": run.members, "git": None, "created": created}
