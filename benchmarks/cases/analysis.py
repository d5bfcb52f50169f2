"""Looking inside: drawing and reading the extraction set, and steering."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from agents.learning import learner, rollout
from agents.runs.config import SCALES
from analysis import extraction, populations, steering
from benchmarks import counts
from benchmarks.measure import Case, Options, Report, Work

MEMBERS = 4
"""Policies that are read and steered."""

EPISODES = 1200
"""Of the extraction set, a multiple of 12; and half of it of the situations in which policies are steered."""

CONDITIONS = (16, 7)
"""Directions and strengths."""


def run(options: Options) -> Report:
    """Episodes drawn, episodes read and conditions tried per second, at the `laptop` scale."""
    config, report = SCALES["laptop"], Report()
    policy, (world, params) = config.make_policy(), config.world.make()
    mesh = populations.mesh(MEMBERS)
    parameters = jax.vmap(policy.init)(jax.random.split(jax.random.key(0), MEMBERS))
    parameters = jax.device_put(parameters, NamedSharding(mesh, PartitionSpec("member")))

    def draw():
        key = jax.random.key(1)
        program = extraction.approaches.lower(world, params, key, episodes=EPISODES).compile()
        return lambda: program(params, key), program

    def read():
        sequence = jnp.zeros((EPISODES, world.episode_length()), jnp.int32)

        def member(parameters):
            return extraction.read_last(policy, parameters, world, sequence, extraction.blocks(policy))

        return _compiled(learner.over_members(member, mesh), parameters)

    def steer():
        directions, strengths = CONDITIONS
        shape = (directions, policy.config.layers, policy.config.width)
        tried = jax.random.normal(jax.random.key(2), shape)
        first = jax.tree.map(lambda x: jnp.asarray(np.asarray(x[0])), parameters)
        seen = rollout.policy_episodes(policy, first, world, params, jax.random.key(3), 32)

        def member(parameters):
            levels = jnp.linspace(-4, 4, strengths)
            return steering.grid(policy, parameters, world, seen, tried, jnp.array([0]), levels)

        return _compiled(learner.over_members(member, mesh), parameters)

    # `read_last` reads thirds of the episodes, sorted by length, no further than the longest of each goes.
    steps = np.sort(extraction.plan(EPISODES, world.turns)[2])
    lengths = [world.action_positions()[third.max() - 1] + 1 for third in np.array_split(steps, 3)]
    per_episode = [
        float(np.mean([counts.forward(policy.config, int(n), 0, causal=half) for n in lengths]))
        for half in (False, True)
    ]
    work = Work(*per_episode, precision=policy.config.compute_dtype, in_cache=False)
    tokens = MEMBERS * CONDITIONS[0] * CONDITIONS[1] * 32 * world.episode_length()
    report.add([Case("extraction set drawn", "episodes", EPISODES, draw)], options)
    report.add([Case("extraction set read", "episodes", MEMBERS * EPISODES, read, work)], options)
    report.add([Case("steering grid", "tokens", tokens, steer, counts.reading(policy.config, world))], options)
    return report


def _compiled(function, parameters):
    program = jax.jit(function).lower(parameters).compile()
    return functools.partial(program, parameters), program
