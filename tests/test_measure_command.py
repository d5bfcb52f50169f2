"""The command line of measurements: tables, files, refusals, and a measurement added as the documentation tells."""

import io
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from rich.console import Console

from agents import runs
from analysis import __main__ as command
from analysis import estimates, measure, measures
from ground.estimates import Estimate
from tests import tiny, untrained
from tests.test_runs import snapshot

ROOT = Path(__file__).resolve().parent.parent
SWEEP = {"seeds": 4, "sweep": ("rl.learning_rate=1e-4,1e-2",)}


@measure.measure(also=("sized",), checkpoints=measure.arms)
def sizes(run: runs.Run, checkpoint: str, *, scale: float = 1.0, parts: int = 2) -> xr.Dataset:
    """How large weights are.

    Args:
        scale: a factor, of whatever
            is measured.
        parts: into which they fall.
    """
    kernel = run.kept_parameters(checkpoint)["embedding"]["embedding"].reshape(len(run.kept), -1)
    size = scale * np.linalg.norm(kernel, axis=1)
    return xr.Dataset(
        {
            "size": ("member", size, {"long_name": "norm of the embedding", "units": "logits"}),
            "share": (("member", "part"), np.stack([size / parts] * parts, axis=1), {"long_name": "its parts"}),
            "nothing": ("member", np.full_like(size, np.nan), {"long_name": "what is not there"}),
            "quiet": ("member", size, {"long_name": "hidden", "table": 0}),
            "many": (("member", "weight"), kernel[:, :1] * np.ones(25), {"long_name": "many"}),
            "floor": ("part", np.zeros(parts)),
        },
        {"part": np.arange(parts) / 4},
    )


@pytest.fixture(scope="module", autouse=True)
def registry():
    yield
    for name in ("sizes", "sized"):
        del measure.REGISTRY[name]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    config = tiny.changed(population=SWEEP, pretrain={"shared": False})
    return untrained.write(tmp_path_factory.mktemp("runs") / "first", config)


@pytest.fixture(scope="module")
def other(run):
    config = tiny.changed(population={"seeds": 5}, pretrain={"shared": False})
    return untrained.write(run.path.parent / "second", config)


def said(capsys, *arguments, status=0):
    """What the command prints, on the stream that its exit status says."""
    assert command.main([str(argument) for argument in arguments]) == status
    out, err = capsys.readouterr()
    return err if status else out


def refused(capsys, *arguments):
    text = said(capsys, *arguments, status=2)
    assert text.count("\n") == 1
    return text


# Printed


def test_a_sweep_is_shown_by_point_and_checkpoint(run, capsys):
    text = said(capsys, "sizes", run.path)
    assert all(len(line) <= 80 for line in text.splitlines())
    assert text.startswith("How large weights are.\n")
    measured = measures_of(run)
    for step in ("init", "pretrain", "rl"):
        for start, rate in ((0, "0.0001"), (4, "0.01")):
            mine = measured["size"].sel(checkpoint=step)[start : start + 4]
            (line, *_) = (line for line in text.splitlines() if f"{step}, rl.learning_rate={rate} " in line)
            assert estimate_text(mine) in line
    assert "–" in text  # what is not there
    assert "hidden" not in text
    assert "many" not in text
    assert "mean over 8 members of 4 bases; 95 % interval where 4 or more are independent" in text
    assert "first, config" in text


def measures_of(run, **options):
    return measure.REGISTRY["sizes"](run, **options)


def shown(group, width=80):
    """The lines of a table."""
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(group)
    return console.export_text().splitlines()


@pytest.mark.parametrize("width", [50, 80, 140])
@pytest.mark.parametrize("parts", [1, 2, 9, 24])
def test_tables_fit_and_have_the_longer_list_in_rows(parts, width, run, other):
    arms = {"first": measures_of(run, parts=parts), "second": measures_of(other, parts=parts)}
    numbers, places = 2 + parts, 3 * (2 + 1)
    lines = shown(estimates.table(arms, "Title", width), width)
    assert all(len(line) <= width for line in lines)
    assert lines[0] == "Title"
    tables = sum(bool(re.match(r"\s*─+\s*$", line)) for line in lines)
    rows = [line for line in lines if re.search(r"[\d–]\]?\s*$", line) and not line.strip().startswith("mean over")]
    words = " ".join(" ".join(lines).split())
    if numbers >= places:
        assert sum(f"part {0.25 * (parts - 1):g} " in line for line in rows) == tables
    else:
        assert sum("second, pretrain" in line for line in rows) == tables
    cells = {estimate_text(array) for part in estimates.columns(arms).values() for _, array in estimates.rows(part)}
    assert all(cell in words for cell in cells)
    assert "mean over 5 to 8 members of 4 to 5 bases" in words


def estimate_text(array):
    estimate = estimates.of(array)
    return estimates.numbers.shown(estimate.mean, estimate.low, estimate.high)


def test_arms_are_split_by_what_tells_them_apart(run, other):
    one, two = measures_of(run), measures_of(other)
    low, high = "rl.learning_rate=0.0001", "rl.learning_rate=0.01"
    assert list(estimates.columns({"a": two.sel(checkpoint=["rl"])})) == ["rl"]
    assert list(estimates.columns({"a": two})) == ["init", "pretrain", "rl"]
    assert list(estimates.columns({"a": one.sel(checkpoint=["rl"])})) == [f"rl, {low}", f"rl, {high}"]
    both = estimates.columns({"a": one.sel(checkpoint=["rl"]), "b": two.sel(checkpoint=["rl"])})
    assert list(both) == [f"a, rl, {low}", f"a, rl, {high}", "b, rl"]
    assert both[f"a, rl, {high}"]["member"].values.tolist() == [4, 5, 6, 7]
    assert "checkpoint" not in both["b, rl"].dims
    assert list(estimates.columns({"a": two.sel(checkpoint="rl", drop=True)})) == ["mean"]
    followed = estimates.columns({"a": one, "b": two}, "/", followed=True)
    assert list(followed) == [f"a/{low}", f"a/{high}", "b"]
    assert followed["b"].sizes["checkpoint"] == 3


def test_all_checkpoints_several_runs_and_other_names(run, other, capsys):
    text = said(capsys, "sized", run.path, other.path, "--checkpoints", "all")
    assert all(len(line) <= 80 for line in text.splitlines())
    for word in ("first, ", "second, ", "rl-000001", "init", "5 to 8 members"):
        assert word in text
    assert "first, config" in text
    assert "second, config" in text


def test_the_list_has_every_measurement_and_its_other_names(capsys):
    text = " ".join(said(capsys, "list").split())
    for name, measurement in measure.REGISTRY.items():
        assert name in text
        assert measurement.summary.split(".")[0] in text
    assert "pass-at-k the same as attempts" in text
    assert set(measures.__all__) <= {measurement.function.__name__ for measurement in measure.REGISTRY.values()}


def test_help_tells_of_every_option(capsys):
    with pytest.raises(SystemExit) as stop:
        command.main(["sizes", "--help"])
    assert stop.value.code == 0
    text = " ".join(re.sub("[│╭╮╰╯─]", " ", capsys.readouterr().out).split())
    for word in ("How large weights are.", "--scale FLOAT", "a factor, of whatever is measured.", "default: 1.0"):
        assert word in text
    for word in ("--parts INT", "--checkpoints", "--json"):
        assert word in text


# Written


def test_the_json_file_holds_every_number_and_label(run, other, tmp_path, capsys):
    file = tmp_path / "numbers.json"
    said(capsys, "sizes", run.path, other.path, "--scale", "2", "--json", file)
    document = json.loads(file.read_text())
    assert (document["schema"], document["measurement"], list(document["runs"])) == (1, "sizes", ["first", "second"])
    for one in (run, other):
        mine, measured = document["runs"][one.path.name], measures_of(one, scale=2.0)
        assert json.loads(mine["attrs"]["options"]) == {"scale": 2.0, "parts": 2}
        assert set(mine["data_vars"]) == set(measured.data_vars)
        assert set(mine["coords"]) == set(measured.coords)
        for name, array in measured.variables.items():
            entry = (mine["coords"] | mine["data_vars"])[name]
            assert entry["dims"] == list(array.dims)
            assert entry["attrs"] == array.attrs
            values = np.array(entry["data"], object if array.dtype.kind == "O" else float)
            np.testing.assert_array_equal(values, array.values)
    assert document["runs"]["first"]["data_vars"]["nothing"]["data"][0] == [None] * 8  # JSON has no NaN


# Refused


def test_what_is_wrong_is_told_in_one_line(run, tmp_path, capsys):
    assert "no checkpoint 'sft'; there are init, pretrain, rl-000001, rl" in refused(
        capsys, "sizes", run.path, "--checkpoints", "sft"
    )
    assert "no checkpoint ''" in refused(capsys, "sizes", run.path, "--checkpoints", "init,")
    assert "did you mean --scale?" in refused(capsys, "sizes", run.path, "--scal", "2")
    assert "--parts" in refused(capsys, "sizes", run.path, "--parts", "two")
    assert "no such run directory" in refused(capsys, "sizes", tmp_path / "none")
    assert "not a run directory" in refused(capsys, "sizes", tmp_path)
    assert "which run? give its directory" in refused(capsys, "sizes")
    assert "two of the runs have the same name" in refused(capsys, "sizes", run.path, run.path)
    assert "sises: no such measurement; choose one of attempts, " in refused(capsys, "sises", run.path)
    assert "which measurement?" in refused(capsys)
    measured = sorted(run.path.glob("analysis/*"))
    assert "--width=1: use 2 to 40 inches" in refused(capsys, "sizes", run.path, "--scale", "9", "--width", "1")
    assert sorted(run.path.glob("analysis/*")) == measured
    assert "cannot write" in refused(capsys, "sizes", run.path, "--json", tmp_path / "none" / "a.json")


def test_a_file_that_is_no_such_document_is_refused_before_measuring(run, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "notes.json").write_text('{"measurement": "by hand"}')
    named = {
        run.path / "config.json": "holds something else",
        tmp_path / "notes.json": "holds something else",
        "": "a folder; name a file",
        tmp_path: "a folder; name a file",
        tmp_path / "none" / "a.json": "no such folder",
        tmp_path / ("x" * 300): "name too long",
    }
    before = snapshot(run.path) | snapshot(tmp_path)
    for file, words in named.items():
        text = refused(capsys, "sizes", run.path, "--scale", "11", "--json", file)
        assert text.startswith(f"analysis sizes: --json={file or '.'}: ")
        assert words in text
    assert "--json=" in refused(capsys, "compare", run.path, "--json", run.path / "config.json")
    assert snapshot(run.path) | snapshot(tmp_path) == before
    (file := tmp_path / "new.json").touch()
    for scale in (12.0, 13.0):  # what is empty, and what was measured earlier, is replaced
        said(capsys, "sizes", run.path, "--scale", scale, "--json", file)
        (one,) = json.loads(file.read_text())["runs"].values()
        assert json.loads(one["attrs"]["options"])["scale"] == scale


def test_a_damaged_file_is_told_in_one_line(run, tmp_path, capsys):
    path = shutil.copytree(run.path, tmp_path / "copy")
    said(capsys, "sizes", path, "--checkpoints", "rl", "--scale", "3")
    (file,) = (
        file for file in (path / "analysis").glob("sizes-rl-*") if not (run.path / "analysis" / file.name).exists()
    )
    file.write_bytes(file.read_bytes()[:-40])
    text = refused(capsys, "sizes", path, "--checkpoints", "rl", "--scale", "3")
    assert str(file) in text
    assert "delete it to measure again" in text


# Extended


def blocks(section):
    """The fenced Python of a section of the documentation."""
    text = (ROOT / "docs" / "extending.md").read_text()
    (body,) = re.findall(rf"^## {section}\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
    return body, re.findall(r"^```python\n(.*?)^```", body, re.MULTILINE | re.DOTALL)


@pytest.mark.slow
@pytest.mark.long
def test_a_measurement_is_added_as_the_documentation_tells(run, tmp_path):
    body, (code, use) = blocks("Add a measurement")
    for room in ("ground", "envs", "agents"):
        (tmp_path / room).symlink_to(ROOT / room)
    shutil.copytree(ROOT / "analysis", tmp_path / "analysis", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(run.path, tmp_path / "runs" / "NAME")
    (tmp_path / "analysis" / "measures" / "weights.py").write_text(code)
    names = tmp_path / "analysis" / "measures" / "__init__.py"
    line = "from analysis.measures.weights import weights\n\n__all__ = ["
    names.write_text(names.read_text().replace("\n__all__ = [", f'{line}"weights", '))
    typed = re.findall(r"^    uv run -m (analysis weights .*)$", body, re.MULTILINE)

    def python(*arguments):
        done = subprocess.run(
            [sys.executable, *arguments], cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert len(typed) == 1
    text = python("-m", *typed[0].split())
    tree = run.parameters("rl")
    flat = np.concatenate([leaf.reshape(8, -1) for leaf in leaves(tree)], axis=1).astype(np.float64)
    first = Estimate.of(np.abs(flat).sum(axis=1)[:4])
    assert "norm of all weights" in " ".join(text.split())
    assert "rl-000001, rl.learning_rate=0.01" in text
    assert estimates.numbers.shown(first.mean, first.low, first.high) in text
    frame = python("-c", use.rstrip().rpartition("\n")[0] + "\nprint(" + use.rstrip().rpartition("\n")[2] + ")")
    assert f"{np.linalg.norm(flat, axis=1)[7]:.4f}"[:6] in frame


def leaves(tree):
    return [leaf for part in tree.values() for leaf in (leaves(part) if isinstance(part, dict) else [part])]
