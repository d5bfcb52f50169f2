"""Training end to end, as `train.py` trains: everything between two parameter updates is on the clock."""

import dataclasses

import jax
import jax.numpy as jnp

from agents.runs import stages
from agents.runs.config import SCALES, Config
from benchmarks import counts
from benchmarks.measure import Case, Options, Report


def run(options: Options) -> Report:
    """Tokens per second of whole updates at the `laptop` scale; with peers, beside PyTorch."""
    report = Report()
    report.add([stage_case(SCALES["laptop"], "pretrain", chunk=10)], options)
    alone = members(SCALES["laptop"], 1)
    cases = [stage_case(alone, "rl", chunk=1)]
    if options.peers:
        from benchmarks.peers import torch_ppo

        cases.append(torch_ppo.case(alone))
    found = report.add(cases, options)
    if len(found) == 2:
        report.compare("PPO end to end, 1 member / plain PyTorch", *found)
    report.add([stage_case(SCALES["laptop"], "rl", chunk=1)], options)
    return report


def members(config: Config, count: int, **population) -> Config:
    """The config with so many members, seeds alone."""
    return dataclasses.replace(
        config, population=dataclasses.replace(config.population, seeds=count, sweep=(), **population)
    )


def ready(config: Config, name: str, chunk: int):
    """A stage with short chunks, its arguments and the state of all members, from fresh parameters."""
    shorter = dataclasses.replace(getattr(config, name), chunk=chunk)
    stage = stages.make_stage(dataclasses.replace(config, **{name: shorter}), name)
    fresh = jax.vmap(config.make_policy().init)(jax.random.split(jax.random.key(0), 1))
    first = jax.tree.map(lambda x: jnp.broadcast_to(x, (stage.members, *x.shape[1:])), fresh)
    return stage, stage.program.place(stage.arguments), stage.program.place(stage.initial(first))


def stage_case(config: Config, name: str, chunk: int, label: str = "") -> Case:
    """Updates of a stage, `chunk` of them a call."""
    work = counts.stage(config, name)
    stage, arguments, state = ready(config, name, chunk)
    kept = [state]

    def prepare():
        stage.program.compile(kept[0], *arguments)

        def call():
            kept[0], metrics = stage.program(kept[0], *arguments)
            return metrics

        return call, stage.program.program

    what = {"pretrain": "pretraining", "rl": "PPO end to end"}[name]
    sizes = f"width {config.policy.width}, {config.policy.layers} layers"
    label = label or f"{what}, {sizes}, {stage.members} member{'s' * (stage.members > 1)}"
    return Case(label, "tokens", stage.tokens_per_update * chunk, prepare, work)
