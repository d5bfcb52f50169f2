"""What is recorded of the processes that work on a run, and what is said where it differs."""

import jax

from agents.runs import sessions

MADE = {
    "git": {"commit": "a", "dirty": True, "changes": "01"},
    "python": "3.11.7",
    "packages": {"jax": "0.10.1", "numpy": "2.4"},
    "settings": {"jax_enable_x64": False, "XLA_FLAGS": None},
    "device": {"kind": "cpu", "devices": 2},
}


def changed(part: str, **values) -> dict:
    return MADE | {part: MADE[part] | values}


def test_differences_are_named():
    assert sessions.differences(MADE, MADE) == []
    assert sessions.differences(MADE, changed("git", commit="b")) == ["commit a → b"]
    assert sessions.differences(MADE, changed("git", changes="02")) == ["changes 01 → 02"]
    assert sessions.differences(MADE, changed("packages", jax="0.10.2")) == ["jax 0.10.1 → 0.10.2"]
    assert sessions.differences(MADE, changed("settings", XLA_FLAGS="--x")) == ["XLA_FLAGS None → --x"]
    assert sessions.differences(MADE, changed("device", devices=4)) == ["devices 2 → 4"]
    assert sessions.differences(MADE, MADE | {"python": "3.12.1"}) == ["Python 3.11.7 → 3.12.1"]


def test_what_is_not_known_does_not_differ():
    assert sessions.differences(MADE, changed("git", commit=None, dirty=None, changes=None)) == []
    assert sessions.differences({"git": {"commit": "a", "dirty": True}}, MADE) == []
    assert sessions.differences({}, MADE) == []


def test_settings_that_change_bits_are_recorded(monkeypatch):
    before = sessions.provenance()
    monkeypatch.setenv("XLA_FLAGS", "--xla_cpu_enable_fast_math=true")
    with jax.default_matmul_precision("float32"), jax.default_prng_impl("rbg"), jax.threefry_partitionable(False):
        found = sessions.differences(before, sessions.provenance())
    assert [words.split()[0] for words in found] == [
        "jax_default_matmul_precision", "jax_default_prng_impl", "jax_threefry_partitionable", "XLA_FLAGS",
    ]  # fmt: skip
