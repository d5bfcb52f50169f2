"""The named algorithms against their sources: losses and gradients of small batches, worked out in NumPy.

Each reference is written from the formulas of the authors' code, in float64; its gradient is a central difference.
"""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from agents.learning import algorithms, learner, rl, rollout
from agents.learning.algorithms import ALGORITHMS, RLConfig
from envs import tokens
from tests import tiny

EPISODES, TURNS, GROUP = 8, 4, 4
WORLD, PARAMS = tiny.CONFIG.world.make()
MOVES = slice(tokens.MOVES[0], tokens.MOVES[0] + 4)


class Table:
    """A policy whose parameters are what it says: the logits of its moves and its values."""

    vocabulary = tokens.SIZE

    def forward(self, parameters, sequence, *, intervention, at):
        return types.SimpleNamespace(hidden=parameters)

    def heads(self, parameters, hidden):
        logits = jnp.zeros((EPISODES, TURNS, tokens.SIZE)).at[..., MOVES].set(hidden["logits"])
        return logits, hidden["values"]


class Sample:
    """A batch of two groups: what was done and paid, the policy that played, the one that learns, a reference."""

    def __init__(self, seed: int, *, outcomes: bool = False, on_policy: bool = False):
        random = np.random.default_rng(seed)
        shape = (EPISODES, TURNS)
        self.lengths = random.integers(1, TURNS + 1, EPISODES)
        self.mask = np.arange(TURNS)[None] < self.lengths[:, None]
        self.actions = random.integers(0, 4, shape)
        self.logits = random.normal(size=(*shape, 4)).astype(np.float32)
        self.old, self.reference = (
            self.chosen(self.logits + scale * random.normal(size=(*shape, 4)))
            for scale in (0.0 if on_policy else 0.3, 0.5)
        )
        self.values = random.normal(size=shape).astype(np.float32)
        self.rewards = np.where(self.mask, random.normal(size=shape), 0).astype(np.float32)
        if outcomes:
            last = np.arange(TURNS)[None] == self.lengths[:, None] - 1
            self.rewards = (last & (np.arange(EPISODES) % 3 == 0)[:, None]).astype(np.float32)
        self.returns = self.rewards.astype(np.float64).sum(axis=1)

    def log_softmax(self, logits):
        logits = np.asarray(logits, np.float64)
        return logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))

    def chosen(self, logits):
        return np.take_along_axis(self.log_softmax(logits), self.actions[..., None], axis=-1)[..., 0]

    def entropy(self, logits):
        log = self.log_softmax(logits)
        return -(np.exp(log) * log).sum(axis=-1)

    def ours(self, name):
        """Loss and its gradient by the logits, float[B, T, 4]."""
        weights = {"group": GROUP, "reward_scale": 1.0, "value_weight": 0.0, "equalized_entropy_weight": 0.0}
        config = RLConfig(**(ALGORITHMS[name].switches | weights))
        pay = jnp.array(self.rewards)
        ended = jnp.array(np.arange(TURNS)[None] == self.lengths[:, None] - 1)
        episodes = rollout.Episodes(
            tokens=jnp.zeros((EPISODES, WORLD.episode_length()), jnp.int32),
            actions=jnp.array(self.actions, jnp.int32),
            rewards=pay,
            terminated=ended,
            neighbours=jnp.zeros((EPISODES, TURNS, 4), jnp.int8),
            written=jnp.zeros((EPISODES, 0), bool),
        )
        np.testing.assert_array_equal(episodes.decided, self.mask)
        decided, advantages, targets = algorithms.advantages(config, episodes, pay, pay, jnp.array(self.values))
        batch = rl.Batch(
            tokens=episodes.tokens,
            actions=episodes.actions,
            neighbours=episodes.neighbours,
            decided=decided,
            log_probabilities=jnp.array(self.old, jnp.float32),
            reference=jnp.array(self.reference, jnp.float32),
            advantages=advantages,
            targets=targets,
        )
        share, norm = algorithms.shares(config, decided)
        loss = rl.loss_function(Table(), WORLD, config, jnp.maximum(decided.sum(dtype=jnp.float32), 1.0), norm)
        parameters = {"logits": jnp.array(self.logits), "values": jnp.array(self.values)}
        (value, _), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(parameters, (batch, share))
        return float(value), np.asarray(gradient["logits"])


def slope(function, at, width=1e-5):
    """The gradient of a function of float[...], by central differences."""
    at = np.asarray(at, np.float64)
    found = np.zeros_like(at)
    for place in np.ndindex(at.shape):
        step = np.zeros_like(at)
        step[place] = width
        found[place] = (function(at + step) - function(at - step)) / (2 * width)
    return found


def clipped(ratio, advantage, low=0.2, high=0.2):
    return np.minimum(ratio * advantage, np.clip(ratio, 1 - low, 1 + high) * advantage)


def by_group(returns, function):
    return np.concatenate([function(x) for x in returns.reshape(-1, GROUP)])


def z_scores(returns):
    """verl, TRL and Dr. GRPO's code alike: the sample's deviation."""
    return by_group(returns, lambda x: (x - x.mean()) / (x.std(ddof=1) + 1e-4))


def centred(returns):
    return by_group(returns, lambda x: x - x.mean())


def grpo(x, logits):
    """TRL, loss type `grpo`: the mean of each episode's mean, KL by k3 at 0.04."""
    log = x.chosen(logits)
    gain = clipped(np.exp(log - x.old), z_scores(x.returns)[:, None])
    away = x.reference - log
    gain = gain - 0.04 * (np.exp(away) - away - 1)
    return -np.mean((gain * x.mask).sum(axis=1) / x.lengths)


def dr_grpo(x, logits):
    """Its authors' code: sums over the longest episode there can be. Dual clip at 3 as arXiv 2605.30232 has it."""
    advantage = centred(x.returns)[:, None]
    gain = clipped(np.exp(x.chosen(logits) - x.old), advantage)
    gain = np.where(advantage < 0, np.maximum(gain, 3 * advantage), gain)
    return -np.mean((gain * x.mask).sum(axis=1) / TURNS)


def dapo(x, logits):
    """verl: the mean over the tokens of groups that earn differently, clipped to 0.8 … 1.28."""
    differ = by_group(x.returns, lambda r: np.full(GROUP, r.std() > 0))
    gain = clipped(np.exp(x.chosen(logits) - x.old), z_scores(x.returns)[:, None], 0.2, 0.28)
    return -gain[x.mask & differ[:, None]].mean()


def lite_ppo(x, logits):
    """ROLL: reward less the group's mean, over the deviation of the batch's rewards as they are; mean over tokens."""
    advantage = centred(x.returns) / (x.returns.std(ddof=1) + 1e-6)
    return -clipped(np.exp(x.chosen(logits) - x.old), advantage[:, None])[x.mask].mean()


def ms_grpo(x, logits):
    """arXiv 2508.10839: whole-episode z-scores, episodes drawn in proportion to |A|, here by their expectation."""
    advantage = z_scores(x.returns)
    drawn = EPISODES * np.abs(advantage) / np.abs(advantage).sum()
    gain = clipped(np.exp(x.chosen(logits) - x.old), (drawn * advantage)[:, None])
    return -np.mean((gain * x.mask).sum(axis=1) / TURNS)


def rloo(x, logits):
    """TRL: the ratio of whole episodes is clipped, each counts once."""
    advantage = by_group(x.returns, lambda r: r - (r.sum() - r) / (GROUP - 1))
    whole = ((x.chosen(logits) - x.old) * x.mask).sum(axis=1)
    return -clipped(np.exp(whole), advantage).mean()


def outcome(kept, weight=1.0):
    """The authors' code of arXiv 2506.01347: failures and successes are dropped before the mean over tokens is taken,
    and their entropy with them."""

    def loss(x, logits):
        good = x.returns == 1
        advantage = np.where(good, weight, -1.0)[:, None]
        rows = x.mask & kept(good)[:, None]
        gain = clipped(np.exp(x.chosen(logits) - x.old), advantage)
        return -gain[rows].mean() - 0.001 * x.entropy(logits)[rows].mean()

    return loss


def whitened(x, advantage):
    inside = advantage[x.mask]
    return (advantage - inside.mean()) / inside.std()


def ppo(x, logits):
    """GAE with gamma 1 and lambda 0.9, whitened over the batch."""
    advantage = np.zeros((EPISODES, TURNS))
    for row, length in enumerate(x.lengths):
        trace = 0.0
        for turn in reversed(range(length)):
            following = x.values[row, turn + 1] if turn + 1 < length else 0.0
            trace = x.rewards[row, turn] + following - x.values[row, turn] + 0.9 * trace
            advantage[row, turn] = trace
    return -clipped(np.exp(x.chosen(logits) - x.old), whitened(x, advantage))[x.mask].mean()


def reinforce(x, logits):
    """On policy: the gradient of log-probabilities, by the return to go, whitened over the batch."""
    to_go = np.cumsum(x.rewards[:, ::-1].astype(np.float64), axis=1)[:, ::-1]
    return -(whitened(x, to_go) * np.exp(x.chosen(logits) - x.old))[x.mask].mean()


SOURCES = {
    "ppo": ppo,
    "grpo": grpo,
    "dr_grpo": dr_grpo,
    "dapo": dapo,
    "lite_ppo": lite_ppo,
    "ms_grpo": ms_grpo,
    "rloo": rloo,
    "reinforce": reinforce,
    "psr": outcome(lambda good: good),
    "nsr": outcome(lambda good: ~good),
    "w_reinforce": outcome(np.ones_like, 0.1),
}


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", ALGORITHMS)
def test_a_preset_is_its_source(name, seed):
    outcomes = name in ("psr", "nsr", "w_reinforce")
    sample = Sample(seed, outcomes=outcomes, on_policy=name == "reinforce")
    if name == "dapo":  # one of two groups earns the same, in another order
        sample.lengths[:GROUP], sample.mask[:GROUP] = TURNS, True
        sample.rewards[:GROUP] = np.random.default_rng(seed).permuted(sample.rewards[:1].repeat(GROUP, 0), axis=1)
        sample.returns = sample.rewards.astype(np.float64).sum(axis=1)
        sample.returns[:GROUP] = sample.returns[0]
    value, gradient = sample.ours(name)
    expected = SOURCES[name](sample, sample.logits)
    wanted = slope(lambda logits: SOURCES[name](sample, logits), sample.logits)
    assert value == pytest.approx(expected, rel=2e-4, abs=2e-6)
    np.testing.assert_allclose(gradient, wanted, rtol=1e-3, atol=2e-6)
    assert np.abs(wanted).max() > 1e-3


def test_what_is_dropped_does_not_shorten_the_step():
    """A third of the episodes are successes: three times the gradient of a mean over all of them."""
    sample = Sample(5, outcomes=True)
    _, gradient = sample.ours("psr")
    kept = (sample.returns == 1)[:, None] & sample.mask
    assert not gradient[~kept].any()

    def over_all(logits):
        return -(clipped(np.exp(sample.chosen(logits) - sample.old), 1.0) * kept)[sample.mask].sum() / sample.mask.sum()

    without_entropy = gradient - slope(lambda logits: -0.001 * sample.entropy(logits)[kept].mean(), sample.logits)
    np.testing.assert_allclose(
        without_entropy, sample.mask.sum() / kept.sum() * slope(over_all, sample.logits), rtol=1e-3, atol=2e-6
    )


def test_the_filter_reads_returns_of_the_maze_exactly():
    """Gold +20, Mold −10, −0.1 a turn, now and then two tiles at once: equal tenths are equal, a tenth is not."""
    random = np.random.default_rng(0)
    tenths = random.choice([-1, 199, -101, 198, 98, -202], size=(64, 1, 15)).repeat(GROUP, axis=1)
    tenths = random.permuted(tenths, axis=2)
    tenths[32:, 0, 0] += 1
    pay = jnp.array(tenths.reshape(-1, 15) / 10, jnp.float32)
    assert (np.ptp(np.asarray(pay.sum(axis=1)).reshape(64, GROUP)[:32], axis=1) > 0).any()  # but for rounding
    false = jnp.zeros(pay.shape, bool)
    episodes = rollout.Episodes(
        tokens=jnp.zeros((len(pay), 1), jnp.int32), actions=jnp.zeros(pay.shape, jnp.int32), rewards=pay,
        terminated=false, neighbours=jnp.zeros((*pay.shape, 4), jnp.int8),
        written=jnp.zeros((len(pay), 0), bool),
    )  # fmt: skip
    config = RLConfig(**(ALGORITHMS["dapo"].switches | {"group": GROUP}))
    decided, _, _ = algorithms.advantages(config, episodes, pay, pay * config.reward_scale, jnp.zeros(pay.shape))
    kept = np.asarray(decided).all(axis=1).reshape(64, GROUP)
    assert not kept[:32].any()
    assert kept[32:].all()


@pytest.mark.parametrize("scale", [0.05, 1.0])
def test_a_nat_costs_points_of_the_world_whatever_rewards_are_scaled_by(scale, key):
    policy = tiny.CONFIG.make_policy()
    now, reference = (jax.tree.map(lambda x: 2 * x, policy.init(k)) for k in jax.random.split(key))
    config = RLConfig(episodes=16, advantage="episode", normalise="none", reward_scale=scale, reference="reward",
                      reference_weight=3.0)  # fmt: skip

    @jax.jit
    def collect():
        batch, metrics = rl.collect(policy, WORLD, config, PARAMS, now, key, 16, learner.Shards(), reference=reference)
        return batch, metrics, [rl.read(policy, p, WORLD, batch.tokens)[0] for p in (now, reference)]

    batch, metrics, (mine, other) = collect()
    apart = np.take_along_axis(np.asarray(mine - other), np.asarray(batch.actions)[..., None], -1)[..., 0].sum(axis=1)
    assert np.abs(apart).max() > 0.1
    paid = np.asarray(batch.advantages)[:, 0] / scale + 3.0 * apart
    assert paid.mean() == pytest.approx(float(metrics["return"]), abs=1e-3)
    # Every turn costs a tenth and a tile pays in tens: what is left over is what the world paid.
    np.testing.assert_allclose((paid + 0.1 * TURNS) / 10, np.round((paid + 0.1 * TURNS) / 10), atol=1e-4)
