"""A run directory of several processes: process 0 reads and writes it, the others learn what it read.

So the directory need not lie on a file system that all machines share. Every method here ends with a meeting of all
processes, so that an error of process 0's disk ends them all.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import jax

from agents import runs
from agents.runs import Run
from ground.processes import by_first, count, first, meet


class JointRun(Run):
    """`Run` for a process of several; each of them calls the same methods in the same order."""

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        with contextlib.ExitStack() as stack:
            if first():
                stack.enter_context(super().locked())
            meet()
            yield

    def ended(self) -> list[str]:
        return by_first(super().ended)

    def save_parameters(self, name: str, tree: Any) -> None:
        by_first(partial(super().save_parameters, name, tree))

    def parameters(self, name: str) -> Any:
        return by_first(partial(super().parameters, name))

    def save_state(self, stage: str, update: int, tree: Any) -> None:
        by_first(partial(super().save_state, stage, update, tree))

    def load_state(self, like_for: Callable[[str], Any]) -> runs.State | None:
        load = super().load_state

        def parts() -> dict | None:
            state = load(like_for)
            return state and {**state._asdict(), "tree": dict(enumerate(jax.tree.leaves(state.tree)))}

        parted = by_first(parts)
        if parted is None:
            return None
        structure = jax.tree.structure(like_for(parted["stage"]))
        return runs.State(**{**parted, "tree": structure.unflatten(parted["tree"].values())})

    def write_metrics(self, stage: str, first_update: int, columns: Mapping[str, Any]) -> None:
        by_first(partial(super().write_metrics, stage, first_update, columns))


def create(directory: str | Path, config: Mapping[str, Any], *, members: int) -> Run:
    """`runs.create` by process 0, for all."""
    return _joint(lambda: runs.create(directory, config, members=members))


def open(directory: str | Path) -> Run:
    """`runs.open` by process 0, for all."""
    return _joint(lambda: runs.open(directory))


def _joint(make: Callable[[], Run]) -> Run:
    if count() == 1:
        return make()

    def facts() -> list:
        run = make()
        return [str(run.path), run.document, run.members]

    path, document, members = by_first(facts)
    return JointRun(Path(path), document, members)
