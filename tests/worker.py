"""One process of a pair in `test_processes`: trains stages over both processes and leaves what it found.

python -m tests.worker OUT                 numpy arrays of every case
python -m tests.worker train ARGUMENTS     train.py, patient with a machine that stops processes for a while
"""

import os
import sys

from agents import processes

processes.HEARTBEAT_SECONDS = int(os.environ.get("HEARTBEAT_SECONDS", "900"))
processes.CONNECT_SECONDS = int(os.environ.get("CONNECT_SECONDS", "600"))

CASES = {"split": ("rl", 1), "members": ("rl", 2), "idle": ("rl", 3), "pretrain": ("pretrain", 1)}
"""Stage and number of members. Three members do not divide by two processes, so process 1 takes no part."""


def main(out: str) -> None:
    """Run every case; process 0 writes them."""
    import jax
    import numpy as np

    from agents import learner, stages
    from tests import tiny

    assert processes.count() == jax.process_count() == 2
    mine = jax.process_index()
    assert processes.meet(7 + mine, mine).tolist() == [[7, 0], [8, 1]]
    sent = np.random.default_rng(0).bytes(3_000_001)
    assert processes.from_first(sent if processes.first() else None) == sent
    assert processes.from_first(b"") == b""
    assert processes.same("a")
    assert not processes.same(f"{mine}")

    found = {}
    for case, (name, members) in CASES.items():
        config = tiny.changed(population={"seeds": members}, rl={"episodes": 18} if case == "idle" else {})
        mesh = learner.population_mesh(members, 9, jax.devices()[:2]) if case == "idle" else None
        stage = stages.make_stage(config, name, mesh)
        assert stage.program.takes_part == (case != "idle" or mine == 0)
        if not stage.program.takes_part:
            continue
        state, metrics = tiny.train_stage(config, name, mesh=mesh)
        for path, leaf in jax.tree_util.tree_flatten_with_path(state)[0]:
            found[f"{case}{jax.tree_util.keystr(path)}"] = leaf
        found |= {f"{case} {name}": values for name, values in metrics.items()}
    assert processes.meet().shape == (2, 2)
    if processes.first():
        np.savez(out, **found)


if __name__ == "__main__":
    if sys.argv[1] == "train":
        import runpy

        sys.argv = sys.argv[1:]
        runpy.run_path("train.py", run_name="__main__")
    else:
        from agents import devices

        devices.start("worker")
        main(sys.argv[1])
