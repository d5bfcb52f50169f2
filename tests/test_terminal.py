"""Command lines are refused in one line; what is printed never ends the work."""

import dataclasses
import os
import subprocess
import sys
from typing import Annotated, Literal

import pytest
import tyro

from ground import terminal
from tests.jobs import ROOT
from tests.thrift import some


@dataclasses.dataclass(frozen=True)
class Inner:
    learning_rate: float = 1.0
    pair: tuple[int, int] = (0, 0)


@dataclasses.dataclass(frozen=True)
class Options:
    name: Annotated[str, tyro.conf.Positional]
    seed: int = 0
    scale: Literal["smoke", "laptop"] = "smoke"
    shared: bool = True
    rl: Inner = Inner()


def test_options_are_read():
    options = terminal.read(Options, ["x", "--rl.learning-rate", "1e-3", "--no-shared", "--rl.pair", "1", "2"])
    assert options == Options("x", shared=False, rl=Inner(1e-3, (1, 2)))
    assert terminal.read(Options, ["--seed=3"], default=Options("y")).name == "y"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "name: missing"),
        (["x", "--sede", "1"], "Unrecognized options: --sede 1; did you mean --seed?"),
        (["x", "--rl.learning-rat=1"], "--rl.learning-rat=1; did you mean --rl.learning-rate?"),
        (["x", "--no-share"], "did you mean --no-shared?"),
        (["x", "--quite-unlike"], "Unrecognized options: --quite-unlike; see --help"),
        (["x", "y"], "Unrecognized options: y; see --help"),
        (["x", "--seed", "much"], "--seed: invalid literal for int() with base 10: 'much'"),
        (["x", "--seed"], "--seed: its value is missing"),
        (["x", "--rl.pair", "1"], "--rl.pair: its value is missing"),
        (["x", "--scale", "huge"], "--scale huge: choose one of smoke, laptop"),
        (["x", "--shared=maybe"], "maybe"),
    ],
)
def test_what_cannot_be_read_is_one_line(arguments, message, capsys):
    with pytest.raises(terminal.ConfigError) as caught:
        terminal.read(Options, arguments, prog="options")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert capsys.readouterr() == ("", "")


def test_help_is_printed(capsys):
    with pytest.raises(SystemExit) as caught:
        terminal.read(Options, ["--help"], prog="options")
    assert caught.value.code == 0
    assert "--rl.learning-rate" in capsys.readouterr().out


def test_a_complaint_is_one_line_whatever_it_quotes(capsys):
    terminal.complain("command", "a name with\na line of its own: x")
    assert capsys.readouterr().err == "command: a name with a line of its own: x\n"


PROGRAM = """
import sys, time
from ground import terminal
from rich.console import Console
from rich.progress import track
terminal.never_fail("command")
console = Console()
for step in range(3):
    console.print(f"{step} 3×3 🐭 [bold]done[/]")
    print("plain ×")
    sys.stdout.flush()
    time.sleep(0.05)
for _ in track(range(20), console=console):
    time.sleep(0.01)
open(sys.argv[1], "w").write("worked")
"""


@pytest.mark.parametrize("output", ["pipe", "/dev/full", "nobody", "closed"])
@pytest.mark.parametrize("encoding", some(["ascii", "utf-8", "latin-1"]))
def test_the_console_never_ends_the_work(tmp_path, output, encoding):
    reader, writer = os.pipe()
    if output == "nobody":
        os.close(reader)
    with open("/dev/full" if output == "/dev/full" else writer, "w") as stdout:
        command = [sys.executable, "-c", PROGRAM, tmp_path / "work"]
        if output == "closed":
            command = ["sh", "-c", '"$@" >&-', "sh", *command]
        done = subprocess.run(
            command, cwd=ROOT, stdout=stdout, stderr=subprocess.PIPE, text=True, check=False,
            env=os.environ | {"PYTHONIOENCODING": encoding},
        )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "work").read_text() == "worked"
    lament = "command: standard output is lost ({}); the work goes on\n"
    reasons = {"/dev/full": lament.format("No space left on device"), "nobody": lament.format("Broken pipe")}
    assert done.stderr == reasons.get(output, "")
    if output == "pipe":
        assert ("3×3" if encoding != "ascii" else "3?3") in os.read(reader, 100_000).decode(encoding)


def test_standard_error_that_is_lost_ends_nothing(tmp_path):
    program = PROGRAM.replace('print("plain ×")', 'print("plain ×", file=sys.stderr)')
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-c", program, str(tmp_path / "work")]
        done = subprocess.run(command, cwd=ROOT, stdout=full, stderr=full, check=False)
    assert done.returncode == 0
    assert (tmp_path / "work").read_text() == "worked"
