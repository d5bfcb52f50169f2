"""A process bound to cores, with a member on each: it does one update of PPO for every line on standard input.

uv run -m benchmarks.worker CORE...
"""

import os
import sys

if __name__ == "__main__":
    os.sched_setaffinity(0, map(int, sys.argv[1:]))
    from ground import environment

    environment.start("benchmarks.worker", keep_programs=False)

    import jax

    from benchmarks.cases import train

    program = train.case(train.members(train.LAPTOP, len(jax.devices())), "rl").prepare()
    print("ready", flush=True)
    for _ in sys.stdin:
        jax.block_until_ready(program.call())
        print("done", flush=True)
