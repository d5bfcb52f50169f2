"""What is measured: stepping the maze, and training end to end."""

import dataclasses

import jax
import jax.numpy as jnp

import envs
from agents import stages
from agents.config import SCALES, Config
from benchmarks.measure import Result, measure


def env(repeats: int = 5, mazes: int = 1024, rounds: int = 8) -> list[Result]:
    """Turns per second of a random policy, a fresh maze every 15 turns, for both layouts."""
    results = []
    for layout in ("scatter", "walk"):
        world, params = envs.make("EmojiMaze-v0", layout=layout)

        def play(key, world=world, params=params):
            def episode(key):
                reset_key, turn_key = jax.random.split(key)
                _, states = jax.vmap(world.reset_env, in_axes=(0, None))(jax.random.split(reset_key, mazes), params)

                def turn(states, key):
                    action_key, step_key = jax.random.split(key)
                    actions = jax.random.randint(action_key, (mazes,), 0, 4)
                    observation, states, reward, _, _ = jax.vmap(world.step_env, in_axes=(None, 0, 0, None))(
                        step_key, states, actions, params
                    )
                    # Observations are summed so that the compiler cannot leave them out.
                    return states, (reward.sum(), observation.sum())

                return jax.lax.scan(turn, states, jax.random.split(turn_key, world.turns))[1]

            return jax.lax.map(episode, jax.random.split(key, rounds))

        def compile(play=play):
            key = jax.random.key(0)
            program = jax.jit(play).lower(key).compile()
            return lambda: program(key)

        turns = mazes * rounds * world.turns
        results.append(measure(f"EmojiMaze {layout} {world.size}x{world.size}", "turns", turns, compile, repeats))
    return results


def train(repeats: int = 5, config: Config = SCALES["laptop"]) -> list[Result]:
    """Tokens per second of whole updates of both stages, as the `laptop` scale trains them."""
    results = []
    for name, chunk in (("pretrain", 10), ("rl", 1)):
        shorter = dataclasses.replace(getattr(config, name), chunk=chunk)
        stage = stages.make_stage(dataclasses.replace(config, **{name: shorter}), name)
        arguments = stage.program.place(stage.arguments)
        first = stages.make_stage(config, "pretrain").initial(None).parameters
        if name == "rl":
            members = stage.members
            first = jax.tree.map(lambda x, m=members: jnp.broadcast_to(x[:1], (m, *x.shape[1:])), first)
        state = [stage.program.place(stage.initial(first))]

        def compile(stage=stage, arguments=arguments, state=state):
            stage.program.compile(state[0], *arguments)

            def step():
                state[0], metrics = stage.program(state[0], *arguments)
                return metrics

            return step

        tokens = stage.tokens_per_update * chunk
        label = f"{name}, {stage.members} member{'s' * (stage.members > 1)}"
        results.append(measure(label, "tokens", tokens, compile, repeats))
    return results


CASES = {"env": env, "train": train}
"""Benchmarks by name."""
