"""Whatever is given to a command, it ends in one clear line and status 2, and nothing is made or changed.

Where a value that is drawn happens to be good, the command must take it; it is stopped before it trains.
"""

import itertools
import json
import os
import pickle
from pathlib import Path

import hypothesis
import hypothesis.strategies as st
import pytest

import analysis.__main__ as analysis
import benchmarks.__main__ as benchmarks
import studies.__main__ as studies
import train
from agents import runs
from agents.learning import hyperparameters
from agents.runs import config as configs
from tests import tiny, verdicts

OPTIONS = {
    name: value for name, value in tiny.flat(configs.to_dict(configs.SCALES["smoke"])).items() if name != "scale"
}
"""Every option of the config by its dotted name, and a good value."""
NUMBERS = [name for name, value in OPTIONS.items() if type(value) in (int, float)]
FLOATS = [name for name, value in OPTIONS.items() if type(value) is float]
CHOICES = [name for name, value in OPTIONS.items() if type(value) is str and name != "world.board"]
MAINS = {"train": train.main, "analysis": analysis.main, "studies": studies.main, "benchmarks": benchmarks.main}


pytestmark = pytest.mark.slow  # together: hundreds of command lines, each read in a quarter of a second


class Accepted(Exception):
    """Input was good, and work would begin."""


@pytest.fixture(autouse=True)
def _idle(monkeypatch):
    """Work is never begun."""

    def stop(*arguments, **options):
        raise Accepted

    monkeypatch.setattr(train, "_train", stop)
    monkeypatch.setattr(studies.frame, "run", stop)
    monkeypatch.setattr(benchmarks, "document", stop)


def snapshot(folder: Path) -> dict:
    """Whatever lies in a folder, and when it was changed."""
    found = {}
    for base, names, files in os.walk(folder):
        for name in (*names, *files):
            status = os.lstat(os.path.join(base, name))
            found[os.path.join(base, name)] = (status.st_size, status.st_mtime_ns, status.st_mode)
    return found


def refused(capsys, command: str, *arguments: str) -> str:
    """The one line with which a command refuses its arguments."""
    capsys.readouterr()
    assert MAINS[command](list(arguments)) == 2
    out, errors = capsys.readouterr()
    assert out == ""
    assert len(errors.strip().splitlines()) == 1, errors
    assert "Traceback" not in errors
    assert 10 < len(errors) < 700
    return errors


@pytest.mark.parametrize(
    ("name", "text"), list(zip(NUMBERS, itertools.cycle(["many", "", "0x10", "1,5"]), strict=False))
)
def test_what_is_no_number_is_refused_by_name(capsys, tmp_path, name, text):
    option = f"--{name.replace('_', '-')}"
    said = refused(capsys, "train", option, text, "--run-dir", str(tmp_path / "run"))
    assert option in said
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "text"), list(zip(FLOATS, itertools.cycle(["nan", "inf", "-inf", "1e39"]), strict=False))
)
def test_what_is_not_finite_is_refused_by_name(capsys, tmp_path, name, text):
    said = refused(capsys, "train", f"--{name.replace('_', '-')}={text}", "--run-dir", str(tmp_path / "run"))
    assert name in said.replace("-", "_").replace("__", "--")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", CHOICES)
def test_an_unknown_choice_is_refused_with_those_there_are(capsys, name):
    said = refused(capsys, "train", f"--{name.replace('_', '-')}", "banana")
    assert "banana" in said
    assert OPTIONS[name] in said


@hypothesis.settings(max_examples=150, suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture])
@hypothesis.given(
    name=st.sampled_from(NUMBERS),
    value=st.one_of(st.integers(-(2**70), 2**70), st.integers(-3, 3), st.floats(allow_nan=False, allow_infinity=False)),
)
def test_any_number_is_taken_or_refused_in_one_line(capsys, tmp_path_factory, name, value):
    folder = tmp_path_factory.mktemp("any")
    arguments = ["--scale=smoke", f"--{name.replace('_', '-')}={value}", "--run-dir", str(folder / "run")]
    try:
        refused(capsys, "train", *arguments)
    except Accepted:
        assert (folder / "run" / "config.json").exists()
        stored = tiny.flat(runs.open(folder / "run").document)[name]
        assert stored == type(stored)(value)
    else:
        assert not list(folder.iterdir())


@hypothesis.settings(max_examples=100, suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture])
@hypothesis.given(
    command=st.sampled_from(["train", "analysis", "studies", "benchmarks"]),
    words=st.lists(
        st.one_of(
            st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=20),
            st.sampled_from(
                ["--", "-", "=", "--=", "--seed", "run", "list", "updates", "--scale", "report", "\N{MOUSE}"]
            ),
        ),
        min_size=1,
        max_size=4,
    ),
)
def test_any_words_are_refused_in_one_line(capsys, monkeypatch, tmp_path_factory, command, words):
    hypothesis.assume(not {"-h", "--help"} & set(words))
    hypothesis.assume(words[:1] != ["list"] and words != ["report"])
    folder = tmp_path_factory.mktemp("words")
    monkeypatch.chdir(folder)
    try:
        refused(capsys, command, *words)
    except Accepted:
        hypothesis.reject()
    assert not list(folder.iterdir())


@pytest.mark.parametrize(
    ("command", "arguments", "meant"),
    [
        ("train", ["--sede", "1"], "--seed"),
        ("train", ["--rl.learning-rat", "1"], "--rl.learning-rate"),
        ("train", ["--population.sweep", "rl.learning_rat=1,2"], "rl.learning_rate"),
        ("train", ["--world.name", "EmojiMaze-v1"], "EmojiMaze-v0"),
        ("analysis", ["concept", "x"], "concepts"),
        ("analysis", ["updates", "x", "--sinc", "init"], "--since"),
        ("studies", ["run", "functional-welfar"], "functional_welfare"),
        ("studies", ["lists"], "list"),
        ("benchmarks", ["train", "--repeat", "3"], "--repeats"),
    ],
)
def test_a_slip_of_the_pen_is_told_what_was_meant(capsys, command, arguments, meant):
    assert meant in refused(capsys, command, *arguments)


CONFLICTS = [
    (["--resume", "x", "--seed", "1"], "--resume x: takes the run's own config"),
    (["--resume", "x", "--run-dir", "y"], "--resume x: takes the run's own config"),
    (["--algorithm", "grpo", "--rl.group", "7"], "--rl.episodes=32: use a multiple of rl.group=7"),
    (["--rl.minibatches", "3"], "--rl.episodes=32: use a multiple of rl.minibatches=3"),
    (["--rl.updates", "7", "--rl.chunk", "2"], "--rl.updates=7: use a multiple of rl.chunk=2"),
    (["--world.turns", "60"], "--world.size=100: too small for turns=60"),
    (["--world.plan-length", "8"], "--world.plan-length: EmojiMaze-v0 has no such option"),
    (["--policy.width", "30", "--policy.heads", "4"], "--policy.width=30: use a multiple of 2 * policy.heads = 8"),
    (["--policy.family", "gru", "--policy.heads", "3"], "--policy.hidden=64: use a multiple of policy.heads = 3"),
    (["--policy.family", "gru", "--policy.layers", "0"], "--policy.layers=0: use at least 1"),
    (["--pretrain.updates", "30", "--pretrain.chunk", "20"], "--pretrain.updates=30: use a multiple of pretrain.chunk"),
    (["--rl.reference-reset", "2"], "--rl.reference-reset=2: there is no reference"),
    (["--population.sweep", "pretrain.learning_rate=1e-3,2e-3"], "pretrain.learning_rate: all members share one base"),
    (["--population.sweep", "rl.learning_rate"], "rl.learning_rate: write FIELD=VALUE,VALUE"),
    (["--population.sweep", "rl.learning_rate=a,b"], "rl.learning_rate=a,b: values must be numbers"),
    (["--population.sweep", "rl.learning_rate=nan"], "rl.learning_rate=nan: use finite numbers"),
    (["--population.sweep", "rl.learning_rate=1e39,1e40"], "rl.learning_rate=1e39,1e40: use finite numbers of 32 bits"),
    (["--population.sweep", "=1"], "--population.sweep =1: no field"),
    (["--evaluation-episodes", "1000"], "--evaluation_episodes=1000: use 1024 or more"),
    (["--seed", "3000000000"], "--seed=3000000000: use a 32-bit integer"),
    (["--base", "nowhere"], "nowhere: no such run directory"),
    (["--base", "."], ".: not a run directory"),
    (["--rl.shuffle-rewards", "--rl.group", "32"], "--rl.episodes=32: nobody else to be paid for; use at least 64"),
    (["--pretrain.prior", "1e400,0,0"], "--pretrain.prior 1e400,0,0: write the chances of Larry, Bob, Alice"),
    (["--pretrain.prior", "1e999999999,0,0"], "--pretrain.prior 1e999999999,0,0: write the chances of Larry"),
    (["--pretrain.prior", "0,nan,1"], "--pretrain.prior 0,nan,1: write the chances of Larry, Bob, Alice"),
    (["--pretrain.prior", "1/,0,1"], "--pretrain.prior 1/,0,1: write the chances of Larry, Bob, Alice"),
    (
        ["--world.name=EmojiRooms-v0", "--pretrain.trips=2147483647"],
        "--pretrain.trips=2147483647: 73,014,444,029 tokens",
    ),
]
OUT_OF_RANGE = {
    # What 32 bits make 0 or infinity of, also of what is derived.
    "rl.temperature": ["1e-38", "1e-50", "9e-5", "1e38"],
    "rl.reward-scale": ["1e-60", "0", "1e30"],
    "rl.max-gradient-norm": ["1e-60", "0"],
    "pretrain.max-gradient-norm": ["1e-30"],
    "rl.learning-rate": ["1e-46"],
    "world.gold-reward": ["1e39", "-1e39"],
    # What is counted from there, or fills the memory before anything runs.
    "seed": ["2147483647", "-2147483649"],
    "pretrain.seed": ["-1", "5000000000"],
    "pretrain.warmup": ["-1"],
    "population.seeds": ["1000000000", "65537"],
    "world.size": ["70000", "2147483647"],
    "world.turns": ["1000000000"],
    "rl.episodes": ["2000000000", "1048578"],
    "sft.episodes": ["2000000000"],
    "pretrain.episodes": ["2000000000"],
    "evaluation-episodes": ["2000000000"],
    "rl.staleness": ["2000000000"],
    "rl.epochs": ["2000000000"],
    "policy.width": ["2000000000"],
    "policy.layers": ["2000000000"],
    "policy.hidden": ["2000000000"],
    # Members that are the same.
    "population.sweep": [
        "rl.learning_rate=1e-3,1e-3", "rl.learning_rate=1e-3,0.00100000000001", "rl.learning-rate=0.0,-0.0",
        "world.gold_reward=1,1.0", "rl.temperature=1,1e-38", "pretrain.max_gradient_norm=1e-60,1",
    ],
}  # fmt: skip
"""Values that a computer of 32 bits, or its memory, cannot bear; each names its option."""


@pytest.mark.parametrize(("arguments", "why"), CONFLICTS, ids=[" ".join(arguments) for arguments, _ in CONFLICTS])
def test_what_does_not_go_together_is_refused(capsys, monkeypatch, tmp_path, arguments, why):
    monkeypatch.chdir(tmp_path)
    assert why in refused(capsys, "train", *([] if "--resume" in arguments else ["--scale=smoke"]), *arguments)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("option", OUT_OF_RANGE)
def test_what_cannot_be_computed_is_refused_by_name(capsys, monkeypatch, tmp_path, option):
    monkeypatch.chdir(tmp_path)
    for value in OUT_OF_RANGE[option]:
        said = refused(capsys, "train", "--scale=smoke", "--world.name=EmojiMaze-v0", f"--{option}={value}")
        named = value.partition("=")[0] if "=" in value else option.rpartition(".")[2]
        assert named.replace("-", "_") in said.replace("-", "_")
    assert not list(tmp_path.iterdir())


def test_one_field_is_swept_once_by_whatever_name(capsys, tmp_path):
    sweep = ["--population.sweep", "rl.learning_rate=1e-3,2e-3", "rl.learning-rate=1e-4,3e-4"]
    said = refused(capsys, "train", "--scale=smoke", *sweep, "--run-dir", str(tmp_path / "run"))
    assert "rl.learning_rate is swept already" in said
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """A run that could be looked at."""
    return verdicts.write_run(tmp_path_factory.mktemp("runs") / "good")


class Planted:
    """Writes a file where it is loaded."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def _loop(path: Path):
    path.symlink_to(path)


def _written(text: bytes):
    def make(path: Path):
        path.mkdir()
        (path / "config.json").write_bytes(text)

    return make


def _config_is_folder(path: Path):
    (path / "config.json").mkdir(parents=True)


def _config_loops(path: Path):
    path.mkdir()
    (path / "config.json").symlink_to(path / "config.json")


def _planted(path: Path):
    path.mkdir()
    (path / "config.json").write_bytes(pickle.dumps(Planted(path / "executed")))


DIRECTORIES = {
    "missing": lambda path: None,
    "empty": Path.mkdir,
    "a file": lambda path: path.write_text("x"),
    "a loop of links": _loop,
    "a dangling link": lambda path: path.symlink_to(path.with_name("gone")),
    "an empty config": _written(b""),
    "half a config": _written(b'{"schema": 1, "members": 2, "config": {"scale"'),
    "a list": _written(b"[]"),
    "deep nesting": _written(b"[" * 100_000),
    "a huge number": _written(b'{"schema": 1' + b"0" * 5000 + b"}"),
    "no fields": _written(b"{}"),
    "a newer schema": _written(b'{"schema": 999, "members": 2, "config": {}}'),
    "other fields": _written(b'{"schema": 1, "members": 2, "config": {"__class__": "os.system"}}'),
    "wrong bytes": _written(b"\xff\xfe\x00{"),
    "a planted pickle": _planted,
    "a config that is a folder": _config_is_folder,
    "a config that is a loop": _config_loops,
}
COMMANDS = {
    **{name: ("analysis", name) for name in analysis.REGISTRY},
    "resume": ("train", "--resume"),
    "base": ("train", "--scale=smoke", "--base"),
}


@pytest.mark.parametrize("kind", DIRECTORIES)
@pytest.mark.parametrize("command", COMMANDS)
def test_what_is_no_run_is_refused_by_every_command(capsys, monkeypatch, tmp_path, kind, command):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "Läufe \N{MOUSE} run"
    DIRECTORIES[kind](path)
    before = snapshot(tmp_path)
    assert path.name in refused(capsys, *COMMANDS[command], str(path))
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize(
    "arguments",
    [
        ["updates", "--since", "nowhere"],
        ["updates", "--checkpoints", "rl-000007"],
        ["spectra", "--since", "../pretrain"],
        ["overlaps", "--against", "nowhere"],
        ["concepts", "--episodes", "0"],
        ["concepts", "--permutations", "-1"],
        ["concepts", "--against", "nowhere"],
        ["steer", "--strengths", "nan"],
        ["steer", "--episodes", "0"],
        ["subnetwork", "--density", "2"],
        ["subnetwork", "--density", "nan"],
        ["subnetwork", "--members", "99"],
        ["pass-at-k", "--samples", "0"],
        ["pass-at-k", "--mazes", "-5"],
        ["pass-at-k", "--temperature", "0"],
        ["pass-at-k", "--temperature", "1e-38"],
        ["pass-at-k", "--temperature", "1e-50"],
        ["pass-at-k", "--samples", "2000000000"],
        ["returns", "--episodes", "1999999936"],
        ["divergence", "--episodes", "1999999936"],
        ["concepts", "--episodes", "1999999992"],
        ["concepts", "--permutations", "2000000000"],
        ["concepts", "--seed", "5000000000"],
        ["tracking", "--play-episodes", "2000000000"],
        ["steer", "--strengths=-1e39", "0", "1"],
        ["steer", "--strengths=-1e-60", "0", "1"],
        ["steer", "--strengths", "0", "0", "0"],
        ["steer", "--play-episodes", "2000000000"],
        ["subnetwork", "--density", "1e-60"],
        ["subnetwork", "--draws", "2000000000"],
        ["pass-at-k", "--checkpoints", "x"],
        ["thoughts"],
        ["thoughts", "--episodes", "0"],
        ["thoughts", "--speaker", "Carol"],
        ["personas", "--episodes", "0"],
        ["personas", "--checkpoints", "x"],
    ],
    ids=" ".join,
)
def test_wrong_options_of_an_analysis_are_refused_and_the_run_stays(capsys, good, arguments):
    before = snapshot(good.path)
    refused(capsys, "analysis", arguments[0], str(good.path), *arguments[1:])
    assert snapshot(good.path) == before


@pytest.mark.parametrize(
    "arguments",
    [
        ["run"],
        ["run", "sparse_updates", "--scale", "huge"],
        ["run", "../sparse_updates"],
        ["run", "sparse_updates", "--seed", "-1"],
        ["run", "sparse_updates", "--seed", "5000000000"],
        ["report", "--episodes", "0"],
        ["report", "--out", "nowhere"],
        ["report", "--into", "README.md"],
    ],
    ids=" ".join,
)
def test_wrong_options_of_studies_are_refused(capsys, monkeypatch, tmp_path, arguments):
    monkeypatch.chdir(tmp_path)
    refused(capsys, "studies", *arguments)
    assert not list(tmp_path.iterdir())


def test_a_taken_run_directory_is_left_alone(capsys, good, tmp_path):
    (tmp_path / "thesis.txt").write_text("x")
    for folder in (good.path, tmp_path, tmp_path / "thesis.txt"):
        before = snapshot(folder)
        assert str(folder) in refused(capsys, "train", "--scale=smoke", "--run-dir", str(folder))
        assert snapshot(folder) == before


@pytest.mark.parametrize("name", [name for name in OPTIONS if name != "population.sweep"])
def test_a_config_with_a_value_of_another_type_is_refused_by_name(good, name):
    document = json.loads(json.dumps(good.document))
    *path, last = name.split(".")
    section = document
    for part in path:
        section = section[part]
    section[last] = {"__reduce__": ["os.system", "x"]}
    with pytest.raises(configs.ConfigError, match=f"config.{name}") as caught:
        configs.from_dict(document)
    assert "\n" not in str(caught.value)


def test_floats_are_those_that_can_be_swept():
    sections = {name: hyperparameters.names(type(getattr(configs.Config(), name))) for name in configs.SECTIONS}
    assert {f"{section}.{name}" for section, names in sections.items() for name in names} == set(FLOATS)
