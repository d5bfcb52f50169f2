"""Every measurement in every world, whatever is said before the first move: a dataset, or a refusal in one line."""

import dataclasses

import jax
import pytest

from analysis import measures
from envs.labyrinth import LabyrinthOptions
from envs.maze import MazeOptions
from envs.rooms import RoomsOptions
from ground.terminal import ConfigError
from tests import tiny, untrained

pytestmark = [pytest.mark.slow, pytest.mark.long]

LABYRINTH = LabyrinthOptions(size=2, turns=3, view="bump")
ROOMS = RoomsOptions(size=3, turns=3, plan_length=0, distance_range=(1, 1), exploits=0)
WORLDS = {
    "maze": tiny.CONFIG.world,
    "labyrinth": LABYRINTH,
    "labyrinth and plan": dataclasses.replace(LABYRINTH, plan_length=4),
    "rooms": ROOMS,
    "rooms and thought": dataclasses.replace(ROOMS, plan_length=2),
}
SPEAKERS = (("shown", "transformer"), ("null", "transformer"), ("spoken", "transformer"), ("spoken", "gru"))


@pytest.fixture(scope="module", params=[(world, *who) for world in WORLDS for who in SPEAKERS], ids=", ".join)
def run(request, tmp_path_factory):
    world, badge, family = request.param
    config = tiny.changed(world=dataclasses.replace(WORLDS[world], badge=badge), policy={"family": family})
    yield untrained.write(tmp_path_factory.mktemp("runs") / "run", config)
    jax.clear_caches()  # programs of one world are of no use to the next, and all together fill the memory


def refuses(name, run):
    """Whether a measurement is of other runs than this."""
    return (
        (name in tiny.MAZE and not isinstance(run.config.world, MazeOptions))
        or (name in tiny.THINKING and not run.world.plan_length)
        or (name in tiny.INSIDE and run.policy.config.family != "transformer")
        or (name, run.world.badge) in {("ledger", "null"), ("thoughts", "null"), ("beliefs", "spoken")}
    )


@pytest.mark.parametrize("name", measures.__all__)
def test_every_measurement_measures_a_run_or_refuses_it_in_one_line(name, run):
    measurement = getattr(measures, name)
    options = tiny.SMALLEST.get(name, {}) | ({"checkpoints": "rl"} if measurement.followed else {})
    if refuses(name, run):
        with pytest.raises(ConfigError) as refusal:
            measurement(run, **options)
        assert "\n" not in str(refusal.value)
    else:
        measured = measurement(run, **options)
        assert measured.sizes["member"] == run.members
        assert not measurement.panels or measurement.panels({"run": measured})
