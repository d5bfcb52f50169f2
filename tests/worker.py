"""One process of a pair in `test_processes`: exchanges with the other, trains over both, leaves what it found.

python -m tests.worker OUT                 numpy arrays of a pretraining
python -m tests.worker train ARGUMENTS     train.py, patient with a machine that stops processes for a while
"""

import os
import sys

from ground import processes

processes.HEARTBEAT_SECONDS = int(os.environ.get("HEARTBEAT_SECONDS", "900"))
processes.CONNECT_SECONDS = int(os.environ.get("CONNECT_SECONDS", "600"))


def main(out: str) -> None:
    """Meet, hand on, pretrain; process 0 writes."""
    import jax
    import numpy as np

    from agents.runs import stages
    from tests import tiny

    assert processes.count() == jax.process_count() == 2
    mine = jax.process_index()
    assert processes.meet(7 + mine, mine).tolist() == [[7, 0], [8, 1]]
    sent = {"a": {"b": np.random.default_rng(0).normal(size=500_001).astype(np.float16)}, "c": ["text", 1.5, None]}
    got = processes.by_first(lambda: [sent, sent["a"]["b"][:0]] if mine == 0 else 1 / 0)
    assert (got[0]["a"]["b"].dtype, got[0]["c"], got[1].shape) == (np.float16, sent["c"], (0,))
    assert got[0]["a"]["b"].tobytes() == sent["a"]["b"].tobytes()
    assert processes.by_first(lambda: None) is None
    assert processes.same("a")
    assert not processes.same(f"{mine}")

    for case, config in tiny.JOBS.items():
        assert stages.make_stage(config, "rl").program.takes_part == (case != "idle" or mine == 0)
    state, metrics = tiny.train_stage(tiny.JOBS["split"], "pretrain")
    leaves = jax.tree_util.tree_flatten_with_path(state)[0]
    found = {jax.tree_util.keystr(path): leaf for path, leaf in leaves} | metrics
    assert processes.meet().shape == (2, 2)
    if processes.first():
        np.savez(out, **found)


if __name__ == "__main__":
    if sys.argv[1] == "train":
        import runpy

        sys.argv = sys.argv[1:]
        runpy.run_path("train.py", run_name="__main__")
    else:
        from ground import environment

        environment.start("worker", together=True)
        main(sys.argv[1])
