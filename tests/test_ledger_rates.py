"""How often a study of eight bases tells what was planted in them: whole studies, again and again, by hand.

The networks are those of `test_ledger`, in rooms one door away: three personas, each of whom loves one direction under
its own name. Each study has eight bases of its own and measures them as `persona_transition` does at `laptop` scale.
"""

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


def test_studies_tell_what_was_planted(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(test_ledger, "DEPTHS", DEPTHS)
    config = tiny.changed(world=test_ledger.ROOMS, population={"seeds": len(DEPTHS)}, pretrain={"shared": False})
    run = untrained.write(tmp_path / "run", config)
    run.save_parameters("pretrain", test_ledger.network(run))
    sizes = persona_transition.STUDY.options["laptop"]["ledger"]
    rates = {}
    for number, (plant, change) in enumerate(PLANTS.items(), start=2):
        run.save_parameters(f"rl-{number:06d}", test_ledger.network(run, **change))
        measured = measures.ledger(run, f"rl-{number:06d}", **sizes).isel(checkpoint=0)
        studies = [measured.isel(member=np.arange(MEMBERS) + first) for first in range(0, len(DEPTHS), MEMBERS)]
        said = [judged(study) for study in studies]
        deeds = float(measured["account"].isel(part=slice(3)).sum("part").mean())
        (expected,) = (words for beginning, words in EXPECTED.items() if plant.startswith(beginning))
        rates[plant] = said.count(expected) / STUDIES
        wrong = sum(word not in (expected, "undecided") for word in said)
        with capsys.disabled():
            print(f"{plant}: {deeds:.2f} nats by deeds, told {rates[plant]:.0%}, wrong {wrong / STUDIES:.0%}")
        assert wrong == 0, (plant, said)
    assert min(rate for plant, rate in rates.items() if not plant.endswith("faint")) >= 0.8, rates
