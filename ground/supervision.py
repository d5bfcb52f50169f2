"""One line for a process of a job that ends badly.

JAX's runtime ends a process that cannot join the others, or has lost one, by a log of its own and SIGABRT, which
Python cannot catch. So the process that the user or the cluster started forks before JAX starts: the child works, the
parent waits, hands signals down, reads the child's standard error and turns the runtime's log into one line.
"""

import contextlib
import os
import re
import signal
import sys
import threading

LOST = 3
"""Exit status of a process that lost another one."""
_JOINED, _GONE = "\0joined", "\0gone"
_NOISE = re.compile(r"[IWE]\d{4} [\d:.]+ +\d+ (coordination|preemption|distributed|client)\w*\.")
_DETAIL = re.compile(r"Additional GRPC error|:UNKNOWN:|RPC: /|/job:|The tasks? |\d*\s*$")
_FATAL = re.compile(r"F\d{4} [\d:.]+ +\d+ (client\.h|\w*coordination\w*\.cc|\w*distributed\w*\.cc)")


def supervise(who: str, unreachable: str) -> None:
    """Fork; returns in the child alone. This process ends when the child does, with its exit status.

    Args:
        who: begins every line, such as `train.py: process 1`.
        unreachable: what to say where the child could not join the others; the exit status is then 2.
    """
    alive, mine = os.pipe()
    errors, theirs = os.pipe()
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child == 0:
        os.close(mine)
        os.close(errors)
        os.dup2(theirs, 2)
        os.close(theirs)
        _keep_stdout()
        threading.Thread(target=_end_with_parent, args=(alive,), daemon=True).start()
        return
    os.close(alive)
    os.close(theirs)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, _: _hand_down(child, number))
    os._exit(_watch(child, errors, who, unreachable))


def joined() -> None:
    """Tell the parent that the other processes were found."""
    print(_JOINED, file=sys.stderr, flush=True)


def lost() -> None:
    """End this process, since another one is gone; the parent says so."""
    with contextlib.suppress(OSError):
        print(_GONE, file=sys.stderr, flush=True)
    os._exit(LOST)


def _keep_stdout() -> None:
    """Leave standard output to Python: libraries that print there by themselves (Gloo does) print into nothing."""
    encoding, errors = sys.stdout.encoding, sys.stdout.errors
    kept = os.dup(1)
    nothing = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, 1)
    os.close(nothing)
    sys.stdout = open(kept, "w", buffering=1, encoding=encoding, errors=errors)  # noqa: SIM115 (stays open)


def _end_with_parent(alive: int) -> None:
    os.read(alive, 1)  # returns when the parent is gone, which nobody could hand signals down from
    os._exit(LOST)


def _hand_down(child: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(child, number)


def _watch(child: int, errors: int, who: str, unreachable: str) -> int:
    has_joined = fatal = gone = noise = False
    with open(errors, errors="replace") as lines:
        for line in lines:
            noise = bool(_NOISE.match(line) or (noise and _DETAIL.match(line)))
            fatal = fatal or bool(_FATAL.match(line))
            if line.startswith(_JOINED):
                has_joined = True
            elif line.startswith(_GONE):
                gone = True
            elif not (noise or fatal or gone):
                print(line, end="", file=sys.stderr, flush=True)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    aborted = fatal and status == -signal.SIGABRT
    if aborted and not has_joined:
        message, status = unreachable, 2
    elif aborted or gone:
        message, status = "another process of this job is gone; go on with --resume", LOST
    elif status < 0 and status not in (-signal.SIGINT, -signal.SIGTERM):
        message, status = f"ended by {signal.Signals(-status).name}; go on with --resume", 128 - status
    else:
        return status if status >= 0 else 128 - status
    print(f"{who}: {message}", file=sys.stderr, flush=True)
    return status
