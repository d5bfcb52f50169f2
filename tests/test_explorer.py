"""The course explorer: what runs keep along training, as the page gets it, beside numbers worked out by hand."""

import json

import numpy as np
import pytest
import xarray as xr
from scipy import stats

from agents import runs
from agents.runs import config as configs
from analysis.measure import REGISTRY, measure
from studies.report import explorer
from tests import tiny

SEEDS = 6
UPDATES = (1, 2)
"""Of the checkpoints between the base and the end."""


def gain(update: int, member: np.ndarray) -> np.ndarray:
    """What the made-up measurement says, float[member]."""
    return np.sqrt(1 + member) * (1 + update) - 3


@pytest.fixture(scope="module", autouse=True)
def made_up():
    """Measurements whose numbers are known, by their names."""

    @measure(version=3)
    def known(run: runs.Run, checkpoint: str, *, scale: float = 1.0) -> xr.Dataset:
        """Numbers that a hand can work out."""
        stage, _, update = checkpoint.partition("-")
        at = 0 if stage == "pretrain" else int(update or tiny.CONFIG.rl.updates)
        values = scale * gain(at, run.kept.astype(float))
        two, many = np.stack([values, values * np.nan], 1), np.repeat(values[:, None], 30, 1)
        return xr.Dataset(
            {
                "gain": ("member", values, {"long_name": "what it gains", "units": "points"}),
                "kl": (("member", "channel"), two * 0 + 0.25 * at, {"long_name": "KL"}),
                "half": (("member", "channel"), two, {"long_name": "half", "units": "share"}),
                "many": (("member", "maze"), many),
                "bounded": ("member", np.where(run.kept, 1.0, 0.1), {"long_name": "bounded", "units": "share"}),
                "hidden": ("member", values, {"table": 0}),
            },
            {"channel": ["move", "badge"]},
        )

    yield known
    del REGISTRY["known"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of six bases with checkpoints along RL that hold nothing worth reading."""
    config = tiny.changed(population={"seeds": SEEDS}, pretrain={"shared": False})
    run = runs.create(tmp_path_factory.mktemp("runs") / "one", configs.to_dict(config), members=SEEDS)
    for name in ("init", "pretrain", *(f"rl-{update:06d}" for update in UPDATES), "rl"):
        run.save_parameters(name, {"nothing": np.zeros((SEEDS, 1), np.float32)})
    run.write_summary({"schema": 1, "members": SEEDS})
    return run


@pytest.fixture(scope="module")
def document(run, made_up):
    made_up(run, ["pretrain", "rl-000001", "rl-000002", "rl"])
    told, notes = explorer.gather({"PPO": run.path})
    assert notes == []
    assert told is not None
    return told


def entries(document):
    return {entry["label"]: entry for entry in document["measures"]}


def test_means_and_intervals_are_over_bases(document):
    (line,) = entries(document)["what it gains"]["lines"]
    arm, course, bases, mean, low, high = line
    assert document["arms"][arm] == "PPO"
    assert bases == SEEDS
    members = np.arange(SEEDS, dtype=float)
    for place, update in enumerate((0, *UPDATES, tiny.CONFIG.rl.updates)):
        values = gain(update, members)
        assert mean[place] == pytest.approx(values.mean(), rel=1e-4, abs=1e-4)
        short, long = stats.t.interval(0.95, SEEDS - 1, values.mean(), stats.sem(values))
        # Ours is the further out of Student's t and a skewed one on the side of the long tail.
        assert low[place] <= short + 1e-3
        assert high[place] >= long - 1e-3
        assert max(low[place] - short, high[place] - long, key=abs) == pytest.approx(0, abs=(long - short))
    assert document["courses"][course]["update"] == [0, *UPDATES, tiny.CONFIG.rl.updates]


def test_tokens_are_those_of_each_member(document):
    world, _ = tiny.CONFIG.world.make()
    (tokens,) = {tuple(course["tokens"]) for course in document["courses"]}
    per_update = tiny.CONFIG.rl.episodes * world.episode_length()
    expected = [update * per_update / 1e6 for update in (0, *UPDATES, tiny.CONFIG.rl.updates)]
    np.testing.assert_allclose(tokens, expected, rtol=1e-4)


def test_places_are_entries_and_what_says_nothing_is_left_out(document):
    labels = entries(document)
    # Badges are NaN, mazes many, the rest hidden.
    assert set(labels) == {"what it gains", "KL, move", "half, move", "bounded"}
    assert labels["half, move"]["unit"] == "share"
    assert document["measures"][document["first"]]["label"] == "KL, move"


def test_kl_is_known_only_from_a_measurement_of_it(document):
    assert {tuple(course["kl"]) for course in document["courses"]} == {(None,) * 4}


def test_options_tell_courses_of_one_name_apart(run, made_up, document):
    made_up(run, ["pretrain", "rl-000001", "rl-000002"], scale=2.0)
    told, _ = explorer.gather({"PPO": run.path, "again": run.path})
    assert told is not None
    assert {entry["group"] for entry in told["measures"]} == {"known, scale 1.0", "known, scale 2.0"}
    assert told["arms"] == ["PPO", "again"]
    doubled = next(x for x in told["measures"] if x["group"].endswith("2.0") and x["label"] == "what it gains")
    assert len(doubled["lines"]) == 2
    once = entries(document)["what it gains"]["lines"][0][3]
    np.testing.assert_allclose(doubled["lines"][0][3], 2 * np.array(once[:3]), rtol=1e-4)


def test_intervals_of_shares_end_where_shares_do(document):
    told = entries(document)
    (_, _, _, mean, low, high), values = told["bounded"]["lines"][0], np.array([0.1, *[1.0] * (SEEDS - 1)])
    short, long = stats.t.interval(0.95, SEEDS - 1, values.mean(), stats.sem(values))
    assert mean == pytest.approx([values.mean()] * 4)
    assert long > 1
    assert high == [1] * 4
    assert 0 <= low[0] <= short
    # Beyond 0 to 1 there are differences of shares, which keep their intervals.
    assert min(told["half, move"]["lines"][0][4]) < 0


def test_the_script_assigns_one_object(document):
    text = explorer.script(document).decode("ascii")
    begin = f"window.{explorer.VARIABLE} = "
    assert text.startswith(begin)
    assert json.loads(text.removeprefix(begin).removesuffix(";\n")) == document


def test_what_is_damaged_is_named_and_what_is_short_is_no_course(run, tmp_path):
    folder = tmp_path / "runs" / "one"
    copied = runs.create(folder, configs.to_dict(run.config), members=SEEDS)
    for name in ("init", "pretrain", "rl"):
        copied.save_parameters(name, {"nothing": np.zeros((SEEDS, 1), np.float32)})
    copied.write_summary({"schema": 1, "members": SEEDS})
    (folder / "analysis").mkdir()
    (folder / "analysis" / "known-rl-00000000.nc").write_bytes(b"CDF nonsense")
    told, notes = explorer.gather({"PPO": folder, "gone": tmp_path / "nowhere"})
    assert told is None
    assert [note.split(":")[0] for note in notes] == ["one", "gone"]
    assert str(tmp_path) not in " ".join(notes)
