"""The parameters that RL changed trained alone, from the same start, against other masks."""

from collections.abc import Mapping

import jax
import numpy as np
import xarray as xr

from agents import runs
from agents.runs import Run
from analysis import estimates, subnetworks, weights
from analysis.estimates import of
from analysis.figures.panels import Panel, Rows
from analysis.measure import measure, variable
from analysis.subnetworks import Definition
from analysis.weights import Matrices
from ground import files
from ground.files import RunError
from ground.terminal import ConfigError

BEFORE, FULL = "before RL", "full run"
"""The two policies of the run that the retrained ones are compared with."""
MASKS = ("learned", "random", "complement", "smallest")
"""What RL changed; as many in each matrix at random; all others; as many in each matrix of the smallest magnitude."""
SHOWN = {
    "inside_cosine": "cosine of the update to the full run's, in the mask",
    "inside_1e-4": "within 1e-4 of the full run, in the mask",
    "start_1e-4": "so near before RL already, in the mask",
}
"""Those measures of `subnetworks.agreement` that tables show."""


def panels(arms: Mapping[str, xr.Dataset]) -> list[Panel]:
    """Return of each mask between the model before RL and the full run, and how near it came to that."""
    drawn: list[Panel] = []
    for name, x in estimates.columns(arms).items():
        mean = {key: of(x["returns"].sel(policy=key)).mean for key in (BEFORE, FULL)}
        reached = {key: of(x["returns"].sel(policy=key)) for key in MASKS}
        cosine = {key: of(x["inside_cosine"].sel(mask=key)) for key in MASKS}
        drawn.append(Rows(reached, f"return per episode, trained alone: {name}", mean))
        drawn.append(Rows(cosine, SHOWN["inside_cosine"], {"none": 0.0, "full run": 1.0}))
    return drawn


@measure(panels=panels)
def subnetwork(
    run: Run,
    *,
    definition: Definition = "top",
    density: float = 0.1,
    draws: int = 2,
    seed: int = 0,
    members: int | None = None,
    episodes: int | None = None,
) -> xr.Dataset:
    """RL again with only the parameters that it changed, against random masks, all others, and the smallest.

    Args:
        definition: what counts as changed: `top` the --density of the parameters that moved farthest, `bf16` a
            different bfloat16 value, `paper` one that differs by more than 1e-5.
        density: share of a member's parameters that `top` takes.
        draws: random masks, each with as many parameters in each matrix.
        seed: of the random masks.
        members: train only the first members of the run, to bound the time; all by default.
        episodes: that each policy plays, at least 1,024; those of the run's evaluation by default.

    Returns:
        `returns` float64[policy, member], the mean return before RL, of the full run, and of each mask trained alone,
        of `random` the mean over draws, which are `random_returns` float64[draw, member]. Of each mask, float64[mask,
        member]: `beyond_random`, its return less that of random masks; `share_of_gain` of the full run, see
        `subnetworks.share_of_gain`; and the measures of `subnetworks.agreement`. `first_difference` float64[member],
        of the first update's returns from the run's: 0 where the retraining repeats it. Members that were not trained
        are NaN.
    """
    rows, each = _checked(run, density, draws, seed, members, episodes)
    # A member that has diverged is trained along, in its place among the first ones, and left out of what is said.
    ends = [jax.tree.map(lambda x: x[: rows[-1] + 1], run.parameters(name)) for name in (run.config.before_rl, "rl")]
    before, after = (weights.split(end) for end in ends)
    chosen = subnetworks.learned(before, after, definition, density)
    _refuse_no_choice(chosen, rows, definition, density)
    names, masks = zip(*subnetworks.arms(before, chosen, draws, seed), strict=True)
    results, first = subnetworks.train(run.config, ends[0], masks)
    played = subnetworks.returns(run.config, [*ends, *results], each)
    near = [
        subnetworks.agreement(mask, before, after, weights.split(result))
        for mask, result in zip(masks, results, strict=True)
    ]

    def of_masks(values: list[np.ndarray]) -> np.ndarray:
        """float64[mask, member], the mean over the draws of a mask."""
        return np.stack([np.mean([x[rows] for other, x in zip(names, values, strict=True) if other == name], axis=0)
                         for name in MASKS])  # fmt: skip

    start, full, returns = played[0, rows], played[1, rows], of_masks([*played[2:]])
    points = np.array([member.label for member in run.population])[: len(rows)]
    gained = np.stack([subnetworks.share_of_gain(start, full, x, points) for x in returns])
    beyond = returns - returns[MASKS.index("random")]
    draw = np.stack([x[rows] for name, x in zip(names, played[2:], strict=True) if name == "random"])
    off = np.abs(first[:, rows] - run.metric("rl", "return")[0, : len(rows)]).max(axis=0)
    alone, policies = "mask member", np.stack([start, full, *returns])
    variables = {
        "returns": variable("policy member", policies, "return", "reward"),
        "beyond_random": variable(alone, beyond, "return beyond random masks", "reward"),
        "share_of_gain": variable(alone, gained, "share of the full run's gain"),
        "random_returns": variable("draw member", draw, "return of a random mask", "reward", table=0),
        "first_difference": variable("member", off, "return of the first update, off the run's", "reward"),
    } | {
        key: variable(alone, of_masks([x[key] for x in near]), SHOWN.get(key, key), table=int(key in SHOWN))
        for key in near[0]
    }
    labels = {"policy": [BEFORE, FULL, *MASKS], "mask": [*MASKS], "member": np.arange(len(rows))}
    whole = xr.Dataset(variables, labels, {"devices": _devices(run)}).reindex(member=np.arange(len(run.kept)))
    return whole.drop_vars("member")


def _checked(
    run: Run, density: float, draws: int, seed: int, members: int | None, episodes: int | None
) -> tuple[np.ndarray, int]:
    """The members of the run to train, int[N], and episodes to play."""
    if not run.config.rl.updates:
        raise RunError(f"{run.path}: has no RL to repeat; give a run with --rl.updates above 0")
    there = len(run.kept)
    members = there if members is None else members
    episodes = run.config.evaluation_episodes if episodes is None else episodes
    for name, value, good, remedy in (
        ("members", members, 1 <= members <= there, f"the run has {there}; use 1 to all of them"),
        ("density", density, 0 < density < 1, "use a share between 0 and 1"),
        ("draws", draws, draws >= 1, "use at least 1"),
        ("seed", seed, seed >= 0, "use 0 or more"),
        ("episodes", episodes, episodes >= 1024 and episodes % 256 == 0, "use a multiple of 256, at least 1024"),
    ):
        if not good:
            raise ConfigError(f"--{name}={value}: {remedy}")
    for name in (run.config.before_rl, "rl"):
        run.kept_parameters(name)  # refuses those of another policy, and what is not finite
    return run.kept[:members], episodes


def _refuse_no_choice(chosen: Matrices, rows: np.ndarray, definition: Definition, density: float) -> None:
    """A mask of nothing or of everything leaves nothing to compare."""
    inside = np.concatenate([x.reshape(len(x), -1)[rows] for x in chosen.values()], axis=1)
    for wrong, what in ((~inside.any(axis=1), "none"), (inside.all(axis=1), "all")):
        if wrong.any():
            option, remedy = f"--definition={definition}", "use --definition top"
            if definition == "top":
                option, remedy = f"--density={density:g}", f"use a share of {inside.shape[1]:,} parameters"
            raise ConfigError(f"{option}: {what} of the parameters of member {rows[wrong.argmax()]}; {remedy}")


def _devices(run: Run) -> str:
    """Whether the retraining can repeat the run: bits are those of the devices."""
    if not run.on_disk:
        return "as in the run"
    then, now = (x.get("device") for x in (files.read_json(run.path / "config.json"), runs.provenance()))
    return "as in the run" if then == now else f"{now}, the run's were {then}"
