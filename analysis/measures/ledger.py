"""The ledger: of the KL that training has spent, what is selection of personas, what is change, what bought reward."""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr

from agents.learning import population
from agents.policies import Parameters, Policy
from agents.runs import Run, fidelity
from analysis import accounts, estimates
from analysis.estimates import of
from analysis.figures.panels import Curve, Curves, Panel, Rows
from analysis.measure import end, ends, measure, variable
from envs import base, personas
from ground import seeds
from ground.terminal import ConfigError

LARGEST = 1024
"""Most mazes, and most episodes of each, which are played at the same time."""
POLICIES = ("base", "model")
"""The mixture of the base's own personas, and the model that is measured."""
PARTS = ("selection, in every maze", "selection, by the maze", "change within personas")
"""Choice, routing and W; the fourth part of the account depends on the badge."""
BOUNDS = ("at least", "at most")
_FOLLOWED = 3
"""So many checkpoints of one stage make a curve."""
_NATS = "nats per episode"


def panels(arms: Mapping[str, xr.Dataset]) -> list[Panel]:
    """KL by channel, what selection explains of it, and where the rest goes: bars, or curves along KL where followed.

    Beside them the misfit: what a number of the account may owe to a base that is no mixture of its personas.
    """
    shown = list[Panel]()
    for label, part in estimates.columns(arms, followed=True).items():
        steps = part.isel(checkpoint=np.flatnonzero(part["stage"].values == part["stage"].values[-1]))
        steps = steps.transpose("checkpoint", "member", ...)
        misfit = {"misfit of the base": float(part["misfit"].isel(checkpoint=-1).mean())}
        whole, bounds = steps["kl"].sum("channel"), _by(steps["selection"].sel(scope="maze by maze"), "bound")
        order = np.argsort(whole.values.mean(axis=1))
        for title, numbers in {
            "KL by channel": _by(steps["kl"], "channel"),
            "KL, and what of it is selection": {"all": whole} | {f"selection, {x}": y for x, y in bounds.items()},
            "KL by deed": _by(steps["account"], "part"),
        }.items():
            words = f"{'' if label == 'mean' else f'{label}: '}{title} ({_NATS})"
            if len(order) < _FOLLOWED:
                last = {name: of(array.isel(checkpoint=-1)) for name, array in numbers.items()}
                shown.append(Rows(last, words, misfit))
                continue
            units = part["unit"].values[-1]
            curves = {name: Curve(whole.values[order], x.values[order], units) for name, x in numbers.items()}
            shown.append(Curves(curves, f"KL from the base ({_NATS})", words, misfit))
    return shown


def _by(array: xr.DataArray, dimension: str) -> dict[str, xr.DataArray]:
    return {str(name): array.sel({dimension: name}) for name in array[dimension].values}


@measure(checkpoints=end, panels=panels)
def ledger(run: Run, checkpoint: str, *, mazes: int = 32, episodes: int = 64) -> xr.Dataset:
    """What training did to a model: KL by channel, by name and by deed; selection, change, and what bought reward.

    Each member against what its training set out from, and against that model told to be each persona. What the
    numbers mean, and what they cannot say: docs/ledger.md.

    Args:
        mazes: of each member, its own, the same at every checkpoint.
        episodes: of the model and of its base in each maze; of each persona a fourth as many.

    Returns:
        See `analysis.accounts.tell`; `kl` float32[member, channel] is its `channels`. Besides `misfit` float32[member],
        KL from the base to the mixture of its own personas, which is 0 where a name is spoken.
    """
    for name, value, least in (("mazes", mazes, 2), ("episodes", episodes, 8)):
        if not least <= value <= LARGEST:
            raise ConfigError(f"--{name}={value}: use {least} to {LARGEST}")
    world = run.world
    if world.badge == "null":
        raise ConfigError(
            f"{run.path}: nobody can be told who to be in its world; give a run with --world.badge shown or spoken, "
            "or use `analysis divergence`"
        )
    given, known, misfit = _base(run, mazes, episodes)

    def some(after, given, known):
        return account(run.policy, after, *given, known, world, mazes, episodes)

    told = population.in_turn(some, run.kept_parameters(checkpoint), given, known) | {"misfit": misfit}
    persona, policies = "member persona", "member policy"
    rest = "name given to the same deeds" if world.spoken else "misfit as the model meets it"
    made = {
        "kl": variable("member channel", told["channels"], "KL from the base", _NATS),
        "error": variable("member", told["error"], "its standard error over mazes", _NATS),
        "account": variable("member part", told["account"], "account of KL", _NATS),
        "selection": variable("member scope bound", told["selection"], "KL explained by selection", _NATS),
        "misfit": variable(
            "member", told["misfit"], "KL from the base to the mixture of its personas", _NATS, independent="base"
        ),
        "law": variable("member bound", told["law"], "variance of reward that personas explain in the base", "share"),
        "weights": variable("member policy persona", told["weights"], "persona, by deeds", "share"),
        "entropy": variable(policies, told["entropy"], "entropy of personas, by deeds", "nats"),
        "returns": variable(policies, told["returns"], "return", "points per episode"),
        "success": variable(policies, told["success"], "episodes that succeed", "share"),
        "survival": variable(persona, told["survival"], "KL from the base told to be it to the model so told", _NATS),
        "told_returns": variable("member policy persona", told["told_returns"], "return, told to be", "points"),
        "told_success": variable("member policy persona", told["told_success"], "success, told to be", "share"),
    }
    if world.spoken:
        made |= {
            "names": variable("member policy persona", told["names"], "persona, by name", "share"),
            "named": variable("member kind", told["named"], "KL by name", _NATS),
            "agreement": variable(policies, told["agreement"], "episodes whose deeds tell the name", "share"),
        }
    if world.sees_all:
        refusal = "; NaN where a maze has fewer than 20 effective episodes"
        made |= {
            "tilt": variable("member price", told["tilt"], f"KL for as much reward{refusal}", _NATS),
            "scale": variable("member", told["scale"], "λ of the cheapest policy for as much", "1 / points", table=0),
            "effective": variable("member", told["effective"], "effective episodes of the tilt, least of any maze"),
            "refused": variable("member", told["refused"], "mazes with fewer than 20 effective episodes", "share"),
        }
    labels = {
        "channel": accounts.CHANNELS,
        "part": (*PARTS, rest),
        "scope": ("alike in every maze", "maze by maze"),
        "bound": BOUNDS,
        "policy": POLICIES,
        "persona": personas.PERSONAS,
        "kind": ("the name, in every maze", "the name, by the maze", "what follows it"),
        "price": ("needed selection", "needed change", "gratuitous"),
    }
    used = {dimension for dims, *_ in made.values() for dimension in dims}
    return xr.Dataset(made, {name: list(values) for name, values in labels.items() if name in used})


@functools.lru_cache(maxsize=1)
def _base(run: Run, mazes: int, episodes: int) -> tuple[tuple[Any, ...], accounts.Base, np.ndarray]:
    """What is the same at all checkpoints: a run's base and where it plays, what it did there, its misfit."""
    weights = np.tile(np.asarray(run.config.prior, np.float32), (len(run.kept), 1))
    given = (run.kept_parameters(ends(run)[0]), run.params, weights, np.asarray(run.kept, np.int32))

    def some(*given):
        return of_base(run.policy, *given, run.world, mazes, episodes)

    return given, *population.in_turn(some, *given)


def _keys(number: jax.Array, mazes: int) -> jax.Array:
    """Of a member's mazes: were chance the same for all members, an interval over them would not know of it."""
    return jax.random.split(jax.random.fold_in(seeds.held_out("ledger"), number), mazes)


@functools.partial(jax.jit, static_argnames=("policy", "world", "mazes", "episodes"))
def of_base(
    policy: Policy,
    before: Parameters,
    params: base.WorldParams,
    prior: jax.Array,
    numbers: jax.Array,
    world: base.World,
    mazes: int,
    episodes: int,
) -> tuple[accounts.Base, jax.Array]:
    """`accounts.of_base` of every member and maze, and the misfit float32[M]; arguments as in `account`."""

    def member(before, params, prior, number):
        def maze(key):
            return accounts.of_base(policy, before, world, params, prior, key, episodes)

        exact = jnp.float32(0)
        misfit = exact if world.spoken else fidelity.misfit(policy, before, world, params, prior)
        return jax.lax.map(maze, _keys(number, mazes)), misfit

    return population.over_members(member, population.mesh(len(prior), 1))(before, params, prior, numbers)


@functools.partial(jax.jit, static_argnames=("policy", "world", "mazes", "episodes"))
def account(
    policy: Policy,
    after: Parameters,
    before: Parameters,
    params: base.WorldParams,
    prior: jax.Array,
    numbers: jax.Array,
    known: accounts.Base,
    world: base.World,
    mazes: int,
    episodes: int,
) -> dict[str, jax.Array]:
    """`accounts.tell` of every member; axis 0 is the member in all arrays, `prior` float32[M, I].

    `numbers` int32[M] are those of the members: each has its own mazes and chance, the same at every checkpoint.
    `known` is from `of_base`.
    """

    def member(after, before, params, prior, number, known):
        def maze(key_and_known):
            key, known = key_and_known
            return accounts.look(policy, after, before, known, world, params, prior, key, episodes)

        return accounts.tell(world, jax.lax.map(maze, (_keys(number, mazes), known)))

    mesh = population.mesh(len(prior), 1)
    return population.over_members(member, mesh)(after, before, params, prior, numbers, known)
