"""What a model believes of who is speaking: its personas kept apart by badges, and inferred from its own history."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr

from agents.learning import population
from agents.runs import Run
from analysis import estimates, inference
from analysis.figures.panels import Curve, Curves, Map, Panel
from analysis.measure import at_least, measure, once, variable
from envs import personas
from ground.terminal import ConfigError

FEW = 20
"""Episodes; where fewer are left the lines of the figure end."""
BADGES = ("none", *personas.PERSONAS)
"""What a badge says, in the order of `envs.tokens.BADGES`."""


def panels(arms: Mapping[str, xr.Dataset]) -> list[Panel]:
    """The belief in each persona that plays, turn by turn and beside the ideal observer; badges as a map."""
    parts, shown = estimates.columns(arms), list[Panel]()
    worlds = estimates.columns({arm: dataset.isel(checkpoint=-1) for arm, dataset in arms.items()})

    def belief(part: xr.Dataset, of: str, name: str) -> xr.DataArray:
        own = part.sel(persona=name, believed=name)
        enough = own["episodes"] >= np.minimum(FEW, own["episodes"].max("turn"))
        return own[of].where(enough).transpose("turn", "member")

    for name in personas.PERSONAS:
        curves = {}
        for label, part in parts.items():
            model = belief(part, "implied", name)
            curves[label] = Curve(model["turn"].values, model.values, model["unit"].values)
        ideal = {label: belief(part, "ideal", name).mean("member", skipna=False) for label, part in worlds.items()}
        for label, line in estimates.floors(ideal, "ideal observer").items():
            curves[label] = Curve(line["turn"].values, line.values)
        prior = {label: float(part["prior"].sel(believed=name)) for label, part in worlds.items()}
        marks = estimates.floors(prior, "prior")
        shown.append(Curves(curves, "turn", f"{name} plays: belief in {name} (%)", marks=marks, percent=True))
    last = parts[list(parts)[-1]]["badge_kl"].mean("member").transpose("persona", "badge")
    label = f"{list(parts)[-1]}: KL from persona to model with a badge, nats per action"
    return [*shown, Map(last.values, tuple(personas.PERSONAS), tuple(last["badge"].values.tolist()), label)]


@measure(version=2, also=("personas",), panels=panels)
def beliefs(run: Run, checkpoint: str, *, episodes: int = 512) -> xr.Dataset:
    """Whether a model keeps its personas apart by their badges, and by its own history where no badge is shown.

    A persona plays, no badge is shown, and the model reads; see `analysis.inference` for what it then believes, and
    for three caveats (arXiv 2111.02080). Where personas act alike a belief is not identified and stays near the prior,
    the chances of each in pretraining, in the run's town if it has one.

    Args:
        episodes: held-out mazes that each persona plays, the same for everyone.

    Returns:
        `persona` is who plays, `believed` who it is taken for. `implied` float32[member, persona, turn, believed], the
        mixture of personas that explains the model's actions best; `ideal`, the mean posterior of an observer who
        knows the personas exactly, and their `prior`, float64[believed]; `benchmark`, the implied mixture of that
        observer: where it differs from `ideal`, the method does that. NaN at turns that no episode comes to, and where
        nobody of any chance in the prior would play so. `recognised` and `recognisable` float64[member, persona], the
        model's and the ideal observer's belief in who plays, mean over all turns played. `nats` float32[member,
        persona], mean KL from the ideal observer's actions to the model's, and `prior_nats`, to those of an observer
        who always believes the prior. `badge_kl` float32[member, persona, badge], mean KL(persona ‖ model with that
        badge), `none` alone where pretraining shows no badges; nats per action. `episodes` int32[member, persona,
        turn], how many come so far.
    """
    at_least(1, episodes=episodes)
    if run.world.spoken:
        raise ConfigError(
            f"{run.path}: --world.badge=spoken: who plays has said so, and no history goes without; give a run with "
            "--world.badge shown, or use `analysis ledger`"
        )
    first, again = once(run, checkpoint)
    shown = run.config.per_member("pretrain", [run.population[index] for index in first])
    ours = jax.tree.map(lambda x: np.asarray(x)[first], (run.kept_parameters(checkpoint), run.params))
    prior = jnp.asarray(run.config.prior, jnp.float32)

    def some(parameters, params, shown):
        return inference.measure(run.policy, parameters, run.world, params, shown, prior, episodes)

    told = jax.tree.map(lambda x: x[again], population.in_turn(some, *ours, shown))

    def own(values: np.ndarray) -> np.ndarray:
        mine = np.diagonal(values, axis1=1, axis2=3).swapaxes(1, 2).astype(np.float64)
        return (np.where(told.episodes, mine, 0) * told.episodes).sum(axis=-1) / told.episodes.sum(axis=-1)

    badges = BADGES[:1] if run.world.badge == "null" else BADGES  # of a badge never read nothing is known
    badge_kl = told.badges[..., : len(badges)]
    curves, of_persona, nats = "member persona turn believed", "member persona", "nats per action"
    apart, blind = np.moveaxis(told.nats, -1, 0)
    return xr.Dataset(
        {
            "implied": variable(curves, told.implied, "the model's belief", "share", table=0),
            "ideal": variable(curves, told.ideal, "the ideal observer's belief", "share", table=0),
            "benchmark": variable(curves, told.benchmark, "what the method makes of it", "share", table=0),
            "recognised": variable(of_persona, own(told.implied), "the model's belief in who plays", "share"),
            "recognisable": variable(
                of_persona, own(told.ideal), "the ideal observer's belief in who plays", "share", independent="point"
            ),
            "nats": variable(of_persona, apart, "KL from the ideal observer to the model", nats),
            "prior_nats": variable(
                of_persona, blind, "KL from the ideal observer to one who infers nothing", nats, independent="point"
            ),
            "badge_kl": variable("member persona badge", badge_kl, "KL from persona to model with badge", nats),
            "episodes": variable("member persona turn", told.episodes, "episodes that come so far", table=0),
            "prior": variable("believed", run.config.prior, "the prior", "share", table=0),
        },
        {
            "persona": list(personas.PERSONAS),
            "believed": list(personas.PERSONAS),
            "badge": list(badges),
            "turn": np.arange(1, told.episodes.shape[-1] + 1),
        },
    )
