"""Signals: the first is noted or raised, its echo ignored, a second one ends the process."""

import contextlib
import gc
import os
import signal
import subprocess
import sys
import time

import numpy as np
import orbax.checkpoint as ocp
import pytest

import benchmarks.__main__ as benchmarks
from benchmarks import ahead
from ground import checkpoints, signals
from tests.jobs import ROOT


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_is_noted_and_handlers_are_put_back(number):
    before = [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)]
    with signals.catch() as caught:
        assert caught() == 0
        os.kill(os.getpid(), number)
        os.kill(os.getpid(), number)
        assert caught() == number
    assert [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)] == before


def test_it_is_raised_where_asked_and_inner_ones_come_first():
    def work():
        with signals.catch(at_once=True):
            with signals.catch() as caught:
                os.kill(os.getpid(), signal.SIGINT)
            assert caught() == signal.SIGINT
            os.kill(os.getpid(), signal.SIGTERM)
            raise AssertionError("not reached")

    with pytest.raises(signals.Interrupted, match="stopped by SIGTERM") as error:
        work()
    assert error.value.exit_status == 143


@contextlib.contextmanager
def struck_where_python_drops_exceptions():
    """A signal comes while the garbage is collected."""
    due = [True]

    def collecting(phase, info):
        if due:
            due.clear()
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.01)

    gc.callbacks.append(collecting)
    try:
        gc.collect()
        yield
    finally:
        gc.callbacks.remove(collecting)


def test_it_is_raised_again_where_python_drops_it(capsys):
    def work():
        with signals.catch(at_once=True) as caught, struck_where_python_drops_exceptions():
            assert caught() == signal.SIGINT
            time.sleep(30)
            raise AssertionError("not reached")

    with pytest.raises(signals.Interrupted, match="SIGINT"):
        work()
    assert capsys.readouterr().err == ""


def test_at_the_end_it_is_raised_whatever_became_of_it():
    with (
        pytest.raises(signals.Interrupted, match="SIGINT"),
        signals.catch(at_once=True),
        struck_where_python_drops_exceptions(),
    ):
        pass


def test_what_is_sent_again_is_no_second_signal(monkeypatch):
    monkeypatch.setattr(signals, "ECHO_SECONDS", 0.0)
    ended = []
    monkeypatch.setattr(os, "_exit", ended.append)
    with (
        pytest.raises(signals.Interrupted),
        signals.catch(at_once=True),
        struck_where_python_drops_exceptions(),
    ):
        time.sleep(30)
    assert not ended


@pytest.mark.parametrize(("command", "work"), [(benchmarks, "document"), (ahead, "compiled")])
def test_benchmarks_end_in_one_line(capsys, monkeypatch, command, work):
    monkeypatch.setattr(command, work, lambda *_: os.kill(os.getpid(), signal.SIGINT))
    monkeypatch.setattr(ahead.Target, "mesh", lambda self: None)
    assert command.main(["env" if command is benchmarks else "h100"]) == 130
    assert capsys.readouterr().err.count("\n") == 1


EARLY = """
import os, signal
signal.signal(signal.SIGINT, signal.default_int_handler)  # as at a terminal; a background job of a shell ignores it
from ground import environment, signals
environment._import_jax = lambda: None
environment.prepare("command")
with signals.catch():
    pass
os.kill(os.getpid(), signal.SIGINT)
"""


def test_before_it_is_caught_a_signal_ends_a_command_without_a_traceback():
    ended = subprocess.run([sys.executable, "-c", EARLY], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stderr) == (-signal.SIGINT, "")


def test_a_signal_while_a_checkpoint_is_read_is_no_damage(tmp_path, monkeypatch):
    checkpoints.save(tmp_path / "c", {"a": np.ones(3)})
    restore = ocp.Checkpointer.restore

    def struck(*arguments, **options):
        os.kill(os.getpid(), signal.SIGTERM)
        return restore(*arguments, **options)

    monkeypatch.setattr(ocp.Checkpointer, "restore", struck)
    with pytest.raises(signals.Interrupted, match="SIGTERM"), signals.catch(at_once=True):
        checkpoints.load(tmp_path / "c")


PROGRAM = """
import hashlib, os
from ground import signals
with signals.catch() as caught:
    print("ready", flush=True)
    hashlib.pbkdf2_hmac("sha256", b"", b"", 2**31 - 1)  # compiled code that never comes back
"""


def test_a_second_signal_ends_a_process_that_is_in_compiled_code():
    process = subprocess.Popen([sys.executable, "-c", PROGRAM], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    process.stdout.readline()
    process.terminate()
    time.sleep(signals.ECHO_SECONDS / 2)
    process.terminate()
    time.sleep(signals.ECHO_SECONDS)
    assert process.poll() is None, "the first signal, or its echo, ended it"
    process.terminate()
    assert process.wait(timeout=10) == 143
    process.stdout.close()
