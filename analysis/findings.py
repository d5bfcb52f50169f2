"""What the concept analysis finds in a run: arms, each a population, beside their controls.

An arm is a checkpoint: after RL, before RL, untrained; a run without RL has arms of its own. `look` measures an arm;
`summarise` turns it into the numbers that tables, documents and figures show.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from agents.runs.config import Config, ConfigError
from analysis import concepts, directions, extraction, populations, tracking
from analysis.subject import Subject
from envs import tokens
from ground import seeds, statistics

T = TypeVar("T")

UNTRAINED = "untrained"
"""The arm of every run that says what an architecture and its embeddings do by themselves."""


def arms(config: Config) -> dict[str, str]:
    """The arms of a run and their checkpoints: the effect, what was before it (if anything was), untrained."""
    if config.rl.updates:
        found = {"after RL": "rl", "before RL": config.before_rl}
    elif config.sft.updates:
        found = {"after SFT": "sft", "before SFT": "pretrain"}
    else:
        found = {"the base": "pretrain"}
    return found | {UNTRAINED: "init"}


def effect(arms: Mapping[str, T]) -> tuple[str, T]:
    """Name and content of the arm that a run is about."""
    return next(iter(arms.items()))


def before(arms: Mapping[str, T]) -> tuple[str, T]:
    """Name and content of the arm that the effect set out from: itself in a base."""
    return next((item for item in arms.items() if item[0].startswith("before")), effect(arms))


@dataclasses.dataclass(frozen=True)
class Sets:
    """Episodes that every arm of an analysis reads."""

    training: extraction.Approaches
    held_out: extraction.Approaches
    written: jax.Array
    """int32[5], the tile map that they are written in."""
    key: jax.Array
    """Of label permutations, the policies' own play, random directions and narrated episodes."""


@dataclasses.dataclass(frozen=True)
class Arm:
    """What was found at one checkpoint of a run. Arrays are NumPy, axis 0 the member."""

    name: str
    found: concepts.Concepts
    tracked: populations.Tracked
    narrator: tracking.Narrator
    lens: np.ndarray
    """float32[M, L, V], what the axis does to the logit of every token when read at once, without later blocks."""
    tile_maps: np.ndarray
    """int32[M, 5]"""

    @property
    def members(self) -> int:
        """Members of the arm."""
        return len(self.tile_maps)

    @property
    def axis(self) -> np.ndarray:
        """float32[M, L, D], from Mold to Gold."""
        return np.asarray(directions.reward_axis(self.found.vectors))

    @property
    def layer(self) -> np.ndarray:
        """int32[M], index of the layer for what concerns Gold and Mold alike."""
        return np.asarray(self.found.axis_layer)

    def at_layer(self, values: ArrayLike) -> np.ndarray:
        """Values [M, ..., L] at each member's layer; [M, ...]."""
        return np.stack([value[..., layer] for value, layer in zip(np.asarray(values), self.layer, strict=True)])


def check_episodes(option: str, episodes: int) -> None:
    """Refuse a size of the extraction set that cannot be balanced, or leaves too little to measure.

    Raises:
        ConfigError: one line that names the option.
    """
    if episodes < 120 or episodes % 12:
        raise ConfigError(f"--{option}={episodes}: use a multiple of 12, at least 120")


def held_out(episodes: int) -> int:
    """Further episodes for choosing layers: a fifth of the extraction set, a multiple of 12."""
    return max(episodes // 60 * 12, 12)


def draw_sets(subject: Subject, episodes: int, seed: int) -> Sets:
    """The extraction set of a run's world (of its first member's, where they differ).

    Raises:
        ConfigError: a class has no episode in this world.
    """
    keys = jax.random.split(seeds.held_out("concepts", seed), 3)
    params: Any = jax.tree.map(lambda x: x[0], subject.params)
    world: Any = subject.world
    sizes = (episodes, held_out(episodes))
    sets = [extraction.approaches(world, params, key, size) for key, size in zip(keys[:2], sizes, strict=True)]
    for drawn in sets:
        missing = np.bincount(np.asarray(drawn.classes)[~np.asarray(drawn.found)], minlength=3)
        if missing.any():
            role = int(np.argmax(missing))
            raise ConfigError(
                f"{subject.run.path}: {missing[role]} of {len(drawn.classes) // 3} episodes of class "
                f"{tokens.ROLES[role].title()} cannot be found in {extraction.TRIES} mazes each; the run's "
                f"world.gold_ratio={float(params.gold_ratio):g} leaves too few such tiles, so analyse a run with more"
            )
    return Sets(*sets, written=params.tile_map, key=keys[2])


def look(
    subject: Subject,
    name: str,
    parameters: Any,
    sets: Sets,
    before: concepts.Concepts | None,
    play_episodes: int,
    permutations: int = 200,
) -> Arm:
    """Measure one arm.

    Args:
        subject: the run.
        name: of the arm.
        parameters: of the arm's members.
        sets: from `draw_sets`.
        before: concepts of the model before RL, to be tried as directions here; the arm's own if None.
        play_episodes: of each member's own play.
        permutations: of the labels.
    """
    count = len(jax.tree.leaves(parameters)[0])
    policy, world = subject.policy, subject.world
    params = jax.tree.map(lambda x: x[:count], subject.params)
    parameters = jax.tree.map(jnp.asarray, parameters)
    permutation_key, track_key, narrator_key = jax.random.split(sets.key, 3)
    made = populations.extract(
        policy, parameters, world, params.tile_map, sets.training, sets.held_out, sets.written, permutation_key,
        permutations,
    )  # fmt: skip
    # On the host, as `before` is: arrays laid out over devices would ask for another compiled program.
    found: Any = jax.tree.map(np.asarray, made)
    own = found if before is None else before
    tracked = populations.track(policy, parameters, world, params, found, own, track_key, play_episodes)
    _, plain = subject.config.world.make()
    narrator = populations.narrator(policy, parameters, world, plain, subject.config.pretrain, narrator_key)
    result = (found, tracked, narrator, _lens(parameters, found.vectors), params.tile_map)
    return Arm(name, *jax.tree.map(np.asarray, result))


@jax.jit
@jax.vmap
def _lens(parameters: Any, vectors: jax.Array) -> jax.Array:
    """float32[L, V] of one member: what its axis does to every token's logit."""
    return directions.reward_axis(vectors) @ tracking.unembedding(parameters).T


def repeat(found: concepts.Concepts, members: int) -> concepts.Concepts:
    """Concepts of one member, for each of several; unchanged where there are as many already."""
    if len(found.layer) == members:
        return found
    return jax.tree.map(lambda x: np.broadcast_to(x, (members, *x.shape[1:])), found)


def estimate(values: ArrayLike) -> dict[str, Any]:
    """Values [M] of the members, their mean and its 95 % bootstrap interval (None for one member)."""
    values = np.asarray(values, np.float64)
    finite = np.isfinite(values)
    interval = None
    if finite.all() and len(values) > 1:
        interval = [float(end) for end in statistics.bootstrap_interval(values, statistic=np.mean)]
    mean = float(values[finite].mean()) if finite.any() else float("nan")
    return {"mean": mean, "interval": interval, "members": values}


def summarise(arm: Arm) -> dict[str, Any]:
    """The numbers of an arm as a document."""
    found = arm.found
    cosines = {}
    for index, (reference, null) in enumerate((("other_classes", concepts.NULL), ("path", concepts.PATH_NULL))):
        by_layer = found.opposition[:, index]
        at_rule = arm.at_layer(by_layer)
        permuted = arm.at_layer(found.permuted[:, :, index])
        p = statistics.permutation_p_value(at_rule, permuted, alternative="less")
        cosines[reference] = {
            "null": null,
            "minimum_over_layers": estimate(by_layer.min(axis=-1)),
            "at_rule_layer": estimate(at_rule),
            "mean_over_layers": estimate(by_layer.mean(axis=-1)),
            "by_layer": by_layer,
            "permuted_labels": {
                "mean": permuted.mean(),
                "quantiles_2.5_97.5": np.quantile(permuted, [0.025, 0.975]),
                "p_members": p,
                "p_floor": 1 / (permuted.shape[1] + 1),
            },
        }
    held_out = {
        name.lower(): {
            "layer": found.layer[:, role] + 1,
            "auroc": estimate(_own_layer(found.auroc, found.layer, role)),
            "d": estimate(_own_layer(found.d, found.layer, role)),
            "overlap": estimate(_own_layer(found.overlap, found.layer, role)),
            "norm": estimate(np.linalg.norm(_own_layer(found.vectors, found.layer, role), axis=-1)),
        }
        for role, name in enumerate(tokens.ROLES[:3])
    }
    landed = arm.tracked.landed
    place = np.asarray(jax.vmap(class_coordinates)(found))[:, tokens.PATH]
    return {
        "members": arm.members,
        "rule_layer": arm.layer + 1,
        "cosine": cosines,
        "path_place": estimate(arm.at_layer(place)),
        "held_out": held_out,
        "goal_tracking": {name: _tracking(arm, name) for name in arm.tracked.tracking},
        "landed_share": {name.lower(): (landed == role).mean() for role, name in enumerate(tokens.ROLES[:3])},
        "narrator_cosine": {way: estimate(cosines) for way, cosines in narrator_cosines(arm).items()},
        "axis_agreement": agreement(arm),
    }


def class_coordinates(found: concepts.Concepts) -> jax.Array:
    """Where one member's class means stand between Mold (−1) and Gold (+1), float32[C, L]."""
    return concepts.coordinate(found.means + found.centre[None], found)


def _own_layer(values: ArrayLike, layers: ArrayLike, role: int) -> np.ndarray:
    """Values [M, C, L, ...] of a class at the layer that the rule chose for it."""
    pairs = zip(np.asarray(values), np.asarray(layers), strict=True)
    return np.stack([value[role, layer[role]] for value, layer in pairs])


def _tracking(arm: Arm, name: str) -> dict[str, Any]:
    """d and AUROC of a direction, or the spread of |d| of random ones, by site and outcome at the arm's layer."""
    tracked = arm.tracked.tracking[name]
    result: dict[str, Any] = {}
    for s, site in enumerate(tracking.SITES):
        for o, outcome in enumerate(tracking.OUTCOMES):
            d = arm.at_layer(tracked.d[:, :, s, o])
            if tracked.auroc is None:
                sizes = np.abs(d)
                middle = np.nanmedian(sizes)
                entry: dict[str, Any] = {"directions": d.shape[1], "median_size": middle}
                entry["quantile_97.5_size"] = np.nanquantile(sizes, 0.975)
            else:
                area = arm.at_layer(tracked.auroc[:, :, s, o])[:, 0]
                entry = {"d": estimate(d[:, 0]), "auroc": estimate(area), "d_by_layer": tracked.d[:, 0, s, o]}
            result[f"{site}_{outcome}"] = entry
    return result


def narrator_cosines(arm: Arm) -> dict[str, np.ndarray]:
    """Cosine of the axis with the narrator's 😀 − 😞 direction, read in three ways, at the arm's layer; float64[M]."""
    axis = jnp.asarray(arm.axis)
    ways = {"heard": arm.narrator.heard, "foretold": arm.narrator.foretold, "said": arm.narrator.said[:, None]}
    return {
        name: arm.at_layer(concepts.cosine(axis, jnp.broadcast_to(way, axis.shape))).astype(np.float64)
        for name, way in ways.items()
    }


def agreement(arm: Arm) -> dict[str, Any] | None:
    """Mean cosine between the axes of two members, over pairs that know the same emoji and pairs that do not.

    An axis that is an emoji's own turns with the tile map: over all orders of three emoji its mean cosine with the
    others is −1/5. Members are compared at the first member's layer; None for one member.
    """
    if arm.members < 2:
        return None
    axes = arm.axis[:, arm.layer[0]].astype(np.float64)
    axes /= np.maximum(np.linalg.norm(axes, axis=-1, keepdims=True), 1e-30)
    cosines = axes @ axes.T
    same = (arm.tile_maps[:, None] == arm.tile_maps[None]).all(axis=-1)
    pairs = np.triu(np.ones(cosines.shape, bool), 1)
    by_kind = {"same_tiles": cosines[pairs & same], "other_tiles": cosines[pairs & ~same]}
    return {name: {"mean": x.mean(), "pairs": x} for name, x in by_kind.items() if x.size}
