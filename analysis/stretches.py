"""A stretch of training: the parameters of a run at two checkpoints, as every measurement of an update reads them."""

import dataclasses
import functools
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr

from agents import runs
from agents.learning import rollout
from agents.runs import Run
from analysis import changes, passes, weights
from analysis.measure import ends, variable
from analysis.weights import Matrices
from envs import base, tokens
from ground import seeds

EPISODES = 512
"""Episodes that show which tokens a world says."""


@dataclasses.dataclass(frozen=True)
class Stretch:
    """The kept members of a run at two checkpoints; what changed between them may be counted in either direction."""

    run: Run
    since: str
    """The checkpoint that changes are counted from."""
    checkpoint: str
    """The checkpoint that they are counted to."""
    used: list[int]
    """The tokens that the world says, by which the embedding is cut."""
    before: Matrices
    """At `since`, by `changes.parts`."""
    after: Matrices
    """At `checkpoint`."""

    @property
    def kinds(self) -> dict[str, list[str]]:
        """Kind → its matrices; last `all`."""
        return changes.kinds(self.before)

    @property
    def about(self) -> dict[str, str]:
        """What a dataset says of itself."""
        stored = str(next(iter(self.before.values())).dtype)
        said = " ".join(tokens.VOCABULARY[token] for token in self.used)
        return {"since": self.since, "stored_dtype": stored, "used_tokens": said}

    def course(self) -> Iterator[Matrices]:
        """The parameters at every checkpoint from `since` to `checkpoint`, read one at a time."""
        names = self.run.checkpoints()
        first, last = names.index(self.since), names.index(self.checkpoint)
        for name in names[first : last + 1] if first <= last else names[last : first + 1][::-1]:
            yield _matrices(self.run, name, self.used)

    def learning_rate(self, power: int = 1) -> np.ndarray:
        """Learning rate to a power, summed over the steps between both checkpoints, from the metrics; float64[M].

        Raises:
            RunError: metrics are missing.
        """
        total = np.zeros(len(self.run.kept))
        for stage in runs.STAGES:
            first, last = sorted(updates_behind(self.run, name, stage) for name in (self.since, self.checkpoint))
            if first == last:
                continue
            self.run.check_metrics(stage, last)
            rates = (self.run.metric(stage, "learning_rate")[first:last] ** power).sum(axis=0)
            config = self.run.config.rl
            total += rates * (config.epochs * config.minibatches if stage == "rl" else 1)
        return total


def read(run: Run, checkpoint: str, since: str = "", used: list[int] | None = None) -> Stretch:
    """A stretch that ends at a checkpoint.

    Args:
        run: whose kept members are meant.
        checkpoint: where it ends.
        since: where it begins; by default where training set out from, as `measure.ends` has it, or untrained.
        used: tokens by which to cut the embedding; by default those of the run's own worlds.

    Raises:
        RunError: there is no such checkpoint.
    """
    since = since or ["init", *ends(run)][-2]
    used = used_tokens(run) if used is None else used
    return Stretch(run, since, checkpoint, used, *(_matrices(run, name, used) for name in (since, checkpoint)))


def used_tokens(run: Run) -> list[int]:
    """Tokens that occur in the worlds of the run's members, as a random player meets them, and what one can say."""
    leaves = [np.asarray(x).reshape(len(run.kept), -1) for x in jax.tree.leaves(run.params)]
    _, different = np.unique(np.concatenate(leaves, axis=1), axis=0, return_index=True)
    said = [np.unique(np.asarray(_said(run.world, jax.tree.map(lambda x, m=m: x[m], run.params)))) for m in different]
    openings = run.world.sayings.tolist() if run.world.opening_length else []
    return sorted({*tokens.MOVES, *openings}.union(*(x.tolist() for x in said)))


Measured = Mapping[str, Mapping[str, np.ndarray]]
"""Kind, or name of a matrix → measure → float64[M]."""


def dataset(
    kinds: Measured, matrices: Measured, meanings: Mapping[str, str], units: Mapping[str, str], shown: Collection[str]
) -> xr.Dataset:
    """Measures of kinds and of single matrices as a dataset.

    Args:
        kinds, matrices: the measures.
        meanings: measure → what it is.
        units: measure → its unit; a share of the parameters where none is given.
        shown: the measures that tables show.

    Returns:
        Each measure as float64[kind, member], and all of them as `by_matrix` float64[measure, matrix, member].
    """
    variables: dict[str, Any] = {}
    for name, meaning in meanings.items():
        unit, values = units.get(name, "share of the parameters"), np.stack([one[name] for one in kinds.values()])
        variables[name] = variable("kind member", values, meaning, unit, table=int(name in shown))
    every = np.stack([[one[name] for one in matrices.values()] for name in meanings])
    variables["by_matrix"] = variable("measure matrix member", every, "the measures of each matrix", table=0)
    return xr.Dataset(variables, {"kind": [*kinds], "matrix": [*matrices], "measure": [*meanings]})


@functools.partial(jax.jit, static_argnames="world")
def _said(world: base.World, params: base.WorldParams) -> jax.Array:
    """Tokens of episodes that a random player plays, int32[EPISODES, S]."""
    maze_key, turn_key = jax.random.split(seeds.held_out("tokens"))
    driver = passes.silent(world, lambda state: jnp.zeros(world.num_actions, jnp.float32))
    keys = jax.random.split(maze_key, EPISODES)
    return rollout.play(world, params, keys, turn_key, driver, rollout.gumbel(EPISODES))[0].tokens


def _matrices(run: Run, name: str, used: list[int]) -> Matrices:
    return changes.parts(weights.split(run.kept_parameters(name)), used)


def updates_behind(run: Run, name: str, stage: str) -> int:
    """How many updates of a stage a checkpoint has behind it."""
    last, _, update = name.partition("-")
    order = ("init", *runs.STAGES)
    if order.index(stage) > order.index(last):
        return 0
    return int(update) if update and stage == last else getattr(run.config, stage).updates
