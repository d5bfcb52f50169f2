"""The exact optimum beside an oracle in plain NumPy: mazes, shortest ways, personas and arrival times of its own.

The setting is that of the project's notes on weak RL: 40 random 6×6 mazes with loops, 24 turns, a start 5 to 12 moves
from the goal. Larry steps nearer on either axis, into walls too, and slips in 30 %; Bob remembers his heading, keeps
his right hand on the wall and slips in 10 %; Alice takes a soft-max of the distances around her.

An episode's reward depends on when it arrives alone, so a persona is its distribution of arrival times, found forwards
in time: Z_i = Σ_t P_i(t) e^{λ r(t)}, and everything else is arithmetic. `tabular` goes backwards through states.
The digits that the notes print are not asked for: neither their random stream, nor how their mazes are carved, nor
where Bob looks at first, what a slip may choose and how soft Alice's soft-max is have been written down.
"""

import numpy as np
import pytest

from tests import tabular

SIZE, TURNS, MAZES, LOOPS = 6, 24, 40, 0.14
CELLS = SIZE * SIZE
STEPS = np.array([[-1, 0], [0, 1], [1, 0], [0, -1]])
PRIOR = np.full(3, 1 / 3)
SCALES = (-2.0, 0.1, 1.0, 3.0, 8.0, 20.0, 40.0)


def carve(generator):
    """Ways out of each cell, bool[cells, 4]: a tree by a random walk that backtracks, and loops."""
    opened, stack, seen = np.zeros((CELLS, 4), bool), [(0, 0)], {(0, 0)}

    def join(cell, direction):
        other = tuple((np.array(cell) + STEPS[direction]).tolist())
        opened[cell[0] * SIZE + cell[1], direction] = opened[other[0] * SIZE + other[1], (direction + 2) % 4] = True
        return other

    def inside(cell):
        return [(d, (cell[0] + r, cell[1] + c)) for d, (r, c) in enumerate(STEPS.tolist())
                if 0 <= cell[0] + r < SIZE and 0 <= cell[1] + c < SIZE]  # fmt: skip

    while stack:
        fresh = [d for d, other in inside(stack[-1]) if other not in seen]
        if fresh:
            stack.append(join(stack[-1], fresh[generator.integers(len(fresh))]))
            seen.add(stack[-1])
        else:
            stack.pop()
    for cell in np.ndindex(SIZE, SIZE):
        for direction, _ in inside(cell):
            if direction in (1, 2) and not opened[cell[0] * SIZE + cell[1], direction] and generator.random() < LOOPS:
                join(cell, direction)
    return opened


def ways(opened, goal):
    """Moves to the goal from each cell, by breadth-first search, int[cells]; and where each move leads."""
    following = np.where(opened, np.arange(CELLS)[:, None] + STEPS @ [SIZE, 1], np.arange(CELLS)[:, None])
    distances, front = np.full(CELLS, -1), [goal]
    distances[goal] = 0
    for cell in front:
        for other in following[cell]:
            if distances[other] < 0:
                distances[other] = distances[cell] + 1
                front.append(int(other))
    return distances, following


def policies(opened, goal, distances, following):
    """Probabilities float64[3, cells, heading, 4] of Larry, Bob and Alice."""
    chances = np.zeros((3, CELLS, 4, 4))
    for cell in range(CELLS):
        gap = np.subtract(divmod(goal, SIZE), divmod(cell, SIZE))
        nearer = STEPS @ gap > 0
        larry = nearer / nearer.sum() if nearer.any() else np.full(4, 0.25)
        soft = opened[cell] * np.exp(-2.0 * distances[following[cell]])
        for heading in range(4):
            hand = next(d for d in (heading + np.array([1, 0, -1, 2])) % 4 if opened[cell, d])
            chances[:, cell, heading] = [
                0.7 * larry + 0.3 / 4,
                0.9 * np.eye(4)[hand] + 0.1 * opened[cell] / opened[cell].sum(),
                soft / soft.sum(),
            ]
    return chances


@pytest.fixture(scope="module")
def mazes():
    """Ways, goal, start and the personas' probabilities of each maze."""
    generator, drawn = np.random.default_rng(1), []
    while len(drawn) < MAZES:
        opened = carve(generator)
        goal = int(generator.integers(CELLS))
        distances, following = ways(opened, goal)
        starts = np.flatnonzero((distances >= 5) & (distances <= 12))
        if len(starts):
            chances = policies(opened, goal, distances, following)
            drawn.append((following, goal, int(generator.choice(starts)), chances))
    return drawn


def arrivals(following, goal, start, chances):
    """Probabilities float64[3, T + 1] of coming to the goal at turn 1 … T, and of not coming at all."""
    times = np.zeros((3, TURNS + 1))
    for persona in range(3):
        there = np.zeros((CELLS, 4))
        there[start, 0] = 1
        for turn in range(TURNS):
            moved = there[..., None] * chances[persona]
            there = np.zeros((CELLS, 4))
            for heading in range(4):
                for action in range(4):
                    # A bump leaves the heading as it was.
                    bumped = following[:, action] == np.arange(CELLS)
                    np.add.at(
                        there, (following[:, action], np.where(bumped, heading, action)), moved[:, heading, action]
                    )
            times[persona, turn] = there[goal].sum()
            there[goal] = 0
        times[persona, TURNS] = there.sum()
    return times


def table(mazes, turn_reward):
    """The mazes for `tabular`: a state is a cell and a heading."""
    cells, headings = np.divmod(np.arange(CELLS * 4), 4)
    following, rewards, chances = [], [], []
    for moves, goal, _, probabilities in mazes:
        other = moves[cells]
        heading = np.where(other == cells[:, None], headings[:, None], np.arange(4))
        final = (cells == goal)[:, None]
        following.append(np.where(final, np.arange(CELLS * 4)[:, None], other * 4 + heading))
        rewards.append(np.where(final, 0.0, (other == goal) + turn_reward))
        chances.append(probabilities.reshape(3, CELLS * 4, 4))
    with np.errstate(divide="ignore"):
        log_policies = np.maximum(np.log(chances), -700.0)  # Alice never walks into a wall
    starts = np.array([start * 4 for _, _, start, _ in mazes])
    return tabular.Table(np.array(following), np.array(rewards), log_policies, starts, TURNS)


@pytest.mark.parametrize("turn_reward", [0.0, -0.05])
def test_the_tilt_is_that_of_arrival_times(mazes, turn_reward):
    """KL, selection, choice, routing, W, rewards and weights at each λ; and η²."""
    times = np.array([arrivals(*maze) for maze in mazes])
    np.testing.assert_allclose(times.sum(axis=-1), 1, atol=1e-12)
    reward = np.append(1 + turn_reward * np.arange(1, TURNS + 1), turn_reward * TURNS)
    tabled = table(mazes, turn_reward)
    expected: dict[str, float] = {}
    for scale in SCALES:
        tilted = times * np.exp(scale * reward)
        partitions = tilted.sum(axis=-1)
        weights = partitions / partitions.sum(axis=-1, keepdims=True)
        means = (tilted @ reward) / partitions
        expected = {
            "divergence": (scale * (weights * means).sum(axis=-1) - np.log(partitions.mean(axis=-1))).mean(),
            "selection": (weights * np.log(3 * weights)).sum(axis=-1).mean(),
            "choice": (weights.mean(axis=0) * np.log(3 * weights.mean(axis=0))).sum(),
            "within": (weights * (scale * means - np.log(partitions))).sum(axis=-1).mean(),
        }
        expected["routing"] = expected["selection"] - expected["choice"]
        found = tabular.tilt(tabled, scale)
        parts = found.split(PRIOR)
        assert {name: float(getattr(parts, name)) for name in expected} == pytest.approx(expected, abs=1e-10)
        np.testing.assert_allclose(parts.weights, weights, atol=1e-10)
        np.testing.assert_allclose(found.means, means, atol=1e-10)
    means = times @ reward
    between = means.var(axis=-1).mean()
    assert tabular.correlation_ratio(tabled, PRIOR) == pytest.approx(
        between / (between + (times @ reward**2 - means**2).mean()), abs=1e-12
    )
    # Three personas and not one: the setting has something to select, in every maze another.
    assert means[:, 2].mean() > means[:, :2].mean() + 0.3
    assert 1 - times[:, 2, -1].mean() > 0.995
    assert expected["routing"] > 0.05
