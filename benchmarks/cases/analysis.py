"""Looking inside: drawing and reading the extraction set, and steering."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from agents.learning import population, rollout
from agents.runs.config import SCALES
from analysis import extraction, steering
from benchmarks import counts, measure
from benchmarks.measure import Benchmark, Case, Program

MEMBERS = 4
"""Policies that are read and steered."""

EPISODES = 1200
"""Of the extraction set, a multiple of 12."""

SITUATIONS = 32
"""Episodes in which policies are steered."""

DIRECTIONS, STRENGTHS = 16, 7


def benchmark(peers: bool) -> Benchmark:
    """Episodes drawn, episodes read and tokens steered per second, at the `laptop` scale."""
    config = SCALES["laptop"]
    policy, (world, params) = config.make_policy(), config.world.make()

    def over_members(member):
        parameters = jax.vmap(policy.init)(jax.random.split(jax.random.key(0), MEMBERS))
        return measure.compiled(population.over_members(member, population.mesh(MEMBERS, 1)), parameters)

    def draw():
        key = jax.random.key(1)
        program = extraction.approaches.lower(world, params, key, episodes=EPISODES).compile()
        return Program(lambda: program(params, key), program)

    def read():
        sequence = jnp.zeros((EPISODES, world.episode_length()), jnp.int32)
        layers = extraction.blocks(policy)
        return over_members(lambda parameters: extraction.read_last(policy, parameters, world, sequence, layers))

    def steer():
        parameters = policy.init(jax.random.key(0))
        asked = rollout.policy_episodes(policy, parameters, world, params, jax.random.key(3), SITUATIONS)
        tried = jax.random.normal(jax.random.key(2), (DIRECTIONS, policy.config.layers, policy.config.width))
        levels, layer = jnp.linspace(-4, 4, STRENGTHS), jnp.array([0])

        def member(parameters):
            ask = functools.partial(steering.effects, policy, parameters, world, asked)
            return steering.over_pushes(ask, tried, layer, levels)

        return over_members(member)

    # `read_last` reads thirds of the episodes, sorted by length, no further than the longest of each goes.
    steps = np.sort(extraction.plan(EPISODES, world.turns)[2])
    lengths = [int(world.action_positions()[third[-1] - 1]) + 1 for third in np.array_split(steps, 3)]
    work = counts.reading(config.policy, lengths, predictions=0)
    tokens = MEMBERS * DIRECTIONS * STRENGTHS * SITUATIONS * world.episode_length()
    cases = [
        Case("extraction set drawn", "episodes", EPISODES, draw),
        Case("extraction set read", "episodes", MEMBERS * EPISODES, read, counts.shared(work, len(lengths))),
        Case("steering grid", "tokens", tokens, steer, counts.scoring(config.policy, world)),
    ]
    return Benchmark([[case] for case in cases])
