"""The subnetwork alone: RL again from the same start, with only some of the parameters trained (arXiv 2505.11711).

The paper retrains the parameters that RL had changed and finds the full result again. Whether that says something of
these parameters, only other masks can tell: random ones with as many parameters in each matrix, all other
parameters, and the parameters of the smallest magnitude.
"""

import dataclasses
from collections.abc import Sequence
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from agents import runs
from agents.policies import Parameters
from agents.runs import evaluation, stages
from agents.runs.config import Config
from analysis import masks, weights
from analysis.weights import Matrices
from ground import statistics

Definition = Literal["top", "bf16", "paper"]
"""Which parameters RL changed: the share that moved farthest; those whose bfloat16 values differ at all; or by more
than 1e-5, as in arXiv 2505.11711."""

TOLERANCES = {"1e-5": 1e-5, "1e-4": 1e-4}
"""Differences below which arXiv 2505.11711 calls two parameters equal."""


def learned(start: Matrices, full: Matrices, definition: Definition, density: float) -> Matrices:
    """The parameters that RL changed.

    Args:
        start: before RL.
        full: after RL of all parameters.
        definition: what counts as changed.
        density: share of the parameters, for `top`.

    Returns:
        bool, shaped like `start`.
    """
    if definition == "top":
        return masks.largest(start, full, density)
    return masks.changed(start, full, masks.TOLERANCE if definition == "paper" else 0.0)


def arms(start: Matrices, subnetwork: Matrices, draws: int, seed: int) -> list[tuple[str, Matrices]]:
    """The masks to train with, each by name; all but the complement have the density of `subnetwork` per matrix."""
    seeds = np.random.SeedSequence(seed).generate_state(draws)
    return [
        ("learned", subnetwork),
        *(("random", masks.random(subnetwork, int(drawn))) for drawn in seeds),
        ("complement", masks.complement(subnetwork)),
        ("smallest", masks.smallest_weights(start, subnetwork)),
    ]


def train(config: Config, start: Parameters, trained: Sequence[Matrices]) -> tuple[list[Parameters], np.ndarray]:
    """Train the first members of a run anew, with one mask after another, all in the program that is compiled once.

    Seeds, mazes, order of the data and hyper-parameters are those of the run. The mask is laid on the optimiser's
    step, weight decay included. The population has the run's own shape, so that a mask of everything repeats the run
    to the bit on the devices that made it; masks side by side in a larger population would round differently.

    Args:
        config: of the run.
        start: parameters of the first N members before RL.
        trained: masks of bool; outside of them parameters keep their bits.

    Returns:
        The parameters after RL of each mask, axis 0 the member, NaN where training has diverged; and the mean returns
        float32[masks, N] of the first update, which is played before anything is trained.
    """
    stage = stages.make_stage(config, "rl", members=len(jax.tree.leaves(start)[0]))
    program = stage.program
    arguments = program.place(stage.arguments)
    results, first = [], []
    for one in trained:
        mask = jax.tree.map(jnp.asarray, weights.join(one, like=start))
        # Copies, because the program is given its state for good and the start is needed again.
        state = program.place(jax.tree.map(jnp.copy, dataclasses.replace(stage.initial(start), mask=mask)))
        losses = list[np.ndarray]()
        for done in range(0, stage.updates, stage.chunk):
            state, metrics = program(state, *arguments)
            losses.append(np.asarray(metrics[runs.LOSS]))
            if done == 0:
                first.append(np.asarray(metrics["return"][:, 0]))
        # Who has diverged stands still and stays finite.
        sound = np.all(np.isfinite(np.concatenate(losses, axis=1)), axis=1)
        results.append(jax.tree.map(lambda x, sound=sound: _where(sound, np.asarray(x)), state.parameters))
    return results, np.stack(first)


def returns(config: Config, policies: Sequence[Parameters], episodes: int) -> np.ndarray:
    """Mean returns float64[policies, N] of the first N members on the mazes of the evaluation.

    Args:
        config: of the run.
        policies: each of N members, axis 0; NaN is returned where training diverged.
        episodes: of each member, the same mazes for all.
    """
    members = len(jax.tree.leaves(policies[0])[0])
    parameters = jax.tree.map(lambda *leaves: jnp.asarray(np.concatenate(leaves)), *policies)
    worlds = jax.tree.map(
        lambda x: jnp.tile(x[:members], (len(policies),) + (1,) * (x.ndim - 1)), config.world_params()
    )
    world, _ = config.world.make()
    played, _ = evaluation.policy_outcomes(config.make_policy(), parameters, world, worlds, episodes)
    finite = [
        np.isfinite(np.asarray(x, np.float32)).reshape(len(x), -1).all(axis=1) for x in jax.tree.leaves(parameters)
    ]
    means = np.where(np.all(finite, axis=0), np.asarray(played, np.float64).mean(axis=1), np.nan)
    return means.reshape(len(policies), members)


def agreement(mask: Matrices, start: Matrices, full: Matrices, retrained: Matrices) -> dict[str, np.ndarray]:
    """How near a retrained policy came to the full run.

    Inside the mask is the honest place to look. Outside, nothing was trained: there a parameter agrees with the full
    run if that hardly moved it, so that over all parameters agreement rises as the mask shrinks. Even inside, some
    agree that never moved; `start` says how many parameters of the untrained start do.

    Args:
        mask: what was trained.
        start: before RL.
        full: after RL of all parameters.
        retrained: after RL of the mask.

    Returns:
        By name, float64[N] of each member. `inside`, `whole` (all parameters) and `start` (the start itself, inside
        the mask) begin the names of shares of parameters: `_bf16` with equal bfloat16 values, `_1e-5` and `_1e-4`
        with values at most that far apart. `inside_cosine` and `whole_cosine` are of the two updates. `density` is
        the share of the parameters inside, and `moved` the share of those that training moved at all: some, as the
        embeddings of tokens that are never said, have no gradient. NaN where the mask is empty, nothing moved, or
        retraining has diverged.
    """
    before, target, reached, chosen = (_flat(x) for x in (start, full, retrained, mask))
    chosen = chosen.astype(bool)
    everywhere = np.ones_like(chosen)
    measured = {"density": chosen.mean(axis=1), "moved": masks.share_inside(chosen, reached != before)}
    for name, values, place in (("inside", reached, chosen), ("start", before, chosen), ("whole", reached, everywhere)):
        measured[f"{name}_bf16"] = masks.share_inside(place, _bf16(values) == _bf16(target))
        for label, tolerance in TOLERANCES.items():
            measured[f"{name}_{label}"] = masks.share_inside(place, np.abs(values - target) <= tolerance)
    for name, place in (("inside", chosen), ("whole", everywhere)):
        measured[f"{name}_cosine"] = _cosine((reached - before) * place, (target - before) * place)
    sound = np.isfinite(reached).all(axis=1)
    return {name: np.where(sound, x, np.nan) for name, x in measured.items()}


def share_of_gain(before: np.ndarray, full: np.ndarray, reached: np.ndarray, points: np.ndarray) -> np.ndarray:
    """What each member stands for in the gain in return over the gain of the full run, at its point of the grid.

    Both gains are summed over the members of a point, because a member whose full run gained nothing would decide a
    mean of ratios. Members' values are that ratio and its first derivative in what each adds to either sum, so that
    their mean is the ratio, and their spread its error (the delta method).

    Args:
        before, full, reached: mean returns float64[N]; who has a NaN counts in neither sum.
        points: [N], equal for members of one point.

    Returns:
        float64[N]; NaN of who does not count, and where the full run's own gain is not above 0, as far as its interval
        tells.
    """
    shares = np.full(len(before), np.nan)
    for point in np.unique(points):
        here = (points == point) & np.isfinite(reached - before + full)
        gain, whole = (reached - before)[here], (full - before)[here]
        mean = statistics.mean_of(whole)
        low, _ = mean.interval()
        if (low if np.isfinite(low) else mean.mean) > 0:
            ratio = gain.mean() / mean.mean
            shares[here] = ratio + (gain - ratio * whole) / mean.mean
    return shares


def _where(sound: np.ndarray, x: np.ndarray) -> np.ndarray:
    """`x` of the members that are sound, NaN of the others."""
    return np.where(sound.reshape(-1, *(1,) * (x.ndim - 1)), x, np.array(np.nan, x.dtype))


def _flat(matrices: Matrices) -> np.ndarray:
    """float64[N, parameters]; exact for all that parameters are stored in."""
    return np.concatenate([x.reshape(len(x), -1).astype(np.float64) for x in matrices.values()], axis=1)


def _bf16(values: np.ndarray) -> np.ndarray:
    return values.astype(np.float32).astype(jnp.bfloat16.dtype)


def _cosine(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    norms = np.linalg.norm(first, axis=1) * np.linalg.norm(second, axis=1)
    return np.where(norms > 0, (first * second).sum(axis=1) / np.where(norms > 0, norms, 1.0), np.nan)
