"""The ledger: every number against all episodes listed, and networks of known change, each where the bounds say.

The planted networks love one direction under each name: North, East and South. Attention looks everywhere alike and
writes down which badge it sees; the embedding of a move tells who loves it, that of a badge how often it is spoken.
"""

import csv
import itertools

import jax
import numpy as np
import pytest
import scipy.optimize
from scipy import special

from analysis import __main__ as command
from analysis import measures
from analysis.figures.panels import Curves, Rows
from analysis.measures.ledger import panels
from envs import tokens
from envs.labyrinth import LabyrinthOptions
from envs.maze import MazeOptions
from envs.rooms import RoomsOptions
from tests import tiny, untrained

ROOMS = RoomsOptions(size=3, turns=3, plan_length=2, distance_range=(1, 1), exploits=0)
CORRIDOR = LabyrinthOptions(
    turns=4, view="bump", badge="spoken", board="#######/#G#...#/#.#.#.#/#.#.#.#/#.#.#.#/#S....#/#######"
)
MEMBERS = 2
EVEN = (1 / 3, 1 / 3, 1 / 3)
LOVED = (0.66, 0.66, 0.66)
"""By so much more than others a loved move is liked: about 12 to 1."""
DEPTHS = np.linspace(0.9, 1.1, MEMBERS)
"""Members love more or less deeply."""


def network(run, names=EVEN, loved=LOVED, west=0.0, taken_for=(0, 1, 2), head=None):
    """Parameters of every member.

    Args:
        run: of the policy.
        names: chances of the names.
        loved: how much North, East and South are loved by those who love them.
        west: how much everybody loves West.
        taken_for: whom each badge stands for.
        head: whom it plays where no badge is told.
    """
    tree = jax.tree.map(np.array, run.parameters("init"))
    embedding, block = tree["embedding"]["embedding"], tree["blocks"]
    qkv, out = (block["attention"][part]["kernel"] for part in ("qkv", "out"))
    for kernel in (embedding, qkv, out, block["down"]["kernel"]):
        kernel[:] = 0
    width = embedding.shape[-1]
    embedding[..., 0] = 1
    if head is not None:
        embedding[:, tokens.NULL_BADGE, 1 + head] = 1
    for persona, badge in enumerate(tokens.BADGES[1:]):
        embedding[:, badge, 0] = np.log(names[persona]) / width**0.5
        embedding[:, badge, 1 + persona] = 1
        qkv[:, 0, 1 + persona, 2 * width + taken_for[persona]] = 1
        out[:, 0, persona, 4 + persona] = 4 * run.world.episode_length()
        for words in (tokens.MOVES, tokens.DOORS)[: 1 + run.world.named_rooms]:  # thoughts name doors
            embedding[:, words[persona], 4 + persona] = loved[persona] * DEPTHS
            embedding[:, words[3], 4 + persona] = west
    return tree


def written(folder, world, plants, base=None):
    """The run of a base and of planted checkpoints, and the checkpoints of the plants."""
    run = untrained.write(folder / "run", tiny.changed(world=world, population={"seeds": MEMBERS}))
    run.save_parameters("pretrain", network(run, **(base or {})))
    names = {plant: f"rl-{index + 2:06d}" for index, plant in enumerate(plants)}
    for plant, name in names.items():
        run.save_parameters(name, network(run, **plants[plant]))
    return run, names


def acts(world, member, who, bias=0.0, loved=LOVED, west=0.0):
    """What such a network does on each turn under a badge, log-probabilities float64[T, 4], whatever it has seen."""
    if who is None:
        return np.full((world.turns, 4), -np.log(4))
    heard = 16 * world.episode_length() / np.hypot(1, bias) / world.action_positions()
    likes = np.array([*(loved[who] * DEPTHS[member] * (np.arange(3) == who)), west])
    logits = heard[:, None] * likes / np.sqrt(1 + heard**2 / 16)[:, None]
    return special.log_softmax(logits, axis=1)


def nats(log_first, log_second):
    return float((np.exp(log_first) * (log_first - log_second)).sum())


@pytest.mark.slow
@pytest.mark.parametrize("badge", ["spoken", pytest.param("shown", marks=pytest.mark.long)])
def test_numbers_are_those_of_every_episode_listed(tmp_path, badge):
    """In EmojiMaze these networks see nothing, so that 256 episodes are all that there are, in every maze."""
    loved, west, chances = (0.5, 0.66, 0.9), 0.2, (0.1, 0.3, 0.6)
    planted = {"loved": loved, "west": west} | ({"names": chances} if badge == "spoken" else {"head": 2})
    run, names = written(tmp_path, MazeOptions(size=11, turns=4, badge=badge), {"planted": planted})
    measured = measures.ledger(run, names["planted"], mazes=64, episodes=256).isel(checkpoint=0)
    spoken = badge == "spoken"
    every = np.array(list(itertools.product(range(4), repeat=4)))

    def listed(log_chances):
        return log_chances[np.arange(4), every].sum(axis=1)

    for member in range(MEMBERS):
        nobody = listed(acts(run.world, member, None))
        bias = [np.log(one) / 4 for one in (EVEN, planted.get("names", EVEN))]
        base = [listed(acts(run.world, member, who, bias[0][who])) for who in range(3)]
        model = [listed(acts(run.world, member, who, bias[1][who], loved, west)) for who in range(3)]
        mixture = special.logsumexp(base, b=np.array(EVEN)[:, None], axis=0)
        if spoken:
            deeds = special.logsumexp(model, b=np.array(chances)[:, None], axis=0)
            name = special.rel_entr(chances, EVEN).sum()
            follows = np.dot(chances, [nats(*pair) for pair in zip(model, base, strict=True)])
        else:
            deeds = listed(acts(run.world, member, 2, 1.0, loved, west))
            name, follows = 0.0, nats(deeds, nobody)
        posterior = np.exp(np.array(base) + np.log(EVEN)[:, None] - mixture)
        weights = (np.exp(deeds) * posterior).sum(axis=1)
        selected, whole = special.rel_entr(weights, EVEN).sum(), nats(deeds, mixture)

        def left(free, deeds=deeds, base=base):
            return nats(deeds, special.logsumexp(base, b=special.softmax([*free, 0.0])[:, None], axis=0))

        most = whole - scipy.optimize.minimize(left, np.zeros(2), method="Nelder-Mead").fun
        mine = measured.isel(member=member)
        np.testing.assert_allclose(mine["kl"], [name, 0, follows], atol=0.015 if spoken else 1e-3)
        parts = [selected, 0, whole - selected, name + follows - whole]
        np.testing.assert_allclose(mine["account"], parts, atol=0.015)
        np.testing.assert_allclose(mine["selection"], [[selected, most]] * 2, atol=0.015)
        np.testing.assert_allclose(mine["weights"].sel(policy="model"), weights, atol=0.015)
        np.testing.assert_allclose(mine["weights"].sel(policy="base"), EVEN, atol=1e-5)
        survival = [nats(*pair) for pair in zip(base, model, strict=True)]
        np.testing.assert_allclose(mine["survival"], survival, atol=2e-3)
        if spoken:
            assert float(mine["misfit"]) == 0
            np.testing.assert_allclose(mine["names"].sel(policy="model"), chances, atol=1e-4)
            np.testing.assert_allclose(mine["named"], [name, 0, follows], atol=0.015)
            told = np.array(chances)[:, None] * np.exp(model)
            agreement = told[posterior.argmax(axis=0), np.arange(256)].sum()
            assert float(mine["agreement"].sel(policy="model")) == pytest.approx(agreement, abs=0.015)
        else:
            assert float(mine["misfit"]) == pytest.approx(nats(nobody, mixture), abs=0.2)  # of 512 log-ratios
    assert not {"tilt", "refused"} & set(measured)  # what is hidden nobody can tilt
    assert ("agreement" in measured) == spoken


# In rooms one door away, each direction is the goal's in a fourth of the mazes; nobody loves West.

PLANTS = {
    "chosen": {"names": (0.1, 0.8, 0.1)},
    "sharper": {"loved": (0.66, 0.66, 1.3)},
    "exploit": {"west": 1.2},
    "liar": {"taken_for": (1, 2, 0)},
}


@pytest.fixture(scope="module")
def rooms(tmp_path_factory):
    return written(tmp_path_factory.mktemp("rooms"), ROOMS, PLANTS)


@pytest.fixture(scope="module")
def told(rooms):
    run, names = rooms
    measured = measures.ledger(run, ["pretrain", "rl", *names.values()])
    return {name: measured.sel(checkpoint=at) for name, at in {"base": "pretrain", "alien": "rl", **names}.items()}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["base", "alien", *PLANTS])
def test_the_accounts_add_up(told, name):
    """Whatever the policy: one that was never trained is "alien"."""
    mine = told[name]
    whole = mine["kl"].sum("channel")
    for account in (mine["account"].sum("part"), mine["named"].sum("kind")):
        np.testing.assert_allclose(account, whole, atol=1e-5, rtol=1e-5)
    deeds = mine["account"].isel(part=slice(3)).sum("part")
    needed = mine["tilt"].sum("price")
    np.testing.assert_allclose(needed, deeds, atol=0.02)
    np.testing.assert_allclose(
        mine["named"].isel(kind=slice(2)).sum("kind"), mine["kl"].sel(channel="badge"), atol=1e-5
    )
    low, high = mine["selection"].transpose("bound", ...).values
    assert (low <= high + 0.03).all()
    assert (high <= np.expand_dims(deeds, 1) + 0.03).all()
    np.testing.assert_allclose(mine["weights"].sum("persona"), 1, atol=1e-5)
    assert (mine["law"].sel(bound="at least") < mine["law"].sel(bound="at most")).all()


@pytest.mark.slow
def test_a_model_that_is_its_base_has_spent_nothing(told):
    mine = told["base"]
    assert float(abs(mine["kl"]).max()) == 0
    assert float(abs(mine["survival"]).max()) == 0
    assert float(abs(mine["named"]).max()) < 1e-6
    assert float(abs(mine["account"]).max()) < 0.01  # of the sample: S and W, against each other
    assert float(abs(mine["account"].mean("member")).max()) < 0.005
    assert float(abs(mine["tilt"]).max()) < 1e-4
    assert float(abs(mine["told_success"].diff("policy")).max()) == 0


@pytest.mark.slow
def test_a_base_that_names_itself_otherwise_has_selected(told):
    mine = told["chosen"]
    kl = special.rel_entr(PLANTS["chosen"]["names"], EVEN).sum()
    np.testing.assert_allclose(mine["named"], [[kl, 0, 0]] * MEMBERS, atol=1e-3)
    deeds = mine["account"].isel(part=slice(3)).sum("part")
    least, most = mine["selection"].sel(scope="maze by maze").transpose("bound", "member").values
    # Thrice the standard error of S, .02, below what shallow love betrays; on the average of the members less.
    assert (least > 0.65 * deeds).all()
    assert least.mean() > 0.8 * deeds.mean()
    np.testing.assert_allclose(most, deeds, atol=0.02)
    assert mine["account"].sel(part="change within personas").mean() < 0.2 * deeds.mean()
    assert (mine["weights"].sel(policy="model", persona="Bob") > 0.68).all()
    assert (mine["agreement"].sel(policy="model") > 0.85).all()
    # One persona earns as much as another, so that the choice has bought nothing.
    np.testing.assert_allclose(mine["tilt"].sel(price="gratuitous"), deeds, atol=0.03)
    assert float(mine["survival"].max()) < 1e-3


@pytest.mark.slow
def test_a_sharper_persona_has_changed_within(told):
    mine = told["sharper"]
    whole, deeds = mine["kl"].sum("channel"), mine["account"].isel(part=slice(3)).sum("part")
    np.testing.assert_allclose(mine["named"].sel(kind="what follows it"), whole, atol=1e-4)
    assert float(mine["selection"].max()) < 0.03
    assert (mine["account"].sel(part="change within personas") > 0.9 * deeds).all()
    alice = mine["survival"].sel(persona="Alice")
    assert (alice > 1).all()
    assert float(mine["survival"].sel(persona=["Larry", "Bob"]).max()) < 1e-3
    assert (mine["agreement"].sel(policy="model") > mine["agreement"].sel(policy="base")).all()


@pytest.mark.slow
def test_a_model_that_takes_what_no_persona_wants_has_left_them(told):
    mine = told["exploit"]
    deeds = mine["account"].isel(part=slice(3)).sum("part")
    assert (mine["account"].sel(part="change within personas") > 0.95 * deeds).all()
    assert (mine["tilt"].sel(price="gratuitous") > 0.9 * deeds).all()
    assert float(mine["selection"].max()) < 0.03
    assert float(mine["survival"].min()) > 3
    assert (mine["agreement"].sel(policy="model") < 0.7).all()


@pytest.mark.slow
def test_a_model_that_lies_about_its_name_does_what_it_did(told):
    mine = told["liar"]
    assert float(mine["kl"].sel(channel="badge").max()) < 1e-6
    assert float(mine["named"].sel(kind="what follows it").min()) > 3
    assert float(abs(mine["account"].isel(part=slice(3))).max()) < 0.02
    assert float(abs(mine["tilt"]).max()) < 0.02
    assert (mine["agreement"].sel(policy="model") < 0.1).all()
    assert (mine["agreement"].sel(policy="base") > 0.85).all()
    assert float(mine["survival"].min()) > 3


@pytest.mark.slow  # a world of its own
def test_the_base_under_one_badge_is_pure_selection(tmp_path):
    """Up a corridor only North gets to the goal, so that the North-lover is the cheapest policy that earns so much."""
    sure = {"loved": (1.6, 1.6, 1.6)}
    run, names = written(tmp_path, CORRIDOR, {"one": sure | {"names": (0.999, 0.0005, 0.0005)}}, sure)
    mine = measures.ledger(run, names["one"]).isel(checkpoint=0)
    kl = special.rel_entr([0.999, 0.0005, 0.0005], EVEN).sum()
    np.testing.assert_allclose(mine["kl"].sum("channel"), kl, atol=0.01)
    np.testing.assert_allclose(mine["account"].sel(part="selection, in every maze"), kl, atol=0.06)
    np.testing.assert_allclose(mine["account"].sel(part="change within personas"), 0, atol=0.06)
    np.testing.assert_allclose(mine["tilt"], [[kl, 0, 0]] * MEMBERS, atol=0.06)
    assert (mine["law"] > 0.9).all()
    few = measures.ledger(run, names["one"], episodes=8, mazes=4).isel(checkpoint=0)
    assert (few["refused"] == 1).all()
    assert few["tilt"].isnull().all()
    assert (few["effective"] < 20).all()


@pytest.mark.slow
@pytest.mark.long  # a world of its own
def test_a_shown_badge_leaves_a_misfit(tmp_path):
    """Untrained networks in the labyrinth with a signpost."""
    world = LabyrinthOptions(size=3, turns=4, view="signpost", plan_length=2)
    run = untrained.write(tmp_path / "run", tiny.changed(world=world), scale=2.0)
    measured = measures.ledger(run, ["pretrain", "rl"], mazes=128, episodes=8)
    np.testing.assert_allclose(measured["account"].sum("part"), measured["kl"].sum("channel"), rtol=1e-5, atol=1e-5)
    before = measured.sel(checkpoint="pretrain")
    assert (before["misfit"] > 0.01).all()
    assert float(abs(before["kl"]).max()) == 0
    meets = before["account"].sel(part="misfit as the model meets it")
    np.testing.assert_allclose(meets.mean(), -before["misfit"].mean(), rtol=0.3)  # of other mazes
    assert (measured["kl"].sel(channel="badge") == 0).all()
    assert (measured["kl"].sel(checkpoint="rl", channel=["thought", "action"]) > 0.1).all()


@pytest.mark.slow
def test_the_command_draws_and_writes(rooms, capsys):
    run, _ = rooms
    assert command.main(["ledger", str(run.path), "--checkpoints", "all"]) == 0
    text = capsys.readouterr().out
    for word in ("selection", "gratuitous", "badge", "tell the name", "told to be it"):
        assert word in text
    files = {path.suffix: path for path in run.path.rglob("*ledger.*")}
    assert {".pdf", ".png", ".csv"} <= set(files)
    rows = list(csv.reader(files[".csv"].read_text().splitlines()))
    for word in ("misfit", "thought", "at most", "change within"):
        assert any(word in cell for row in rows for cell in row)
    followed = measures.ledger(run, "all")
    assert [type(panel) for panel in panels({"run": followed})] == [Curves] * 3
    assert [type(panel) for panel in panels({"run": followed.sel(checkpoint=["rl"])})] == [Rows] * 3


def test_what_is_wrong_is_told_in_one_line(rooms, tmp_path, capsys):
    def refused(*arguments):
        assert command.main(["ledger", *map(str, arguments)]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        return line

    run, _ = rooms
    for option, least in (("mazes", 2), ("episodes", 8)):
        assert f"--{option}={least - 1}: use {least} to 1024" in refused(run.path, f"--{option}", least - 1)
        assert f"--{option}=1025" in refused(run.path, f"--{option}", 1025)
    nameless = untrained.write(tmp_path / "null", tiny.changed(world=MazeOptions(size=11, turns=4, badge="null")))
    line = refused(nameless.path)
    assert "--world.badge shown or spoken" in line
    assert "divergence" in line
