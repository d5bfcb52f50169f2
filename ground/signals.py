"""SIGINT and SIGTERM: the first asks for an orderly end, the second ends the process at once."""

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

ECHO_SECONDS = 1.0
"""A signal so soon after the first one is no second request: launchers hand on what a cluster sends to everybody."""
AGAIN_SECONDS = 0.05
"""After which a signal is sent again whose exception Python dropped."""
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
        at_once: raise `Interrupted` where the signal finds the program, instead of only taking note of it. Where Python
            drops exceptions, as in finalizers and in callbacks of its garbage collector, it is raised soon after that.

    Yields:
        A function that gives the signal caught, or 0.

    Raises:
        Interrupted: as `at_once` says, at the end at the latest.
    """
    if threading.current_thread() is not threading.main_thread():  # signals are somebody else's
        yield lambda: 0
        return
    caught, since, dropped, report = 0, 0.0, False, sys.unraisablehook

    def handle(signum, frame):
        nonlocal caught, since, dropped
        if caught and not dropped:
            return
        caught, since, dropped = caught or signum, time.monotonic(), False
        if at_once:
            raise Interrupted(caught)

    def drop(unraisable):
        nonlocal dropped
        if not isinstance(unraisable.exc_value, Interrupted):
            return report(unraisable)
        dropped = True
        timer = threading.Timer(AGAIN_SECONDS, send_again)
        timer.daemon = True
        timer.start()

    def send_again():
        if dropped:
            own.append(caught)
            os.kill(os.getpid(), caught)

    with _second_ends() as own:
        sys.unraisablehook = drop
        before: dict[int, Any] = {number: signal.signal(number, handle) for number in _NUMBERS}
        try:
            yield lambda: caught
            if at_once and caught:
                raise Interrupted(caught)
        finally:
            dropped, sys.unraisablehook = False, report
            if caught:  # its echo must not meet the handlers of before
                time.sleep(max(0.0, since + ECHO_SECONDS / 5 - time.monotonic()))
            for number, handler in before.items():
                signal.signal(number, handler)


@contextlib.contextmanager
def _second_ends() -> Iterator[list[int]]:
    """End the process at a second signal.

    Python calls a handler only when the main thread comes back from compiled code, which may take long; but it writes
    the signal's number to a file at once, and a thread waits for that.

    Yields:
        For the signals that this process sends itself, which are no second ones.
    """
    own: list[int] = []
    told, tell = os.pipe()
    os.set_blocking(tell, False)
    before = signal.set_wakeup_fd(tell, warn_on_full_buffer=False)
    watcher = threading.Thread(target=_watch, args=(told, own), daemon=True)
    watcher.start()
    try:
        yield own
    finally:
        signal.set_wakeup_fd(before)
        os.close(tell)
        watcher.join()
        os.close(told)


def _watch(told: int, own: list[int]) -> None:
    first: float | None = None
    while number := os.read(told, 1):
        if number[0] not in _NUMBERS:
            continue
        if own:
            own.pop()
            continue
        now = time.monotonic()
        if first is None:
            first = now
        elif now - first > ECHO_SECONDS:
            os._exit(128 + number[0])
