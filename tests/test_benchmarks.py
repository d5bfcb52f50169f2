import dataclasses
import json
import re
import resource
import shutil
import signal
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import envs
from agents.policies import PolicyConfig
from agents.policies.transformer import Transformer
from agents.runs.config import ConfigError
from benchmarks import __main__ as command
from benchmarks import counts, machine, measure, tables
from benchmarks.cases import env

CEILINGS = dict.fromkeys(machine.CEILINGS, 1e9)

SMALL = PolicyConfig(width=64, layers=2, heads=4, hidden=256)


def xla_flops(function, *arguments) -> float:
    analysis = jax.jit(function).lower(*arguments).compile().cost_analysis()
    assert analysis
    return analysis["flops"]


def test_the_formula_is_what_xla_counts():
    """XLA also counts softmax, norms and rotary positions: up to 6 % at this width, and never less than we do."""
    config, length, batch = SMALL, 48, 4
    policy = Transformer(config)
    parameters = policy.init(jax.random.key(0))
    sequence = jnp.zeros((batch, length), jnp.int32)

    def predictions(parameters):
        return policy.heads(parameters, policy.forward(parameters, sequence).hidden)

    def loss(parameters):
        logits, values = predictions(parameters)
        return jax.nn.log_softmax(logits).sum() + values.sum()

    counted = batch * counts.forward(config, length, length)
    assert 1.0 < xla_flops(predictions, parameters) / counted < 1.06
    assert 1.0 < xla_flops(jax.grad(loss), parameters) / (3 * counted) < 1.06


def test_the_formula_by_hand():
    config = PolicyConfig(width=4, layers=3, heads=1, hidden=6)
    matrices = [(4, 12), (4, 4), (4, 6), (6, 4)]
    layer = sum(2 * 5 * rows * columns for rows, columns in matrices)
    scores_and_mixing = sum(2 * 2 * 4 for _ in range(5) for _ in range(5))
    assert counts.forward(config, 5, 2, 7) == 3 * (layer + scores_and_mixing) + 2 * 2 * 4 * (7 + 1)
    below = sum(2 * 2 * 4 for query in range(5) for key in range(5) if key <= query)
    assert counts.forward(config, 5, 2, 7, causal=True) == 3 * (layer + below) + 2 * 2 * 4 * (7 + 1)
    # The last block: keys and values of five tokens; queries, scores, mixing, output and MLP of two.
    last = 2 * 5 * 4 * 8 + 2 * 2 * (4 * 4 + 4 * 4 + 4 * 6 + 6 * 4) + 2 * 5 * 2 * 2 * 4
    assert counts.forward(config, 5, 2, 7, sparing=True) == 2 * (layer + scores_and_mixing) + last + 2 * 2 * 4 * 8


def test_a_stage_counts_every_pass():
    from tests import tiny

    config = tiny.CONFIG
    world, _ = config.world.make()
    length = world.episode_length()
    once = counts.forward(config.policy, length - 1, world.turns, 4, sparing=True) / length
    assert counts.stage(config, "rl").flops == pytest.approx((2 + 3 * config.rl.epochs) * once)
    assert counts.stage(config, "rl", scored=False).flops == pytest.approx((1 + 3 * config.rl.epochs) * once)
    whole = counts.forward(config.policy, length - 1, world.turns, 4) / length
    theirs = counts.stage(config, "rl", scored=False, sparing=False)
    assert theirs.flops == pytest.approx((1 + 3 * config.rl.epochs) * whole)
    every = counts.forward(config.policy, length - 1, length - 1) / length
    assert counts.stage(config, "pretrain").flops == pytest.approx(3 * every)


def test_operations_of_loops_are_counted_as_often_as_they_run():
    def program(x):
        y, _ = jax.lax.scan(lambda y, _: (y * x + x, None), x, length=7)
        return jax.jit(jnp.sum)(y.reshape(2, 3).T)

    assert counts.operations(jax.make_jaxpr(program)(jnp.ones(6)).jaxpr) == 7 * 2 * 6 + 6


def test_bytes_are_of_what_a_step_changes():
    small, large = (counts.stepping(*envs.make("EmojiMaze-v0", size=size, layout="walk")) for size in (40, 100))
    large_words, small_words = (-(-((size - 2) ** 2) // 32) for size in (100, 40))
    mazes = 2 * 4 * (large_words - small_words) / 15  # two sets of bits, written at the reset, once in 15 turns
    assert large.bytes - small.bytes == pytest.approx(mazes)
    assert large.operations > small.operations > 0


def test_the_limit_is_the_tightest_one():
    limits = CEILINGS | {"copy_out_of_cache": 1e6, "copy_in_cache": 1e8}
    work = measure.Work(flops=100.0, bytes=1.0, in_cache=False)
    assert work.limit(limits) == (1e6, "copy_out_of_cache")
    assert dataclasses.replace(work, in_cache=True).limit(limits) == (1e7, "matmul_float32")
    assert measure.Work().limit(limits) == (None, None)


def test_our_maze_is_stepped_and_timed():
    case = env.case(env.maze("EmojiMaze scatter 100x100"), 8, devices=2)
    (result,) = measure.measure([case], repeats=2)
    assert result.case == "EmojiMaze scatter 100x100, 8, 2 devices"
    assert case.count == 8 * 8 * 15
    assert len(result.rates) == 2
    assert result.median > 0
    found = result.to_dict(CEILINGS)
    assert found["fraction"] == pytest.approx(result.median * max(case.work.operations, case.work.bytes) / 1e9)
    assert result.peak_memory
    assert result.temporary_memory


def test_a_peer_keeps_its_states_and_its_observations_count():
    """A peer that counts: the harness must carry its states, give every environment a key, and sum what it shows."""

    def step(key, state, action):
        return state + 1, jnp.stack([state, action]), jnp.float32(key.shape == (2,))

    peer = env.Stepped("counter", lambda key: jnp.int32(0), step, actions=1)
    program = env.case(peer, 4, devices=2).prepare()
    for first in (0, env.STEPS):
        shown, paid = 4 * sum(range(first, first + env.STEPS)), 4 * env.STEPS
        np.testing.assert_allclose(program.call().sum(), shown + paid)


def test_peak_memory_is_of_the_timed_calls():
    measure.forget_peak()
    before = measure.memory("VmHWM")
    block = np.ones(2**23)
    assert measure.memory("VmHWM") - before > 0.9 * block.nbytes
    del block
    measure.forget_peak()
    if Path("/proc/self/clear_refs").exists():
        assert measure.memory("VmHWM") - before < 2**25


def test_memory_is_in_bytes_where_there_is_no_proc(monkeypatch):
    monkeypatch.setattr(measure.resource, "getrusage", lambda who: SimpleNamespace(ru_maxrss=2**29))
    for system, unit in (("darwin", 1), ("linux", 1024)):
        monkeypatch.setattr(sys, "platform", system)
        assert measure.memory("VmHWM", "nobody") == 2**29 * unit


def test_ratios_compare_the_fastest_of_each_side():
    results = [
        measure.Result(name, "steps", measure.Work(), 0.0, [rate])
        for name, rate in (("ours, 1 device", 2.0), ("ours, 2 devices", 6.0), ("theirs, 1", 3.0), ("theirs, 2", 1.0))
    ]
    ratios = [measure.Ratio("ours / theirs", "ours", "theirs"), measure.Ratio("left out", "ours", "nobody")]
    (found,) = measure.compared(ratios, results)
    assert found == {"what": "ours / theirs", "ratio": 2.0, "of": ["ours, 2 devices", "theirs, 1"]}


@pytest.fixture
def saved(tmp_path):
    """Two files as `--json` writes them; the second measured one case again."""

    work = measure.Work(operations=2.0)

    def document(rate, names, copied):
        results = [
            measure.Result(name, "turns", work, 1.5, [rate, rate * 3, rate * 2], 3 * 2**20).to_dict(CEILINGS)
            for name in names
        ]
        machine = {"processor": "P", "cores": 2, "device": "cpu", "devices": 2, "python": "3", "jax": "0"}
        ratios = [{"what": "a / b", "ratio": rate / 1e6, "of": ["a", "b"]}]
        return {
            "schema": 1, "what": "env", "machine": machine, "commit": "abc",
            "ceilings": CEILINGS | {"copy_out_of_cache": copied}, "results": results, "ratios": ratios,
        }  # fmt: skip

    paths = [tmp_path / "one.json", tmp_path / "two.json"]
    for path, found in zip(paths, (document(1e6, "ab", 4e9), document(5e6, "b", 1e9)), strict=True):
        path.write_text(json.dumps(found), encoding="utf-8")
    return paths


def test_a_report_is_made_of_the_files(saved, tmp_path):
    page = tmp_path / "page.md"
    shutil.copy(Path(__file__).parent.parent / "docs" / "performance.md", page)
    words = re.sub(r"<!-- benchmarks: (?!end).*?end -->", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    text = ""
    for _ in range(2):  # writing again changes nothing
        assert command.main(["report", *map(str, saved), "--into", str(page)]) == 0
        text = page.read_text(encoding="utf-8")
        assert "| a | 2.00 M turns | 1.00 M | 3.00 M | 0.4 % of elementwise int32 | 1.5 | 3 MiB |" in text
        assert "| b | 10.0 M turns | 5.00 M | 15.0 M | 2.0 % of elementwise int32 | 1.5 | 3 MiB |" in text
        assert text.count("| b |") == 1
        assert "| a / b | 5.00 |" in text
        assert "| copy, out of cache, read + write | 1.00 GB/s to 4.00 GB/s |" in text
    assert re.sub(r"<!-- benchmarks: (?!end).*?end -->", "", text, flags=re.DOTALL) == words


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["speed"], "what"),
        (["env", "--repeats", "0"], "--repeats=0: use at least 1"),
        (["env", "--json", "nowhere/x.json"], "--json=nowhere/x.json: no such folder"),
        (["env", "--json", "."], "--json=.: a folder; name a file in it"),
        (["env", "--json", __file__], f"--json={__file__}: holds something else"),
        (["policy", "--peers"], "--peers: policy has no peers; use env or train"),
        (["env", "--only", "("], "--only=(: "),
        (["report"], "report: no files"),
        (["report", "missing.json"], "missing.json: No such file"),
        (["report", __file__], "not JSON"),
    ],
)
def test_wrong_input_is_one_line(arguments, message, capsys):
    assert command.main(arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_a_file_that_cannot_be_written_takes_no_table_with_it(monkeypatch, saved, tmp_path, capsys):
    measured = tables.read(saved[0])

    def vanish(*arguments):
        shutil.rmtree(tmp_path)
        return measured

    monkeypatch.setattr(command, "document", vanish)
    assert command.main(["env", "--json", str(tmp_path / "x.json")]) == 2
    out, error = capsys.readouterr()
    assert "1.00 M" in out
    assert error.count("\n") == 1
    assert str(tmp_path / "x.json") in error


def test_peers_that_are_not_installed_are_named(monkeypatch, capsys):
    from benchmarks import peers

    monkeypatch.setattr(peers, "_imports", lambda name: name == "gymnax")
    assert command.main(["env", "--peers"]) == 2
    assert "navix, xminigrid, jumanji, jaxued not installed; use `uv run --extra peers" in capsys.readouterr().err
    assert command.main(["train", "--peers"]) == 2
    assert "uv pip install torch" in capsys.readouterr().err


def test_a_report_needs_its_markers_and_one_machine(saved, tmp_path, capsys):
    page = tmp_path / "bare.md"
    page.write_text("no markers\n", encoding="utf-8")
    assert command.main(["report", str(saved[0]), "--into", str(page)]) == 2
    assert "expected one pair of markers" in capsys.readouterr().err
    assert page.read_text(encoding="utf-8") == "no markers\n"
    page.write_bytes(b"\xff")
    assert command.main(["report", str(saved[0]), "--into", str(page)]) == 2
    assert f"--into={page}: " in capsys.readouterr().err
    other = json.loads(saved[1].read_text(encoding="utf-8"))
    other["machine"]["cores"] = 64
    saved[1].write_text(json.dumps(other), encoding="utf-8")
    with pytest.raises(ConfigError, match="different machines"):
        tables.merged([tables.read(path) for path in saved])


@pytest.mark.parametrize(
    "change",
    [
        {"machine": {}}, {"machine": 5}, {"results": [{}]}, {"results": 5}, {"ratios": [{}]}, {"ceilings": 5},
        {"ceilings": dict.fromkeys(machine.CEILINGS, float("inf"))}, {"what": {}}, {"commit": 5}, "[" * 100_000,
    ],
    ids=lambda change: str(change)[:30],
)  # fmt: skip
def test_a_bad_document_is_named_in_one_line(saved, capsys, change):
    good = json.loads(saved[1].read_text(encoding="utf-8"))
    saved[1].write_text(change if isinstance(change, str) else json.dumps(good | change), encoding="utf-8")
    assert command.main(["report", *map(str, saved)]) == 2
    out, error = capsys.readouterr()
    assert out == ""
    assert error.count("\n") == 1
    assert str(saved[1]) in error


def test_a_full_disk_leaves_the_page_whole(saved, tmp_path, capsys):
    page = tmp_path / "page.md"
    shutil.copy(Path(__file__).parent.parent / "docs" / "performance.md", page)
    before = page.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) // 2, limits[1]))
        assert command.main(["report", *map(str, saved), "--into", str(page)]) == 2
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert f"{page}: cannot write it" in error
    assert page.read_bytes() == before


def test_numbers_have_three_digits():
    assert [tables.number(x) for x in (0.123, 45.6, 1234.0, 98_765.0, 123_456.0, 2.5e6)] == [
        "0.123", "45.6", "1.23 k", "98.8 k", "123 k", "2.50 M",
    ]  # fmt: skip
    assert [tables.number(x) for x in (4.2e12, 5.1e13, 2.5e15)] == ["4.20 T", "51.0 T", "2500 T"]  # as accelerators
