"""Recruitment (arXiv 2605.30232): pushed into the model before RL, does RL's reward axis make it speak of pleasure?

A base that has heard a narrator says 😀 or 😞 of what its moves will meet. If RL has recruited what it says that with,
RL's axis, added to the stream of the base, moves logit 😀 − logit 😞. After the last block a push only adds a constant
to the read-out and cannot depend on what was seen: what counts is what it does after blocks before that.
"""

from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr

from agents.learning import objectives
from agents.policies import Parameters, Policy
from agents.runs import Run
from analysis import directions, estimates, extraction, tracking
from analysis import steering as steered
from analysis.figures.panels import Panel, Rows
from analysis.measure import AT_ONCE, at_least, each, end, ends, mapped, measure, variable
from analysis.measures.concepts import concepts, held, narrated
from envs import base, tokens
from ground import seeds, statistics
from ground.terminal import ConfigError

DIRECTIONS = ("axis", "axis before", "gold", "mold", "path", "said")
"""As in `directions.of_member`, and `said`, what the base's unembedding tells 😀 from 😞 by."""
STRENGTHS = (0.25, 1.0)
"""Shares of the strength, on both sides, at which each direction is tried."""


def panels(measured: Mapping[str, xr.Dataset]) -> Sequence[Panel]:
    """What every direction does to 😀 − 😞, after each block, at the last checkpoint, beside random ones."""
    shown: list[Panel] = []
    parts = estimates.columns({arm: dataset.isel(checkpoint=-1) for arm, dataset in measured.items()})
    for column, part in parts.items():
        for layer in part["layer"].values:
            at = part.sel(layer=layer)
            rows = {name: estimates.of(at["swing"].sel(direction=name)) for name in DIRECTIONS}
            limit = float(at["limit"].mean())
            words = f"logit 😀 − 😞, pushed after block {layer}"
            label = f"{column}: {words}" if len(parts) > 1 else words
            shown.append(Rows(rows, label, {"random, 97.5 %": limit, "nothing": 0.0}))
    return shown


@measure(checkpoints=end, panels=panels, made_of=(concepts,))
def recruitment(
    run: Run,
    checkpoint: str,
    *,
    strength: float = 4.0,
    episodes: int = 64,
    extraction_episodes: int = extraction.EPISODES,
    draws: int = directions.RANDOM,
    seed: int = 0,
) -> xr.Dataset:
    """Whether a policy's reward axis makes the model before RL say 😀 rather than 😞, beside every control.

    Args:
        strength: of the push both ways, in units of half the distance between the class means of Mold and Gold.
        episodes: narrated ones of the personas, as in pretraining, in which the base is asked what it would say.
        extraction_episodes: of the extraction set that the axis is taken from; a multiple of 12.
        draws: random directions, which take nearly all of the time; 1 where nobody asks for their `limit` and `p`.
        seed: of all chance; the same as for `concepts` gives the same vectors.

    Returns:
        `swing` float32[member, direction, layer]: how logit 😀 − logit 😞 changes where the narrator speaks from a push
        of −strength to one of +strength after each block, all directions equally long. `random_swing`, that of
        directions drawn with the covariance of the base's own stream there; `limit`, below which 97.5 % of them are in
        size; `p` of the axis among them. `by_kl` and `limit_by_kl`: the same of weak pushes, over the root of the KL
        that they cost, so that directions are compared at equal KL; `kl` float32[member, direction, layer], nats a
        token at full strength. `speaks` float32[member]: how much higher the base's own logit difference is where 😀
        will follow than where 😞 will.
    """
    extraction.check("extraction-episodes", extraction_episodes)
    at_least(1, draws=draws)
    if strength < 1e-3:
        raise ConfigError(f"--strength={strength:g}: use at least 0.001")
    if run.world.turns < 2:
        raise ConfigError(f"{run.path}: --world.turns=1: a narrator speaks between turns; use a run of 2 or more")
    if not 1 <= episodes <= tracking.NARRATED:
        raise ConfigError(f"--episodes={episodes}: use 1 to {tracking.NARRATED}")
    start = ends(run)[0]
    # The base's are asked for again at every checkpoint, so they are kept; of others only the vectors are needed.
    known = concepts(run, start, episodes=extraction_episodes, seed=seed)
    before = known["vectors"].sel(checkpoint=start).values
    sets = extraction.sets(run, extraction_episodes, seed)
    vectors = before if checkpoint == start else each(held, run, checkpoint, shared=(sets,))
    told = narrated(run.config.world, run.config.pretrain, seed)[:episodes]
    members = (run.kept_parameters(start), vectors, before)
    shared = (told, seeds.held_out("recruitment", seed), jnp.float32(strength))
    feeling, spent, speaks = mapped(push, run.policy, run.world, (("draws", draws),), members, shared)
    swing, kl = feeling[..., -1] - feeling[..., 0], spent[..., [0, -1]].mean(axis=-1)
    # Where a push is weak, 😀 − 😞 goes with it and KL with its square.
    weak = np.sqrt(np.maximum(spent[..., [1, -2]], 0)).sum(axis=-1)
    equal = (feeling[..., -2] - feeling[..., 1]) / np.maximum(weak, 1e-4)
    count = len(DIRECTIONS)
    own, drawn = swing[:, :count], swing[:, count:]
    p = statistics.permutation_p_value(own[:, 0], np.abs(drawn), axis=1, alternative="greater")
    dims, unit, per_nat = "member direction layer", "logits", "logits per √nat"

    def above(values: np.ndarray) -> np.ndarray:
        return np.quantile(np.abs(values), 0.975, axis=1)

    return xr.Dataset(
        {
            "swing": variable(dims, own, "😀 − 😞, swing", unit),
            "limit": variable("member layer", above(drawn), "97.5 % of random", unit),
            "p": variable("member layer", p, "p of the axis among random directions"),
            "by_kl": variable(dims, equal[:, :count], "😀 − 😞, by the root of what a weak push costs", per_nat),
            "limit_by_kl": variable("member layer", above(equal[:, count:]), "97.5 % of random", per_nat),
            "kl": variable(dims, kl[:, :count], "KL of the next token", "nats"),
            "speaks": variable(
                "member", speaks, "😀 − 😞 where 😀 follows, less where 😞 does", unit, independent="base"
            ),
            "random_swing": variable("member draw layer", drawn, "swing of random directions", unit, table=0),
        },
        {"direction": list(DIRECTIONS), "layer": list(extraction.blocks(run.policy))},
    )


def push(
    policy: Policy,
    world: base.World,
    parameters: Parameters,
    vectors: jax.Array,
    before: jax.Array,
    told: jax.Array,
    key: jax.Array,
    strength: jax.Array,
    draws: int,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """What a base would say while pushed along `DIRECTIONS` and random directions.

    Args:
        policy, world, parameters: of the base.
        vectors, before: concept vectors of the policy and of its base, float32[C, L, D].
        told: narrated episodes, tokens int32[N, S].
        key: of the random directions.
        strength: the greatest.
        draws: random directions.

    Returns:
        logit 😀 − logit 😞 and KL of the next token from the base as it is, means over all turns but the last,
        float32[K, L, A], at `STRENGTHS` on both sides of 0; and `speaks`, float32[].
    """
    slots = world.action_positions()[:-1]
    levels = strength * jnp.array([-x for x in reversed(STRENGTHS)] + [*STRENGTHS], jnp.float32)
    word = told[:, slots + 1]

    def says(intervention):
        hidden = policy.forward(parameters, told, intervention=intervention, at=slots).hidden
        logits, _ = policy.heads(parameters, hidden)
        return logits[..., tokens.GOOD] - logits[..., tokens.BAD], jax.nn.log_softmax(logits)

    plain, usual = says(None)
    layers = extraction.blocks(policy)
    at = jnp.broadcast_to(jnp.asarray(slots, jnp.int32), word.shape)
    stream = extraction.residuals(policy, parameters, told, at, layers)
    axis = directions.reward_axis(vectors)
    named = [
        axis,
        directions.reward_axis(before),
        *(vectors[role] for role in (tokens.GOLD, tokens.MOLD, tokens.PATH)),
        jnp.broadcast_to(tracking.said(parameters), axis.shape),
    ]
    drawn = directions.matched(key, draws, stream.reshape(-1, *axis.shape))
    tried = directions.with_norm(jnp.concatenate([jnp.stack(named), drawn]), directions.half_way(vectors)[None])

    def ask(intervention):
        feeling, log_probabilities = says(intervention)
        return jnp.stack([feeling.mean(), objectives.divergence(usual, log_probabilities).mean()])

    at_once = max(1, AT_ONCE // len(told))
    feeling, kl = jnp.moveaxis(steered.over_pushes(ask, tried, jnp.arange(len(layers)), levels, at_once), -1, 0)
    good, bad = (jnp.mean(plain, where=word == token) for token in (tokens.GOOD, tokens.BAD))
    return feeling, kl, good - bad
