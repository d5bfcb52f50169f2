"""Training end to end, as `train.py` trains: everything between two parameter updates is on the clock."""

import dataclasses

import jax
import jax.numpy as jnp

from agents.learning import learner
from agents.runs import stages
from agents.runs.config import SCALES, Config
from benchmarks import counts, measure
from benchmarks.measure import Benchmark, Case, Program, Ratio

LAPTOP = SCALES["laptop"]


def benchmark(peers: bool) -> Benchmark:
    """Tokens per second of whole updates at the `laptop` scale; with peers, beside PyTorch."""
    alone = members(LAPTOP, 1)
    ours = [case(alone, "rl")]
    ratios = []
    if peers:
        from benchmarks.peers import torch_ppo

        ours.append(torch_ppo.case(alone))
        names = (case.name for case in ours)
        ratios.append(Ratio("PPO end to end, 1 member / plain PyTorch", *names))
    return Benchmark([[case(LAPTOP, "pretrain", chunk=10)], ours, [case(LAPTOP, "rl")]], ratios)


def members(config: Config, count: int, **population) -> Config:
    """The config with so many members, seeds alone."""
    population = dataclasses.replace(config.population, seeds=count, sweep=(), **population)
    return dataclasses.replace(config, population=population)


def stage(config: Config, name: str, chunk: int = 1) -> stages.Stage:
    """A stage of training with short chunks."""
    shorter = dataclasses.replace(getattr(config, name), chunk=chunk)
    return stages.make_stage(dataclasses.replace(config, **{name: shorter}), name)


def state(config: Config, stage: stages.Stage) -> learner.TrainState:
    """The state of all members of a stage, from the same fresh parameters."""
    fresh = config.make_policy().init(jax.random.key(0))
    first = stage.initial(jax.tree.map(lambda x: jnp.broadcast_to(x, (stage.members, *x.shape)), fresh))
    return jax.tree.map(jnp.copy, first)  # it will be donated, and the stage keeps the members' keys


def case(config: Config, name: str, chunk: int = 1, label: str = "", in_turn: int = 1) -> Case:
    """Updates of a stage, `chunk` of them a call; of `in_turn` such runs one after another, which share a program."""
    trained = stage(config, name, chunk)

    def prepare():
        program, arguments = trained.program, trained.program.place(trained.arguments)
        states = [program.place(state(config, trained)) for _ in range(in_turn)]
        program.compile(states[0], *arguments)
        runs = [measure.carrying(program.program, started, *arguments) for started in states]
        if in_turn == 1:
            return runs[0]
        return Program(lambda: [jax.block_until_ready(run.call()) for run in runs], program.program)

    what = {"pretrain": "pretraining", "rl": "PPO end to end"}[name]
    label = label or f"{what}, {sizes(config)}, {trained.members} member{'s' * (trained.members > 1)}"
    return Case(label, "tokens", trained.tokens_per_update * chunk * in_turn, prepare, counts.stage(config, name))


def sizes(config: Config) -> str:
    """The policy's, in words."""
    return f"width {config.policy.width}, {config.policy.layers} layers"
