"""A run directory of several processes: process 0 reads and writes it, the others learn what it found.

So the directory need not lie on a file system that all machines share. Every method here ends with a meeting of all
processes, so that an error of process 0's disk ends them all.
"""

import contextlib
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from agents import runs
from agents.runs import Run
from ground import processes


class JointRun(Run):
    """`Run` for a process of several; each of them calls the same methods in the same order."""

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        with contextlib.ExitStack() as stack:
            if processes.first():
                stack.enter_context(super().locked())
            processes.meet()
            yield

    def ended(self) -> list[str]:
        return _shared_json(super().ended() if processes.first() else None)

    def save_parameters(self, name: str, tree: Any) -> None:
        if processes.first():
            super().save_parameters(name, tree)
        processes.meet()

    def parameters(self, name: str) -> Any:
        tree = super().parameters(name) if processes.first() else None
        return _nested(_shared_leaves(None if tree is None else _flat(tree)))

    def save_state(self, stage: str, update: int, tree: Any) -> None:
        if processes.first():
            super().save_state(stage, update, tree)
        processes.meet()

    def load_state(self, like_for: Callable[[str], Any]) -> runs.State | None:
        state = super().load_state(like_for) if processes.first() else None
        about = _shared_json(state and [state.stage, state.update, state.note])
        if about is None:
            return None
        stage, update, note = about
        structure = jax.tree.structure(like_for(stage))
        leaves = None if state is None else {(str(i),): x for i, x in enumerate(jax.tree.leaves(state.tree))}
        return runs.State(stage, update, structure.unflatten(_shared_leaves(leaves).values()), note)

    def write_metrics(self, stage: str, first_update: int, columns: Mapping[str, Any]) -> None:
        if processes.first():
            super().write_metrics(stage, first_update, columns)
        processes.meet()


def create(directory: str | Path, config: Mapping[str, Any], *, members: int) -> Run:
    """`runs.create` by process 0, for all."""
    return _joint(lambda: runs.create(directory, config, members=members))


def open(directory: str | Path) -> Run:
    """`runs.open` by process 0, for all."""
    return _joint(lambda: runs.open(directory))


def _joint(make: Callable[[], Run]) -> Run:
    if processes.count() == 1:
        return make()
    run = make() if processes.first() else None
    path, document, members = _shared_json(run and [str(run.path), run.document, run.members])
    return JointRun(Path(path), document, members)


def _shared_json(value: Any) -> Any:
    return json.loads(processes.from_first(json.dumps(value).encode()))


def _shared_leaves(leaves: dict[tuple, Any] | None) -> dict[tuple, np.ndarray]:
    """Process 0's arrays by key, on every process, to the bit."""
    arrays = {key: np.asarray(x, order="C") for key, x in (leaves or {}).items()}
    about = _shared_json([[key, x.dtype.name, x.shape] for key, x in arrays.items()])
    data, start, result = processes.from_first(b"".join(x.tobytes() for x in arrays.values())), 0, {}
    for key, name, shape in about:
        dtype = jax.numpy.dtype(name)
        size = int(np.prod(shape, dtype=np.int64))
        result[tuple(key)] = np.frombuffer(data, dtype, size, start).reshape(shape)
        start += size * dtype.itemsize
    return result


def _flat(tree: Any, key: tuple = ()) -> dict[tuple, Any]:
    if not isinstance(tree, Mapping):
        return {key: tree}
    return {path: leaf for name, branch in tree.items() for path, leaf in _flat(branch, (*key, name)).items()}


def _nested(leaves: dict[tuple, np.ndarray]) -> Any:
    tree: dict = {}
    for key, array in leaves.items():
        node = tree
        for name in key[:-1]:
            node = node.setdefault(name, {})
        node[key[-1]] = array
    return tree
