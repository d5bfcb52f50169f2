"""The transformer alone: forward, forward and backward through microbatches, and cached decoding."""

import dataclasses

import jax
import jax.numpy as jnp

import envs
from agents.learning import learner, objectives, population, rollout
from agents.policies import PolicyConfig
from agents.policies.transformer import Transformer
from benchmarks import counts, measure
from benchmarks.measure import Benchmark, Case
from envs import tokens

SEQUENCES, LENGTH = 512, 128
"""Sequences of a batch and their tokens."""

MICROBATCHES = {64: (16, 8, 32, 512), 128: (16, 8)}
"""Width → sequences of one forward and backward pass; 512 is the whole batch at once."""

PLAYED = (256, 1024)
"""Episodes played at once."""


def benchmark(peers: bool) -> Benchmark:
    """Tokens per second at each width."""
    groups = []
    for width, microbatches in MICROBATCHES.items():
        config = PolicyConfig(width=width, heads=width // 16, hidden=4 * width)
        groups.append([reading(config, microbatches[0], backward=False)])
        groups.append([reading(config, microbatch, backward=True) for microbatch in microbatches])
        if width == 64 and jax.default_backend() != "cpu":
            shorter = dataclasses.replace(config, compute_dtype="bfloat16")
            groups.append([reading(shorter, SEQUENCES, backward=True)])
        groups.append([decoding(config, episodes) for episodes in PLAYED])
    return Benchmark(groups)


def reading(config: PolicyConfig, microbatch: int, backward: bool) -> Case:
    """Next-token prediction of random tokens, as `learner` trains: over all devices, in microbatches."""
    policy = Transformer(config)
    mesh = population.mesh(1, SEQUENCES)
    shards = learner.Shards(mesh.shape["episode"])

    def loss(parameters, sequence):
        logits, _ = policy.heads(parameters, policy.forward(parameters, sequence[:, :-1]).hidden)
        total = objectives.next_token_loss(logits, sequence[:, 1:]).sum()
        return total, {"loss": total}

    def member(parameters, sequence):
        mine = shards.local(sequence)
        if backward:
            return learner.accumulate(loss, parameters, mine, microbatch, shards)
        parts = learner.microbatches(mine, microbatch)
        return shards.total(jax.lax.map(lambda part: loss(parameters, part)[0], parts).sum())

    def prepare():
        sequence = jax.random.randint(jax.random.key(1), (1, SEQUENCES, LENGTH + 1), 0, tokens.FIRST)
        return measure.compiled(population.over_members(member, mesh), _parameters(policy), sequence)

    what = "forward + backward" if backward else "forward"
    name = f"{what}, {_sizes(config)}, {LENGTH} tokens, microbatches of {microbatch}"
    work = counts.shared(counts.reading(config, [LENGTH], LENGTH, passes=3 if backward else 1), LENGTH)
    return Case(name, "tokens", SEQUENCES * LENGTH, prepare, work)


def decoding(config: PolicyConfig, episodes: int) -> Case:
    """Playing whole episodes of EmojiMaze-v0 with the cache, mazes included, over all devices."""
    policy, (world, params) = Transformer(config), envs.make("EmojiMaze-v0")
    mesh = population.mesh(1, episodes)
    shards = learner.Shards(mesh.shape["episode"])

    def member(parameters, params):
        played = rollout.policy_episodes(
            policy, parameters, world, params, jax.random.key(2), episodes, local=shards.local
        )
        return shards.total(played.returns.sum())

    def prepare():
        every = jax.tree.map(lambda x: jnp.asarray(x)[None], params)
        return measure.compiled(population.over_members(member, mesh), _parameters(policy), every)

    name = f"cached decoding, {_sizes(config)}, {episodes:,} episodes"
    return Case(name, "tokens", episodes * world.episode_length(), prepare, counts.decoding(config, world))


def _parameters(policy: Transformer):
    return jax.tree.map(lambda x: x[None], policy.init(jax.random.key(0)))


def _sizes(config: PolicyConfig) -> str:
    precision = "" if config.compute_dtype == "float32" else f" {config.compute_dtype}"
    return f"width {config.width}, {config.layers} layers{precision}"
