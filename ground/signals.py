"""SIGINT and SIGTERM: the first asks for an orderly end, the second ends the process at once."""

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

ECHO_SECONDS = 1.0
"""A signal so soon after the first one is no second request: launchers hand on what a cluster sends to everybody."""
_NUMBERS = (signal.SIGINT, signal.SIGTERM)


class Interrupted(BaseException):
    """A signal asked the command to stop; what was trained has been saved.

    As `KeyboardInterrupt`, no `Exception`: who reports the errors of a library must not take a signal for one.
    """

    def __init__(self, signum: int):
        super().__init__(f"stopped by {signal.Signals(signum).name}")
        self.exit_status = 128 + signum


@contextlib.contextmanager
def catch(*, at_once: bool = False) -> Iterator[Callable[[], int]]:
    """Catch the first SIGINT or SIGTERM; a second one ends the process, even while a compiled program runs.

    Args:
        at_once: raise `Interrupted` where the signal finds the program, instead of only taking note of it.

    Yields:
        A function that gives the signal caught, or 0.
    """
    if threading.current_thread() is not threading.main_thread():  # signals are somebody else's
        yield lambda: 0
        return
    caught, since = 0, 0.0

    def handle(signum, frame):
        nonlocal caught, since
        if caught:
            return
        caught, since = signum, time.monotonic()
        if at_once:
            raise Interrupted(signum)

    with _second_ends():
        before: dict[int, Any] = {number: signal.signal(number, handle) for number in _NUMBERS}
        try:
            yield lambda: caught
        finally:
            if caught:  # its echo must not meet the handlers of before
                time.sleep(max(0.0, since + ECHO_SECONDS / 5 - time.monotonic()))
            for number, handler in before.items():
                signal.signal(number, handler)


@contextlib.contextmanager
def _second_ends() -> Iterator[None]:
    """End the process at a second signal.

    Python calls a handler only when the main thread comes back from compiled code, which may take long; but it writes
    the signal's number to a file at once, and a thread waits for that.
    """
    told, tell = os.pipe()
    os.set_blocking(tell, False)
    before = signal.set_wakeup_fd(tell, warn_on_full_buffer=False)
    watcher = threading.Thread(target=_watch, args=(told,), daemon=True)
    watcher.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        os.close(tell)
        watcher.join()
        os.close(told)


def _watch(told: int) -> None:
    first: float | None = None
    while number := os.read(told, 1):
        if number[0] not in _NUMBERS:
            continue
        now = time.monotonic()
        if first is None:
            first = now
        elif now - first > ECHO_SECONDS:
            os._exit(128 + number[0])
