"""Stepping mazes under a random policy, and with `--peers` everybody else's mazes and rooms."""

from benchmarks import stepping
from benchmarks.measure import Options, Report, Result

SIZES = (1024, 64, 8192)
"""Mazes side by side; the first is what peers are compared at."""


def run(options: Options) -> Report:
    """Turns per second of both layouts, then the peers; ratios compare the better of one device and all."""
    report, best = Report(), {}
    for mazes in SIZES:
        for layout in ("scatter", "walk"):
            found = report.add([stepping.ours(layout, mazes, n) for n in stepping.device_counts(mazes)], options)
            if found and mazes == SIZES[0]:
                best[layout] = _fastest(found)
    if options.peers:
        from benchmarks import peers

        for peer in peers.environments():
            found = report.add([stepping.theirs(peer, SIZES[0], n) for n in stepping.device_counts(SIZES[0])], options)
            if found:
                for layout, ours in best.items():
                    report.compare(f"EmojiMaze {layout} / {peer.name}", ours, _fastest(found))
    return report


def _fastest(results: list[Result]) -> Result:
    return max(results, key=lambda result: result.median)
