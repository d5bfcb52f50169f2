"""How often a study of eight bases tells what was planted in them: whole studies, again and again, by hand.

The networks are those of `test_ledger`, in rooms one door away: three personas, each of whom loves one direction under
its own name. Each study has eight bases of its own and measures them as `persona_transition` does at `laptop` scale.
"""

from unittest import mock

import numpy as np
import pytest

from analysis import measures
from ground.estimates import Estimate
from studies import persona_transition
from studies.populations import BASES
from tests import test_ledger, tiny, untrained

STUDIES = 20
MEMBERS = BASES["laptop"]
DEPTHS = np.linspace(0.9, 1.1, STUDIES * MEMBERS)
PLANTS = {
    "another name, faint": {"names": (0.28, 0.42, 0.3)},
    "another name, weak": {"names": (0.2, 0.5, 0.3)},
    "another name, strong": {"names": (0.05, 0.9, 0.05)},
    "a sharper persona, faint": {"loved": (0.66, 0.66, 0.78)},
    "a sharper persona, weak": {"loved": (0.66, 0.66, 0.9)},
    "a sharper persona, strong": {"loved": (0.66, 0.66, 1.6)},
    "an exploit, faint": {"west": 0.1},
    "an exploit, weak": {"west": 0.25},
    "an exploit, strong": {"west": 1.2},
    "a lie about the name": {"taken_for": (1, 2, 0)},
}
"""Models; the weak ones have moved by about as much as the study calls weak, 0.05 nats, the faint ones by less."""
EXPECTED = {"another name": "selection", "a sharper persona": "change", "an exploit": "change", "a lie": "a lie"}

pytestmark = pytest.mark.long


def judged(mine):
    """What a study says of eight bases: selection, change, a lie, or nothing; by the ends of 95 % intervals."""
    deeds = mine["account"].isel(part=slice(3)).sum("part")
    selection = mine["selection"].sel(scope="maze by maze")
    agreement = mine["agreement"].sel(policy="model") - mine["agreement"].sel(policy="base")
    follows = mine["named"].sel(kind="what follows it")
    if Estimate.of(agreement).high < -0.1 and Estimate.of(follows).low > 0.05 and Estimate.of(deeds).high < 0.05:
        return "a lie"
    low, high = (Estimate.of(selection.sel(bound=bound) / deeds) for bound in ("at least", "at most"))
    if low.low > 0.5:
        return "selection"
    return "change" if high.high < 0.5 else "undecided"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Bases of all studies, each a little deeper in love than the one before."""
    config = tiny.changed(world=test_ledger.ROOMS, population={"seeds": len(DEPTHS)}, pretrain={"shared": False})
    with mock.patch.object(test_ledger, "DEPTHS", DEPTHS):
        made = untrained.write(tmp_path_factory.mktemp("studies") / "run", config)
        made.save_parameters("pretrain", test_ledger.network(made))
        for number, change in enumerate(PLANTS.values(), start=2):
            made.save_parameters(f"rl-{number:06d}", test_ledger.network(made, **change))
    return made


@pytest.mark.parametrize("plant", PLANTS)
def test_studies_tell_what_was_planted(run, plant, capsys):
    sizes = persona_transition.STUDY.options["laptop"]["ledger"]
    measured = measures.ledger(run, f"rl-{list(PLANTS).index(plant) + 2:06d}", **sizes).isel(checkpoint=0)
    said = [judged(measured.isel(member=slice(x, x + MEMBERS))) for x in range(0, len(DEPTHS), MEMBERS)]
    (expected,) = (words for beginning, words in EXPECTED.items() if plant.startswith(beginning))
    deeds = float(measured["account"].isel(part=slice(3)).sum("part").mean())
    with capsys.disabled():
        print(f"\n{plant}: {deeds:.2f} nats by deeds, told by {said.count(expected)} of {STUDIES}: {set(said)}")
    assert set(said) <= {expected, "undecided"}
    assert said.count(expected) >= (0 if plant.endswith("faint") else 0.8 * STUDIES)
