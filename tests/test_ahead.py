"""What is read from compiled programs, and, by hand, that all of training compiles for accelerators and fits them.

By hand, without an accelerator and with the extra of the target:

    JAX_PLATFORMS=cpu uv run --extra cuda pytest -n 0 -m accelerator tests/test_ahead.py -k h100
    JAX_PLATFORMS=cpu uv run --extra tpu pytest -n 0 -m accelerator tests/test_ahead.py -k v5e

A program takes about a minute of a fast core; `-k "h100 and paper and rl"` chooses.
"""

import functools
import importlib.util
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from agents.learning import population
from agents.learning.learner import TrainState
from agents.runs import config as configs
from agents.runs import stages
from benchmarks import ahead
from tests import tiny

COMPILERS = {"h100": "jax_cuda13_plugin", "v5e": "libtpu"}

HLO = """HloModule jit_f

%fused (a: f32[8]) -> f32[8] {
  %a = f32[8]{0} parameter(0)
  ROOT %e = f32[8]{0} exponential(%a)
}

%inner (p: (s32[], f32[8])) -> (s32[], f32[8]) {
  %p = (s32[], f32[8]{0}) parameter(0)
  %i = s32[] get-tuple-element(%p), index=0
  %x = f32[8]{0} get-tuple-element(%p), index=1
  %f = f32[8]{0} fusion(%x), kind=kLoop, calls=%fused
  %g = f32[8]{0} custom-call(%f), custom_call_target="xla_ffi_python_gpu_callback"
  ROOT %t = (s32[], f32[8]{0}) tuple(%i, %g)
}

%less (p: (s32[], f32[8])) -> pred[] {
  %p = (s32[], f32[8]{0}) parameter(0)
  %i = s32[] get-tuple-element(%p), index=0
  %n = s32[] constant(5)
  ROOT %c = pred[] fusion(%i, %n), kind=kLoop, calls=%fused
}

%once (p: f32[8]) -> f32[8] {
  %p = f32[8]{0} parameter(0)
  ROOT %f = f32[8]{0} fusion(%p), kind=kLoop, calls=%fused
}

ENTRY %main (x: f32[8]) -> (s32[], /*index=1*/f32[8]) {
  %x = f32[8]{0} parameter(0)
  %called = f32[8]{0} call(%x), to_apply=%once
  %start = ((f32[8]{0}), f32[8]{0}) fusion-start(%called), kind=kLoop, calls=%fused
  %done = f32[8]{0} fusion-done(%start)
  %b = f32[8]{0} conditional(%x, %called, %done), branch_computations={%once, %once}
  %t = (s32[], f32[8]{0}) tuple(%x, %b)
  ROOT %w = (s32[], /*index=1*/f32[8]{0}) while(%t), condition=%less, body=%inner, \
metadata={op_name="jit(f)/while"}, backend_config={"known_trip_count":{"n":"5"}}
}
"""


def test_kernels_are_counted_as_often_as_they_are_launched():
    program = ahead.Program(HLO)
    assert program.loops == [ahead.Loop("jit(f)/while", 5, 2)]
    assert program.kernels == 1 + 1 + 1 + 5 * 2  # called, started, one branch, the loop


def test_a_loop_of_unknown_length_counts_once_with_its_condition():
    program = ahead.Program(HLO.replace('"known_trip_count":{"n":"5"}', ""))
    assert program.kernels == 1 + 1 + 1 + 2 + 1


@pytest.mark.parametrize(
    ("condition", "turns"),
    [
        ("%n = s32[]{:T(128)} constant(9)\n  ROOT %c = pred[]{:T(512)} compare(%i, %n), direction=LT", 9),
        ("%n = s32[] constant(9)\n  ROOT %c = pred[] compare(%i, %n), direction=GT", 1),
        ("%n = f32[] constant(9)\n  ROOT %c = pred[] compare(%i, %n), direction=LT", 1),
        ("%n = s32[] constant(9)\n  %c = pred[] compare(%i, %n), direction=LT\n  ROOT %d = pred[] and(%c, %o)", 1),
    ],
)
def test_where_the_compiler_does_not_say_a_loop_that_counts_tells_by_its_end(condition, turns):
    counted = "%c = pred[] fusion(%i, %n), kind=kLoop, calls=%fused"
    fused = "%n = s32[] constant(5)\n  ROOT " + counted
    program = ahead.Program(HLO.replace('"known_trip_count":{"n":"5"}', "").replace(fused, condition))
    assert program.loops[0].turns == turns
    assert program.kernels == 1 + 1 + 1 + (
        9 * 2 if turns == 9 else 2 + condition.count("compare") + ("and(" in condition)
    )


def test_the_compilers_own_text_is_understood():
    def function(x):
        def inner(x, _):
            return jnp.sin(x) @ x, x.sum()

        return jax.lax.scan(lambda x, _: jax.lax.scan(inner, x, length=7), x, length=11)

    program = ahead.Program(jax.jit(function).lower(jnp.ones((64, 64))).compile().as_text())
    assert {loop.turns for loop in program.loops} == {7, 11}
    inner, outer = sorted(program.loops, key=lambda loop: loop.turns)
    assert outer.kernels >= 7 * inner.kernels > 0
    assert program.kernels >= 11 * outer.kernels


@pytest.mark.parametrize(
    ("count", "at_once", "took", "limit", "expected"),
    [
        (64, 64, 300, 100, 16),  # 21 would fit, and 16 divide
        (64, 64, 101, 100, 32),
        (8, 8, 10_000, 100, 1),
        (6, 6, 100, 99, 3),
        (64, 64, None, 100, 32),  # the compiler has given up without a count
        (7, 7, None, None, 1),
        (2, 2, 300, 100, 1),
    ],
)
def test_fewer_members_are_tried_where_they_do_not_fit(count, at_once, took, limit, expected):
    assert population.fewer(count, at_once, took, limit) == expected


class TestChoosing:
    """`--population.at-once 0` beside an accelerator, whose part a CPU plays."""

    COUNT, SIZE = 8, 64

    def chunk(self, monkeypatch, at_once=0, large=0, passes=(SIZE,)):
        """A chunk of updates that sort products in blocks of so many rows, the next of `passes` for halved portions."""
        monkeypatch.setattr(population, "on_cpu", lambda mesh: False)

        @functools.cache
        def update(rows):
            def function(state, config, params, shards):
                def summed(block):
                    return jnp.sort(jnp.outer(state.parameters, block), axis=0).sum(axis=0)

                moved = jax.lax.map(summed, state.parameters.reshape(-1, rows)).reshape(-1) * config
                return state.replace(parameters=moved), {"loss": moved.sum(), "gradient_norm": moved.max()}

            return function

        def asked(at_once, portions):
            self.asked.append((at_once, portions))
            return update(passes[min(portions.bit_length(), len(passes)) - 1])

        self.asked = []
        return population.Chunk(asked, tiny.mesh(self.COUNT, 1, 1), 1, at_once, large)

    def arguments(self):
        parameters = jnp.arange(1.0, 1 + self.COUNT * self.SIZE).reshape(self.COUNT, -1) / self.SIZE
        key, update, steps = (jnp.full(self.COUNT, index, jnp.int32) for index in range(3))
        return TrainState(parameters, None, key, update, steps), jnp.full(self.COUNT, 1e-3), jnp.zeros(self.COUNT)

    def run(self, chunk, limit):
        chunk.compile(*self.arguments(), limit=limit)
        state, _ = chunk(*self.arguments())
        return np.asarray(state.parameters)

    def test_as_many_as_fit_are_computed_at_once_with_the_same_result(self, monkeypatch):
        whole, told = self.chunk(monkeypatch), {}
        expected = self.run(whole, 2**40)
        assert whole.choice.startswith("8 of 8 members at a time")
        everything = population.footprint(whole.program)
        assert everything > self.COUNT * self.SIZE**2 * 4
        for limit in (everything - 1, everything // 3, 1):
            chunk = self.chunk(monkeypatch)
            np.testing.assert_allclose(self.run(chunk, limit), expected, rtol=1e-6)
            told[limit] = chunk.at_once
            assert chunk.at_once == 1 or population.footprint(chunk.program) <= limit
            assert (chunk.at_once, 1) in self.asked
        assert list(told.values()) == sorted(told.values(), reverse=True)
        assert told[everything - 1] == 4
        assert told[1] == 1

    def test_where_not_one_member_fits_its_passes_are_halved(self, monkeypatch):
        passes, took = (64, 32, 16, 8), []
        expected = self.run(self.chunk(monkeypatch), 2**40)
        for rows in passes:
            chunk = self.chunk(monkeypatch, at_once=1, passes=(rows,))
            self.run(chunk, None)
            took.append(population.footprint(chunk.program))
        assert took == sorted(took, reverse=True)
        for limit, portions in ((took[0], 1), (took[0] - 1, 2), (took[2], 4), (took[3] - 1, 8), (1, 8)):
            chunk = self.chunk(monkeypatch, passes=passes)
            np.testing.assert_allclose(self.run(chunk, limit), expected, rtol=1e-6)
            assert (chunk.at_once, chunk.portions) == (1, portions)
            assert population.footprint(chunk.program) == took[portions.bit_length() - 1]

    def test_what_is_known_to_be_large_saves_attempts(self, monkeypatch):
        chunk, tried = self.chunk(monkeypatch, large=2**20), []
        make = chunk._make
        chunk._make = lambda: tried.append(chunk.at_once) or make()
        self.run(chunk, 9 * 2**20)
        assert tried == [4]
        assert chunk.choice.startswith("4 of 8 members at a time")

    def test_a_number_that_is_given_is_kept(self, monkeypatch):
        chunk = self.chunk(monkeypatch, at_once=4)
        self.run(chunk, 1)
        assert (chunk.at_once, chunk.choice) == (4, "")

    @pytest.mark.parametrize(("most", "portions"), [(2, 1), (1, 1), (1, 4)])
    def test_a_compiler_that_gives_up_is_asked_for_less(self, monkeypatch, most, portions):
        passes = (64, 32, 16)
        chunk = self.chunk(monkeypatch, passes=passes)
        expected, make = self.run(self.chunk(monkeypatch), None), chunk._make
        chunk.program = Full()
        chunk._make = lambda: make() if 0 < chunk.at_once <= most and chunk.portions >= portions else Full()
        np.testing.assert_allclose(self.run(chunk, None), expected, rtol=1e-6)
        assert chunk.choice.startswith(f"{most} of 8 members at a time")
        assert chunk.portions == portions

    def test_a_compiler_that_gives_up_on_the_least_says_so(self, monkeypatch):
        chunk, full = self.chunk(monkeypatch), Full()
        chunk.program, chunk._make = full, lambda: full
        with pytest.raises(jax.errors.JaxRuntimeError, match="too large"):
            self.run(chunk, None)


class Full:
    """A program that fits nowhere."""

    def lower(self, *arguments):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: too large")


@pytest.mark.parametrize(
    ("members", "length", "expected"), [(64, 106, 32), (8, 106, 256), (1, 59, 512), (64, 350, 8), (4096, 350, 8)]
)
def test_a_pass_of_all_members_is_bounded(members, length, expected):
    assert stages.side_by_side(members, length) == expected


def test_fewer_members_at_once_read_more_episodes_in_a_pass(monkeypatch):
    monkeypatch.setattr(population, "on_cpu", lambda mesh: False)
    mesh = population.mesh(64, 1024, jax.devices()[:1])

    def stage(**how):
        config = configs.start("paper", "EmojiLabyrinth-v0")
        return stages.make_stage(
            configs.changed(config, {f"population.{key}": x for key, x in how.items()}), "rl", mesh
        )

    chosen = stage()
    assert chosen.microbatch == 8
    chosen.program.at_once = 8  # as where no more fit
    assert chosen.microbatch == stage(at_once=8).microbatch == 64
    assert stage(at_once=100).microbatch == 8
    assert stage(at_once=8, microbatch=4).microbatch == 4
    few = stage(at_once=1)
    for portions, expected in ((1, 512), (2, 256), (64, 8), (128, 8)):  # as where not one fits
        few.program.portions = portions
        assert few.microbatch == expected
    assert chosen.update(8, 1) == stage(at_once=8).update(8, 1) != chosen.update(0, 1)
    assert chosen.update(0, 1) == chosen.update(64, 1) == chosen.update(1, 64)


def test_a_report_goes_between_its_markers(tmp_path):
    figures = ahead.Figures("EmojiMaze-v0 smoke rl ppo", "2 of 2", 32, 2**20, 2**30, 3344, 90, 0, 0, 0, 12.4)
    document = {"target": "H100", "jax": "0", "results": [vars(figures)]}
    written, page = tmp_path / "h100.json", tmp_path / "page.md"
    written.write_text(json.dumps(document), encoding="utf-8")
    page.write_text("before\n<!-- benchmarks: ahead -->\n<!-- benchmarks: end -->\nafter\n", encoding="utf-8")
    assert ahead.main(["report", str(written), "--into", str(page)]) == 0
    assert "| EmojiMaze-v0 smoke rl ppo, H100 | 2 of 2 | 32 | 0.00 GiB | 1.00 GiB | 3,344 | 90 |  | 12 |" in (
        page.read_text(encoding="utf-8")
    )


def test_a_file_of_figures_is_gone_on_with(tmp_path, capsys, monkeypatch):
    file, compiled = tmp_path / "h100.json", []

    def compile_one(case, *how):
        compiled.append(case)
        return ahead.Figures(case, "2 of 2", 32, 2**20, 2**30, 3344, 90, 0, 0, 0, 12.4), None

    monkeypatch.setattr(ahead, "compiled", compile_one)
    monkeypatch.setattr(ahead.Target, "mesh", lambda self: None)
    names = [f"EmojiMaze-v0 smoke {name}" for name in ("rl grpo", "pretrain", "rl ppo")]
    for only in (names[0], "EmojiMaze-v0 smoke"):
        assert ahead.main(["h100", "--only", only, "--json", str(file)]) == 0
    assert compiled == names
    assert [one["case"] for one in json.loads(file.read_text())["results"]] == names
    assert capsys.readouterr().out.count(f"| {names[0]}, H100") == 2
    before = file.read_text()
    assert ahead.main(["v5e", "--only", names[1], "--json", str(file)]) == 2
    assert "holds figures of H100, 80 GB, JAX" in capsys.readouterr().err
    assert file.read_text() == before


@pytest.mark.parametrize("results", [[{}], 5, [5], [{"case": "x"}]])
def test_a_bad_document_is_named_in_one_line(tmp_path, capsys, results):
    (file := tmp_path / "h100.json").write_text(json.dumps({"target": "H100", "results": results}))
    assert ahead.main(["report", str(file)]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert f"{file}: lacks something" in error


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["h200"], "h200: unknown; choose one of h100, v5e"),
        (["h100", "--only"], "--only"),
        (["h100", "--only", "("], "--only=(: "),
        (["h100", "--only", "EmojiMaze-v9"], "--only=EmojiMaze-v9: no program"),
        (["h100", "--json", "nowhere/h100.json"], "--json=nowhere/h100.json: no such folder"),
        (["h100", "--json", __file__], f"--json={__file__}: holds something else"),
        (["report"], "no files"),
        (["report", "nowhere.json"], "nowhere.json: No such file"),
        (["report", __file__], f"{__file__}: not JSON"),
    ],
)
def test_wrong_arguments_end_in_one_line(arguments, words, capsys):
    assert ahead.main(arguments) == 2
    error = capsys.readouterr().err.strip()
    assert words in error
    assert len(error.splitlines()) == 1


@pytest.mark.accelerator
@pytest.mark.parametrize("case", [case for case, *_ in ahead.cases()])
@pytest.mark.parametrize("target", ahead.TARGETS)
def test_training_compiles_ahead_of_time_and_fits(target, case):
    if importlib.util.find_spec(COMPILERS[target]) is None:
        pytest.skip(f"no compiler for {target}; see the top of this file")
    _, config, name = next(entry for entry in ahead.cases() if entry[0] == case)
    device = ahead.TARGETS[target]
    figures, stage = ahead.compiled(case, config, name, device.mesh(), device.memory)
    assert population.footprint(stage.program.program) <= device.memory
    assert figures.doubles == figures.calls_home == 0
    assert figures.kernels > 0
