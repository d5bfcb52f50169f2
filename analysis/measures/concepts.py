"""Concept vectors (arXiv 2605.30232): does a residual stream hold Gold and Mold as two ends of one axis?"""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr

from agents.policies import Parameters, Policy
from agents.runs import Run
from analysis import concepts as core
from analysis import directions, estimates, extraction
from analysis import tracking as tracked
from analysis.figures.panels import Curve, Curves, Panel, Rows
from analysis.measure import arms, at_least, each, measure, twins, variable
from envs import maze, tokens
from ground import statistics
from ground.precise import product

REFERENCES = ("other classes", "Path")
"""What Gold and Mold are compared with: each with the other two (eq. 1), or both with Path (appendix C.8)."""
WAYS = ("heard", "foretold", "said")
"""The narrator's 😀 − 😞 at the word itself, at the move before it, and in saying it: `tracking.narrator`."""


def course(measured: xr.Dataset) -> xr.Dataset:
    """How the axis turns during the last stage, at the layer that the rule chooses at its end.

    Args:
        measured: `concepts` of a run at several checkpoints, in their order.

    Returns:
        `update` int[checkpoint], 0 where the stage set out; of the axis `with_end`, its cosine with that at the end,
        and its `norm`; `opposition`, the cosine of Gold and Mold: float32[checkpoint, member].
    """
    part = estimates.last_stage(measured)
    layer = {"layer": part["rule_layer"].isel(checkpoint=-1, drop=True)}
    vectors = part["vectors"].sel(layer)
    axis = vectors.sel(concept="Gold", drop=True) - vectors.sel(concept="Mold", drop=True)
    at_end = axis.isel(checkpoint=-1, drop=True)
    norm = (axis * axis).sum("width") ** 0.5
    along = (axis * at_end).sum("width") / norm / (at_end * at_end).sum("width") ** 0.5
    opposition = part["cosine_by_layer"].sel(layer).sel(reference="other classes", drop=True)
    turned = xr.Dataset({"with_end": along, "opposition": opposition, "norm": norm})
    return turned.drop_vars("layer")


def panels(measured: Mapping[str, xr.Dataset]) -> Sequence[Panel]:
    """The cosine by both references, Path's place, the narrator, and how the axis turned where that was measured."""
    parts = estimates.columns(measured)

    def rows(variable: str, label: str, marks: Mapping[str, float], **at: str) -> Rows:
        return Rows({name: estimates.of(part[variable].sel(at)) for name, part in parts.items()}, label, marks)

    followed = estimates.columns(measured, followed=True)
    turned = {name: course(part) for name, part in followed.items() if part.sizes["checkpoint"] > 3}

    def curves(line: str, label: str) -> Curves:
        lines = {name: Curve(x["update"].values, x[line].values, x["unit"].values) for name, x in turned.items()}
        return Curves(lines, "update", label)

    return [
        rows("cosine", "cosine of Gold and Mold", {"unrelated": core.NULL}, reference="other classes"),
        rows("cosine", "the same as seen from Path", {"unrelated": core.PATH_NULL}, reference="Path"),
        rows("path_place", "Path's place, Mold −1, Gold +1", {"half-way": 0.0}),
        rows("narrator", "cosine with the narrator's good − bad", {"unrelated": 0.0}, way="foretold"),
        *([curves("with_end", "cosine with the axis at the end")] if turned else []),
        *([curves("opposition", "cosine of Gold and Mold")] if turned else []),
    ]


@measure(checkpoints=arms, panels=panels)
def concepts(
    run: Run, checkpoint: str, *, episodes: int = extraction.EPISODES, permutations: int = 200, seed: int = 0
) -> xr.Dataset:
    """Whether a policy holds Gold and Mold as two ends of one axis, beside every control.

    Args:
        episodes: of the extraction set; a multiple of 12.
        permutations: of the class labels; the smallest p is 1 / (this + 1).
        seed: of the extraction set and all chance.

    Returns:
        At the layer that the paper's rule chooses (`rule_layer`, 1 the first block): `cosine` of Gold's and Mold's
        vectors, its `p` among the `permuted` ones, `path_place`, the axis' cosine with the `narrator`'s. Of each class
        at its own `concept_layer`: `auroc`, `d` and `overlap` with the rest on held-out episodes, `norm` of its vector.
        At every layer: `cosine_by_layer`, `auroc_by_layer`, `d_by_layer`, `overlap_by_layer`, and `vectors`
        float32[member, concept, layer, width]. `lens`: what the last layer's axis does to the logit of every token.
        `agreement`: mean cosine of a member's axis with those of others, by `tiles`.
    """
    extraction.check("episodes", episodes)
    at_least(1, permutations=permutations)
    sets, told = extraction.sets(run, episodes, seed), narrated(run.config.world, run.config.pretrain, seed)
    given = (sets, told, extraction.keys(seed)[0])
    found, place, narrator, lens = each(extract, run, checkpoint, shared=given, permutations=permutations)
    layer, own, vectors = found.axis_layer, found.layer, found.vectors
    cosine, permuted = core.at(found.opposition, layer), core.at(found.permuted, layer)
    axes = np.asarray(directions.reward_axis(vectors))[:, layer[0]]
    agreement = core.agreement(axes, np.asarray(run.params.tile_map), twins(run, checkpoint))
    p = statistics.permutation_p_value(cosine, permuted, axis=1, alternative="less")
    separate = {"auroc": found.auroc, "d": found.d, "overlap": found.overlap}
    norm = core.at(np.linalg.norm(vectors, axis=-1), own)
    return xr.Dataset(
        {
            "cosine": variable("member reference", cosine, "cosine of Gold and Mold"),
            "p": variable("member reference", p, "p of it among dealt labels"),
            "path_place": variable("member", core.at(place, layer), "Path's place, −1 Mold, +1 Gold"),
            "narrator": variable("member way", core.at(narrator, layer), "cosine of the axis with the narrator's"),
            "rule_layer": variable("member", layer + 1, "the rule's layer"),
            "concept_layer": variable("member concept", own + 1, "the rule's layer of each class", table=0),
            "norm": variable("member concept", norm, "length of the vector", table=0),
            **{
                name: variable("member concept", core.at(values, own), f"{name} on held-out episodes", table=0)
                for name, values in separate.items()
            },
            **{
                f"{name}_by_layer": variable("member concept layer", values, name, table=0)
                for name, values in separate.items()
            },
            "cosine_by_layer": variable("member reference layer", found.opposition, "cosine of Gold and Mold", table=0),
            "permuted": variable("member draw reference", permuted, "cosine with dealt labels", table=0),
            "vectors": variable("member concept layer width", vectors, "concept vector", table=0),
            "lens": variable("member token", lens, "logit per unit of the axis", table=0),
            "agreement": variable("member tiles", agreement, "mean cosine with the axes of members, tiles", table=0),
        },
        {
            "reference": list(REFERENCES),
            "way": list(WAYS),
            "concept": [name.title() for name in tokens.ROLES[:3]],
            "layer": list(extraction.blocks(run.policy)),
            "token": list(tokens.VOCABULARY[: run.policy.vocabulary]),
            "tiles": ["the same", "others"],
        },
    )


@functools.lru_cache(maxsize=4)
def narrated(config: Any, shown: Any, seed: int) -> jax.Array:
    """Narrated episodes of a run's world and personas, int32[N, S]; see `tracking.narrated`."""
    world, params = config.make()
    return tracked.narrated(world, params, shown, extraction.keys(seed)[2])


def extract(
    policy: Policy,
    world: maze.EmojiMaze,
    parameters: Parameters,
    params: maze.MazeParams,
    sets: extraction.Sets,
    told: jax.Array,
    key: jax.Array,
    permutations: int = 200,
) -> tuple[core.Concepts, jax.Array, jax.Array, jax.Array]:
    """What the residual stream of a member holds.

    Args:
        policy, world, parameters, params: of the member, which knows the emoji of its own tile map.
        sets: in which classes are told apart.
        told: narrated episodes, tokens int32[N, S].
        key: of the permutations.
        permutations: of the class labels.

    Returns:
        Concepts; Path's place between Mold and Gold, float32[L]; the axis' cosine with the narrator's direction in
        the three `WAYS`, float32[3, L]; what the last block's axis does to each token's logit, float32[V].
    """
    training, others = (_read(policy, world, parameters, params, sets, one) for one in (sets.training, sets.held_out))
    strata = sets.training.directions * (world.turns + 1) + sets.training.steps
    found = core.measure(training, sets.training.classes, others, sets.held_out.classes, key, permutations, strata)
    axis = directions.reward_axis(found.vectors)
    narrator = tracked.narrator(policy, parameters, world, told)
    ways = jnp.stack([jnp.broadcast_to(way, axis.shape) for way in narrator])
    place = core.coordinate(found.means[tokens.PATH] + found.centre, found)
    lens = product("d,vd->v", axis[-1], tracked.unembedding(parameters))
    return found, place, core.cosine(jnp.broadcast_to(axis[None], ways.shape), ways), lens


def held(
    policy: Policy, world: maze.EmojiMaze, parameters: Parameters, params: maze.MazeParams, sets: extraction.Sets
) -> jax.Array:
    """A member's concept vectors, float32[C, L, D], without anything that judges them."""
    activations = _read(policy, world, parameters, params, sets, sets.training)
    return core.vectors(core.class_means(activations, sets.training.classes))


def _read(policy, world, parameters, params, sets, episodes) -> jax.Array:
    """Activations float32[N, L, D] where a class is about to be entered."""
    sequence = extraction.retile(episodes.tokens, sets.written, params.tile_map)
    return extraction.read_last(policy, parameters, world, sequence, extraction.blocks(policy))
