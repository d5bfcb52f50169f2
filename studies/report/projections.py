"""Where a policy stands between Mold and Gold, turn by turn, where `analysis concepts` has found the axis.

The axis v_Gold − v_Mold of arXiv 2605.30232, eq. 1, at each member's layer, is read from the table that the analysis
leaves with the run, and the stream of the recorded episodes at the token of every move, as there.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from agents.policies import Parameters, Policy
from agents.runs import Run
from analysis import extraction
from envs import base
from ground import files
from ground.files import RunError

ARMS = ("before RL", "after RL")
"""What the analysis calls the two checkpoints that are shown."""
_COLUMNS = ["run", "arm", "member", "layer", "concept", "vector"]


@dataclasses.dataclass(frozen=True)
class Axes:
    """The axis from Mold to Gold of every member, at one checkpoint."""

    directions: np.ndarray
    """float32[M, D], v_Gold − v_Mold at the member's layer."""
    layers: np.ndarray
    """int[M], index of the layer among the blocks."""


def find(run: Run) -> dict[str, Axes] | None:
    """The axes before RL and after, by arm; None where concepts have not been analysed.

    Of several analyses the one of most episodes counts.

    Raises:
        RunError: an analysis is there and cannot be read.
    """
    documents = [
        (files.read_json(path), path)
        for path in sorted(files.entries(run.path / "analysis"))
        if path.suffix == ".json" and (path.stem == "concepts" or path.stem.startswith("concepts-"))
    ]
    if not documents:
        return None
    document, path = max(documents, key=lambda each: (_episodes(each[0]), each[1].name))
    try:
        rows = pq.read_table(path.with_suffix(".parquet"), columns=_COLUMNS, filters=[("run", "=", "")]).to_pydict()
        return {arm: _of_arm(document["arms"][arm]["rule_layer"], arm, rows, run.members) for arm in ARMS}
    except (OSError, pa.ArrowException, KeyError, TypeError, ValueError, IndexError) as error:
        raise RunError(f"{path}: not as `analysis concepts` leaves it; run the analysis again") from error


def _episodes(document: dict) -> int:
    try:
        return int(document["extraction"]["episodes"])
    except (KeyError, TypeError, ValueError):
        return 0


def _of_arm(rule_layers: list[int], arm: str, rows: dict[str, list], members: int) -> Axes:
    """Axes of all members; what was measured for the first alone holds for all, who share it."""
    vectors = {
        (member, layer, concept): np.asarray(vector, np.float32)
        for name, member, layer, concept, vector in zip(*(rows[key] for key in _COLUMNS[1:]), strict=True)
        if name == arm
    }
    if len(rule_layers) not in (1, members):
        raise ValueError(f"{len(rule_layers)} members")
    found = [
        vectors[member, layer, "gold"] - vectors[member, layer, "mold"] for member, layer in enumerate(rule_layers)
    ]
    of_member = [member if len(rule_layers) > 1 else 0 for member in range(members)]
    return Axes(np.stack(found)[of_member], np.asarray(rule_layers)[of_member] - 1)


@functools.partial(jax.jit, static_argnames=("policy", "world"))
def _read(policy: Policy, parameters: Parameters, world: base.World, sequence: jax.Array) -> jax.Array:
    moves = jnp.asarray(world.action_positions(), jnp.int32)
    at = jnp.broadcast_to(moves, (len(sequence), len(moves)))
    return extraction.residuals(policy, parameters, sequence, at, extraction.blocks(policy))


def project(
    policy: Policy, parameters: Parameters, world: base.World, sequence: np.ndarray, axis: np.ndarray, layer: int
) -> np.ndarray:
    """The projection of one member's episodes on its axis at every move, float64[N, T].

    Its unit is half the distance between the class means of Mold and Gold; its zero the mean over these episodes.

    Args:
        policy, parameters, world: of the member.
        sequence: its episodes, tokens int32[N, S].
        axis: float32[D], v_Gold − v_Mold.
        layer: index among the blocks.
    """
    stream = np.asarray(_read(policy, parameters, world, jnp.asarray(sequence, jnp.int32)), np.float64)[:, :, layer]
    # v_Gold − v_Mold is 3/2 of the difference of the class means, so that a half-distance is a third of it.
    direction = axis.astype(np.float64)
    along = 3 * stream @ direction / max(float(direction @ direction), 1e-30)
    return along - along.mean()
