"""Algorithms as points of one space: the switches of stage `rl`, the named ones, and what they make of a batch.

A preset changes only what sets the algorithm apart, as its authors' code has it. Sizes, learning rate and, but where
its source sets them, the entropy bonuses stay what they are, so that two of them differ in nothing else.
"""

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from agents.learning import objectives, rollout
from agents.learning.hyperparameters import stage_config


@stage_config
class RLConfig:
    """The stage `rl`: one learner, of which `ALGORITHMS` names some points."""

    updates: int = 24
    """Updates: a batch played, and the steps taken on it."""
    chunk: int = 1
    """Updates of one compiled call; progress, metrics and checkpoints happen between calls."""
    episodes: int = 256
    """Episodes per member and update."""
    epochs: int = 2
    """Passes over the episodes of an update."""
    minibatches: int = 4
    """Optimiser steps of an epoch; must divide the episodes."""
    learning_rate: float = 1e-3
    """Peak learning rate of AdamW; a cosine takes it to `final_learning_rate` times itself."""
    final_learning_rate: float = 0.1
    """Where the cosine ends, with the last step, as a fraction of the peak."""
    weight_decay: float = 0.0
    """Decoupled weight decay of AdamW."""
    max_gradient_norm: float = 1.0
    """The gradient's global norm is clipped here."""
    discount: float = 1.0
    """Discount per turn, gamma."""
    trace_decay: float = 0.9
    """Decay of the advantage trace, lambda of GAE."""
    advantage: Literal["gae", "to_go", "episode", "group_mean", "group_z", "group_others", "outcome"] = "gae"
    """Of a decision. `gae`: with the value head. `to_go`: the return from there on. The others give every decision of
    an episode the same: `episode`, its return; `group_mean`, `group_z` and `group_others`, its return against those of
    its group (minus the mean; that over the standard deviation; minus the mean of the other ones); `outcome`, 1 where
    the world has paid more than nothing, else -1."""
    group: int = 1
    """Episodes that share a maze, a start and the weather; must divide the episodes."""
    normalise: Literal["batch", "scale", "returns", "none"] = "batch"
    """Advantages of an update: `batch` to mean 0 and standard deviation 1; `scale` to root mean square 1; `returns`
    over the standard deviation of the returns of all episodes, as Lite PPO does (arXiv 2508.08221); or as they are."""
    average: Literal["decision", "episode", "constant"] = "decision"
    """What a step averages over: all decisions alike; each episode's mean; or the sum over each episode by the
    longest episode there can be, as Dr. GRPO does (arXiv 2503.20783)."""
    informative_groups: bool = False
    """Leave out groups whose episodes all earn the same, before any charge (the dynamic sampling of DAPO, arXiv
    2503.14476, without drawing others)."""
    absolute_weights: bool = False
    """Weigh each decision by its absolute advantage over an episode's mean one: what drawing episodes in proportion to
    it comes to in the mean (arXiv 2508.10839)."""
    positive_weight: float = 1.0
    """Factor of advantages above 0."""
    negative_weight: float = 1.0
    """Factor of advantages below 0."""
    only_weighted: bool = False
    """Leave out decisions whose factor is 0, so that a step averages over the others alone, its entropy bonus too, as
    the authors of arXiv 2506.01347 do."""
    choices: Literal["all", "name", "plan", "actions"] = "all"
    """Which decisions learn: all, or for controls the name that is spoken, the plan, or the actions alone. What was not
    trained moves only as far as it shares parameters with what was, and no advantage is built upon the value before it,
    which nobody learns."""
    ratio: Literal["decision", "episode"] = "decision"
    """Whose probability ratio is clipped: each decision's, or that of its whole episode, the product over its
    decisions (arXiv 2402.14740 as TRL has it); with --rl.average episode each episode then counts once."""
    clip_low: float = 0.2
    """How far the probability ratio may fall below 1."""
    clip_high: float = 0.2
    """How far the probability ratio may rise above 1."""
    clip_dual: float = 0.0
    """Bound of the objective where the advantage is negative, as a multiple of it (dual clip); 0 for none."""
    reference: Literal["none", "loss", "reward"] = "none"
    """Where the KL divergence from a reference, the model before RL, is charged: in the loss (estimated by k3), or in
    the reward of each decision."""
    reference_weight: float = 0.0
    """Weight of that divergence: what a nat costs, in the loss beside advantages as they are normalised, in the reward
    in the world's own points, whatever `reward_scale`."""
    reference_reset: int = 0
    """Updates after which the reference becomes the current policy and the optimiser starts afresh (ProRL, arXiv
    2505.24864); 0 for never."""
    staleness: int = 0
    """Updates by which the policy that plays lags behind the one that learns."""
    importance: Literal["coupled", "decoupled"] = "coupled"
    """What stale episodes are clipped against. `coupled`: the policy that played. `decoupled`: the policy before the
    update, each decision weighed by its probability under that one over that under the one that played (arXiv
    2505.24298)."""
    imitation: Literal["none", "sft"] = "none"
    """`sft`: every step also imitates demonstrations as the section `sft` describes them (CHORD, arXiv 2508.11408)."""
    imitation_weight: float = 0.5
    """Share mu of imitation in the first update: (1 - mu) RL + mu imitation."""
    final_imitation_weight: float = 0.05
    """The same in the last update; in between it goes in a straight line."""
    imitation_focus: bool = False
    """Weigh each imitated choice by p (1 - p), p its probability (CHORD-phi)."""
    plan_budget: float = 1.0
    """Share of the plan's tokens that the policy may choose in the first update."""
    final_plan_budget: float = 1.0
    """The same in the last update; in between it goes in a straight line."""
    value_weight: float = 0.5
    """Weight of the value loss."""
    reward_scale: float = 0.05
    """Rewards are multiplied by this for the value head; one Gold tile becomes 1."""
    entropy_weight: float = 0.0
    """Weight of the entropy of the four actions."""
    equalized_entropy_weight: float = 0.01
    """Weight of the entropy within each kind of tile (arXiv 2605.30232, appendix J.3)."""
    temperature: float = 1.0
    """Sampling temperature of the actions; the loss sees them at temperature 1, as in arXiv 2605.30232."""
    shuffle_rewards: bool = False
    """Control: every episode is paid with all the rewards of another one, of another group where there are groups."""


@dataclasses.dataclass(frozen=True)
class Algorithm:
    """A named point of the space."""

    title: str
    """What figures call it."""
    switches: dict[str, Any] = dataclasses.field(default_factory=dict)
    """What it changes of `RLConfig`."""


_GROUP = {"group": 8, "normalise": "none", "value_weight": 0.0}
_ONCE = {"epochs": 1, "value_weight": 0.0}
_OUTCOME = _ONCE | {
    "advantage": "outcome",
    "normalise": "none",
    "entropy_weight": 0.001,
    "equalized_entropy_weight": 0.0,
}

ALGORITHMS = {
    "ppo": Algorithm("PPO"),
    "grpo": Algorithm(
        "GRPO",
        _GROUP | {"advantage": "group_z", "average": "episode", "reference": "loss", "reference_weight": 0.04},
    ),
    "dr_grpo": Algorithm("Dr. GRPO", _GROUP | {"advantage": "group_mean", "average": "constant", "clip_dual": 3.0}),
    "dapo": Algorithm("DAPO", _GROUP | {"advantage": "group_z", "clip_high": 0.28, "informative_groups": True}),
    "lite_ppo": Algorithm("Lite PPO", _GROUP | {"advantage": "group_mean", "normalise": "returns"}),
    "ms_grpo": Algorithm("MS-GRPO", _GROUP | {"advantage": "group_z", "average": "constant", "absolute_weights": True}),
    "rloo": Algorithm("RLOO", _GROUP | _ONCE | {"advantage": "group_others", "average": "episode", "ratio": "episode"}),
    "reinforce": Algorithm("REINFORCE", _ONCE | {"advantage": "to_go"}),
    "psr": Algorithm("PSR", _OUTCOME | {"negative_weight": 0.0, "only_weighted": True}),
    "nsr": Algorithm("NSR", _OUTCOME | {"positive_weight": 0.0, "only_weighted": True}),
    "w_reinforce": Algorithm("W-REINFORCE", _OUTCOME | {"positive_weight": 0.1}),
}
"""What `--algorithm` knows, by name; docs/algorithms.md has the sources."""


def shares(config: RLConfig, decided: jax.Array) -> tuple[jax.Array, jax.Array]:
    """How much each decision of a minibatch counts.

    Args:
        config: whose `average` decides.
        decided: bool[B, D].

    Returns:
        float32[B, D], 0 where nothing was chosen, and what sums of them are divided by, float32[].
    """
    chosen = decided.astype(jnp.float32)
    if config.average == "decision":
        return chosen, jnp.maximum(chosen.sum(), 1.0)
    if config.average == "episode":
        length = chosen.sum(axis=1, keepdims=True)
        return chosen / jnp.maximum(length, 1.0), jnp.maximum((length > 0).sum(dtype=jnp.float32), 1.0)
    return chosen, jnp.float32(decided.size)


def advantages(
    config: RLConfig,
    episodes: rollout.Episodes,
    pay: jax.Array,
    rewards: jax.Array,
    values: jax.Array,
    taught: np.ndarray | None = None,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """What a batch of episodes teaches.

    Args:
        config: see its `advantage`, `informative_groups`, `normalise`, `only_weighted` and weights.
        episodes: B of them, groups in a row.
        pay: float32[B, T], the world's own rewards, which say whether an episode is a success and whether groups earn
            the same.
        rewards: float32[B, T], as they are to be credited: scaled, and with what else is charged.
        values: float32[B, K + T], before each decision.
        taught: bool[K + T], the decisions that may count, see `RLConfig.choices`; all by default.

    Returns:
        Which decisions count bool[B, K + T], their advantages and value targets, float32 of that shape.
    """
    decided, played, slots = episodes.decided, episodes.played, episodes.written.shape[1]
    traced, targets = jax.vmap(objectives.gae, in_axes=(0, 0, 0, 0, None, None, None))(
        rewards, values, episodes.written, played, config.discount, config.trace_decay, taught
    )
    if taught is not None:
        decided &= taught[None]
    returns, earned, kind = rewards.sum(axis=1), pay.sum(axis=1), config.advantage
    if kind == "gae":
        advantage = traced
    elif kind == "to_go":
        later = jax.vmap(objectives.rewards_to_go, in_axes=(0, 0, None))(rewards, played, config.discount)
        advantage = jnp.concatenate([jnp.repeat(later[:, :1], slots, axis=1), later], axis=1)
    else:
        of_episode = returns
        if kind == "outcome":
            of_episode = jnp.where(earned > objectives.rounding(pay), 1.0, -1.0)
        elif kind.startswith("group"):
            resolution = objectives.rounding(rewards, config.group)
            of_episode = objectives.group_advantage(returns, config.group, kind.removeprefix("group_"), resolution)
        advantage = jnp.broadcast_to(of_episode[:, None], decided.shape)
    if config.informative_groups:
        grouped, least = (x.reshape(-1, config.group) for x in (earned, objectives.rounding(pay)))
        differ = grouped.max(axis=1) - grouped.min(axis=1) > least.max(axis=1)
        decided &= jnp.repeat(differ, config.group)[:, None]
    if config.normalise == "batch":
        advantage = objectives.normalise(advantage, decided)
    elif config.normalise == "scale":
        advantage = objectives.rescale(advantage, decided)
    elif config.normalise == "returns":
        advantage = advantage / (objectives.deviation(returns) + 1e-6)
    if config.absolute_weights:
        size = jnp.abs(advantage)
        of_episode = jax.vmap(objectives.mean)(size, decided)
        advantage = advantage * size / jnp.maximum(objectives.mean(of_episode, decided.any(axis=1)), 1e-8)
    weight = jnp.where(advantage > 0, config.positive_weight, config.negative_weight)
    if config.only_weighted:
        decided &= weight != 0
    return decided, weight * advantage, targets
