"""The transformer alone: forward, forward and backward through microbatches, and cached decoding."""

import dataclasses

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

import envs
from agents.learning import learner, objectives, rollout
from agents.policies import PolicyConfig
from agents.policies.transformer import Transformer
from benchmarks import counts
from benchmarks.measure import Case, Options, Report
from envs import tokens

SEQUENCES, LENGTH = 512, 128
"""Sequences of a batch and their tokens."""

MICROBATCHES = (16, 8, 32, 512)
"""Sequences of one forward and backward pass; 512 is the whole batch at once."""

WIDTHS = (64, 128)


def run(options: Options) -> Report:
    """Tokens per second at each width."""
    report = Report()
    for width in WIDTHS:
        config = PolicyConfig(width=width, heads=width // 16, hidden=4 * width)
        report.add([_reading(config, size, backward=False) for size in MICROBATCHES[:1]], options)
        sizes = MICROBATCHES if width == WIDTHS[0] else MICROBATCHES[:2]
        report.add([_reading(config, size, backward=True) for size in sizes], options)
        if width == WIDTHS[0] and jax.default_backend() != "cpu":
            report.add([_reading(dataclasses.replace(config, compute_dtype="bfloat16"), 512, backward=True)], options)
        report.add([_decoding(config, episodes) for episodes in (256, 1024)], options)
    return report


def _reading(config: PolicyConfig, microbatch: int, backward: bool) -> Case:
    """Next-token prediction of random tokens, as `learner` trains: over all devices, in microbatches."""
    policy = Transformer(config)
    mesh = learner.population_mesh(1, SEQUENCES)
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
        sharding = NamedSharding(mesh, PartitionSpec("member"))
        sequence = jax.random.randint(jax.random.key(1), (1, SEQUENCES, LENGTH + 1), 0, tokens.SIZE)
        arguments = jax.device_put((_parameters(policy), sequence), sharding)
        program = jax.jit(learner.over_members(member, mesh)).lower(*arguments).compile()
        return lambda: program(*arguments), program

    what = "forward + backward" if backward else "forward"
    name = f"{what}, {_sizes(config)}, {LENGTH} tokens, microbatches of {microbatch}"
    work = counts.training(config, LENGTH, backward=backward)
    return Case(name, "tokens", SEQUENCES * LENGTH, prepare, work)


def _decoding(config: PolicyConfig, episodes: int) -> Case:
    """Playing whole episodes of EmojiMaze-v0 with the cache, mazes included, over all devices."""
    policy, (world, params) = Transformer(config), envs.make("EmojiMaze-v0")
    mesh = learner.population_mesh(1, episodes)
    shards = learner.Shards(mesh.shape["episode"])

    def member(parameters, params):
        keys = shards.local(jax.random.split(jax.random.key(2), episodes))
        driver = rollout.policy_driver(policy, parameters, world)
        noise = rollout.gumbel(episodes, shards.local)
        played, _, _ = rollout.play(world, params, keys, jax.random.key(3), driver, noise)
        return shards.total(played.returns.sum())

    def prepare():
        arguments = (_parameters(policy), jax.tree.map(lambda x: jnp.asarray(x)[None], params))
        arguments = jax.device_put(arguments, NamedSharding(mesh, PartitionSpec("member")))
        program = jax.jit(learner.over_members(member, mesh)).lower(*arguments).compile()
        return lambda: program(*arguments), program

    name = f"cached decoding, {_sizes(config)}, {episodes:,} episodes"
    return Case(name, "tokens", episodes * world.episode_length(), prepare, counts.decoding(config, world))


def _parameters(policy: Transformer):
    return jax.tree.map(lambda x: x[None], policy.init(jax.random.key(0)))


def _sizes(config: PolicyConfig) -> str:
    precision = "" if config.compute_dtype == "float32" else f" {config.compute_dtype}"
    return f"width {config.width}, {config.layers} layers{precision}"
