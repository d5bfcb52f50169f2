"""Figures: what stands where and in whose colours, words that never collide, and the files of a figure."""

import csv
import itertools

import numpy as np
import pytest
import scipy.stats
import xarray as xr
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.offsetbox import AnnotationBbox
from matplotlib.text import Text

from agents.learning import algorithms
from analysis.figures import defaults, learning_curve, marks, panels, style
from analysis.figures.panels import Areas, Curve, Curves, Map, Rows
from envs import tokens
from ground.estimates import Estimate

DRAW = np.random.default_rng(0)
ARMS = ["base", *(algorithm.title for algorithm in algorithms.ALGORITHMS.values())]
LONG = "PPO on a base whose narrator never speaks, stored in bfloat16 with_a_very_long_name_that_has_no_spaces_at_all"
WORDS = {
    "title": "Punishment alone keeps pass@k: inconclusive, since the interval holds the smallest effect of interest",
    "meaning": "Mean and 95 % interval over bases; dots: members; lines: floors and ceilings; no interval below 4.",
    "footer": "negative_reinforcement, scale laptop, 8 bases, configs 779406d33d5a",
}


def estimate(mean: float, members: int = 8, spread: float = 0.05) -> Estimate:
    return Estimate.of(DRAW.normal(mean, spread, members))


def values(*shape: int, mean: float = 0.5) -> np.ndarray:
    return DRAW.normal(mean, 0.1, shape)


def rows(count: int) -> Rows:
    marked = {"base": 0.31, "random player": 0.07, "mixture of the base's own personas": 0.3, "oracle": 0.98}
    return Rows({name: estimate(0.3 + 0.05 * i) for i, name in enumerate(ARMS[:count])}, "success (%)", marked, True)


KS = 2 ** np.arange(9)
EMOJI = tokens.VOCABULARY[:4]
CASES = {
    "ten rows": [rows(10)],
    "one row": [rows(1)],
    "the same names": [rows(4), Rows(rows(4).estimates, "gain (share of mazes)", {"no change": 0.0}), rows(4)],
    "long names": [Rows({LONG + str(i): estimate(10.0**-i, 8, 10.0**-i / 9) for i in range(3)}, LONG,
                        {"mixture of the base's own personas": 0.2, "null of shuffled labels, 97.5 %": 0.004})],
    "no number": [Rows({"PPO": Estimate.of([np.nan] * 4), "GRPO": estimate(0.3, 1), "untrained": estimate(0.1, 3)},
                       "cosine", {"null": -0.5}),
                  Rows({"PPO": Estimate.of([])}, "nothing", {"nothing": np.nan})],
    "emoji": [Rows({name: estimate(0.1) for name in EMOJI}, "change of logit"),
              Map(values(3, 4), ("Larry", "Bob", "Alice"), EMOJI, "KL(persona ‖ model with badge) (nats per action)")],
    "curves": [Curves({name: Curve(KS, values(9, 4)) for name in ARMS}, "k, attempts at a maze",
                      "pass@k (% of held-out mazes)", {"random player": 0.64, LONG: 0.5, "below": -9.0}, True, True),
               Curves({"PPO": Curve(np.arange(3), np.full((3, 1), np.nan))}, "update", "return")],
    "scatter": [Curves({name: Curve(values(1, 8), values(1, 8)) for name in ARMS[:5]}, "KL (nats)", "success",
                       points=True),
                Areas(KS, {"selection": values(9), "mixing": values(9), "alien": values(9)}, "update", "share")],
    "maps": [Map(values(10, 10, mean=0), tuple(ARMS[:10]), tuple(ARMS[:10]), "overlap (Jaccard index)", True),
             Map(np.array([[np.nan, 1.0]]), (LONG,), (LONG, "b c"), "share")],
}  # fmt: skip


def words(figure) -> list[tuple[str, float, np.ndarray]]:
    """Every text and picture that is drawn: what it says, its size in points, its box in pixels."""
    boxes = []
    ticks = [tick for axes in figure.axes for axis in (axes.xaxis, axes.yaxis) for tick in axis.get_major_ticks()]
    hidden = set()
    for tick in ticks:
        low, high = sorted(tick.axes.get_xlim() if tick.__class__.__name__ == "XTick" else tick.axes.get_ylim())
        if not low - 1e-9 <= tick.get_loc() <= high + 1e-9:
            hidden |= {tick.label1, tick.label2}
    for text in figure.findobj(Text):
        if text.get_text().strip() and text.get_visible() and text not in hidden:
            box = Text.get_window_extent(text)
            boxes.append((text.get_text(), text.get_fontsize(), box.extents))
    pictures = [picture.offsetbox for picture in figure.findobj(AnnotationBbox)]
    return boxes + [("picture", style.PICTURE, picture.get_window_extent().extents) for picture in pictures]


def faults(figure) -> list[str]:
    """Words that are too small, leave the page, or cover each other."""
    figure.canvas.draw()
    drawn, wrong = words(figure), []
    width, height = figure.get_size_inches() * figure.dpi
    for text, size, (left, low, right, high) in drawn:
        if size < 7:
            wrong.append(f"{text!r} has {size} points")
        if min(left, low) < -0.5 or right > width + 0.5 or high > height + 0.5:
            wrong.append(f"{text!r} leaves the page")
    for (one, _, a), (other, _, b) in itertools.combinations(drawn, 2):
        across, up = (min(a[i + 2], b[i + 2]) - max(a[i], b[i]) for i in (0, 1))
        if across > 1 and up > 1.5:  # pixels; a line of text has room above and below its letters
            wrong.append(f"{one!r} and {other!r} overlap by {across:.1f} × {up:.1f}")
    return wrong


@pytest.mark.parametrize("width", [3.25, 5.5, 8.4])
@pytest.mark.parametrize("name", CASES)
def test_words_are_readable_inside_the_page_and_never_cover_each_other(name, width):
    figure = panels.draw(CASES[name], width, **WORDS)
    assert figure.get_figwidth() == width
    assert faults(figure) == []
    for axes in figure.axes:
        assert min(axes.get_position().size) > 0


def test_words_that_collide_are_noticed():
    figure = panels.draw(CASES["one row"], 5.5, **WORDS)
    figure.texts[0].set_position((0.5, 0.5))
    assert any("overlap" in fault or "leaves" in fault for fault in faults(figure))


def test_a_plain_figure_says_nothing_of_where_it_comes_from():
    shown = " ".join(text for text, *_ in words(panels.draw(CASES["ten rows"], 5.5, **WORDS, plain=True)))
    for part in WORDS.values():
        assert part.split()[0] not in shown


def test_rows_show_members_means_and_intervals():
    members = np.array([0.25, 0.5, 1.0, 1.25])  # not skewed, so that the interval is Student's
    figure = panels.draw([Rows({"PPO": Estimate.of(members), "NSR": Estimate.of(members[:3])}, "share", percent=True)])
    lines = [np.asarray(line.get_xdata(), float) for line in figure.axes[0].lines]
    interval = scipy.stats.ttest_1samp(members, 0).confidence_interval(0.95)
    assert any(np.allclose(line, 100 * members) for line in lines if len(line) == 4)
    assert any(np.allclose(line, 100 * np.array(interval)) for line in lines if len(line) == 2)
    assert any(np.allclose(line, [75.0]) for line in lines if len(line) == 1)
    assert sum(np.isfinite(line).all() for line in lines if len(line) == 2) == 1  # three members have no interval
    assert {"75", "58.3"} <= {text for text, *_ in words(figure)}


@pytest.mark.parametrize("members", [3, 4])
def test_curves_show_members_mean_and_band_from_four_members_on(members):
    data = np.array([[0.0, 1.0, 2.0, 3.0], [5.0, 6.0, 9.0, 10.0]])[:, :members]
    axes = panels.draw([Curves({"PPO": Curve(np.array([1, 2]), data)}, "update", "return")]).axes[0]
    lines = [np.asarray(line.get_ydata(), float) for line in axes.lines]
    for expected in (*data.T, data.mean(axis=1)):
        assert any(np.allclose(line, expected) for line in lines)
    ends = axes.collections[0].get_paths()
    assert bool(len(ends)) == (members == 4)
    if members == 4:
        low, high = zip(*(scipy.stats.ttest_1samp(step, 0).confidence_interval(0.95) for step in data), strict=True)
        drawn = ends[0].vertices
        np.testing.assert_allclose([drawn[drawn[:, 0] == x, 1].min() for x in (1, 2)], low)
        np.testing.assert_allclose([drawn[drawn[:, 0] == x, 1].max() for x in (1, 2)], high)


def test_twins_count_as_one():
    twins = Curve(np.arange(2), np.tile([[1.0, 2.0, 3.0, 4.0]], (2, 2)), units=np.array([0, 1, 2, 3, 0, 1, 2, 3]))
    alone = Curve(np.arange(2), np.tile([[1.0, 2.0, 3.0, 4.0]], (2, 1)))
    np.testing.assert_allclose(twins.mean(), alone.mean())


def test_who_is_a_twin_changes_along_a_curve():
    data = np.array([[1.0, 1.0, 1.0, 1.0], [1.0, 2.0, 3.0, 5.0]])
    curve = Curve(np.arange(2), data, units=np.array([[0, 0, 0, 0], [0, 1, 2, 3]]))
    _, mean, low, high = curve.mean()
    assert mean.tolist() == [1.0, 2.75]
    assert np.isnan([low[0], high[0]]).all()
    np.testing.assert_allclose([low[1], high[1]], [x[1] for x in Curve(np.arange(2), data).mean()[2:]])


def test_a_far_mark_is_named_and_does_not_press_the_data_flat():
    data = Curve(np.arange(3), np.array([1.0, 2.0, 3.0]))
    figure = panels.draw([Curves({"PPO": data}, "update", "return", {"random": -80.25, "Bob": 2.5})])
    low, high = figure.axes[0].get_ylim()
    assert -2 < low < 1 < 3 < high < 5
    shown = {text.replace("\n", " ") for text, *_ in words(figure)}
    assert {"↓ random −80.2", "Bob 2.5"} <= shown


def test_a_tiny_mark_keeps_its_power_of_ten():
    data = Curve(np.arange(2), np.array([1e-10, 5e-10]))
    figure = panels.draw([Curves({"PPO": data}, "update", "share", {"chance": 3.2e-10})])
    assert "chance 3.20e−10" in {text.replace("\n", " ") for text, *_ in words(figure)}


def test_every_arm_has_one_style_and_no_two_the_same():
    titles = {name: algorithm.title for name, algorithm in algorithms.ALGORITHMS.items()}
    for key, title in titles.items():  # a new algorithm may do without a style of its own
        assert style.known(key) == style.known(title)
    others = "base, untrained, random player, mixture, oracle, greedy one-step, Larry, Bob, Alice, SFT, rejection SFT"
    known = style.of_all([*titles.values(), *others.split(", "), "shuffled rewards"])
    assert len(set(known.values())) == len(known)
    assert style.of_all(["NSR", "PPO"])["PPO"] == style.of_all(["PPO"])["PPO"] == style.known("rl")
    others = style.of_all([*(f"arm {index}" for index in range(60)), *known])
    assert len(set(others.values())) == len(others)
    few = style.of_all(["PPO", "first", "second", "third"])
    assert len({look.colour for look in few.values()}) == 4
    assert style.of_all(["a", "PPO"])["a"] == style.of_all(["PPO", "a"])["a"]


def test_what_is_said_of_an_arm_looks_like_it_unless_there_is_more_of_it():
    looks = style.of_panels([["PPO: axis", "GRPO: axis", "Path"], ["PPO", "GRPO", "GRPO: other"]])
    assert looks["PPO: axis"] == looks["PPO"] == style.known("PPO")
    assert len({looks[name] for name in ("GRPO", "GRPO: axis", "GRPO: other", "Path", "PPO")}) == 5
    assert style.of_panels([["PPO", "SFT"]]) == style.of_all(["PPO", "SFT"])


def test_rows_of_an_arm_at_its_settings_look_like_the_arm():
    lines = ["PSR", "PSR, often", "Mine"]
    rows = ["PSR, 0.1", "PSR, often, 0.1", "Mine, 0.1", "Mine, 0.2", "width 64, PSR"]
    looks = style.of_panels([lines], [rows])
    assert looks["PSR, 0.1"] == looks["PSR"] == style.known("PSR")
    assert looks["PSR, often, 0.1"] == looks["PSR, often"]
    assert looks["Mine, 0.1"] == looks["Mine, 0.2"] == looks["Mine"]
    assert len({looks[name] for name in (*lines, "width 64, PSR")}) == 4  # lines are told apart by their looks alone
    assert style.of_panels([["PSR", "PSR, 0.1"]])["PSR, 0.1"] != style.known("PSR")
    assert style.of_panels([], [["PSR: one", "PSR: two"]]) == style.of_all(["PSR: one", "PSR: two"])
    points = [f"PSR, rl.learning_rate={rate:g}" for rate in (0.1, 0.2)]
    assert style.of_panels([lines], [points])[points[0]].colour != style.of_panels([lines], [points])[points[1]].colour


def test_a_sweep_has_a_colour_for_each_point():
    looks = style.of_all([f"rl.learning_rate={rate:g}" for rate in np.geomspace(1e-5, 1, 12)])
    assert len({look.colour for look in looks.values()}) == 12
    pairs = {(arm, rate): f"{arm}, rl.learning_rate={rate}" for arm in ("kernel", "all") for rate in ("0.1", "1")}
    looks = style.of_all(pairs.values())
    assert len(set(looks.values())) == 4
    for rate in ("0.1", "1"):
        assert len({looks[pairs[arm, rate]].colour for arm in ("kernel", "all")}) == 1


def test_words_break_where_people_would():
    assert style.wrapped("rl.learning_rate=0.001", 0.99) == "rl.learning_rate=\n0.001"
    assert style.wrapped("one two", 0.3) == "one\ntwo"
    assert style.wrapped("one two\nthree", 9) == "one two\nthree"
    text = "a_name_that_is_long and_an_unbreakableone"
    lines = style.wrapped(text, 0.5).split("\n")
    assert max(map(style.wide, lines)) <= 0.5
    assert "".join(lines) == text.replace(" ", "")


def test_a_mark_that_is_named_by_its_number_says_it_once():
    words = [mark.words for mark in marks.of({"5 %": 0.05, "base": 0.2, "15 % of 5": 0.05}, percent=True)]
    assert words == ["5 %", "base 20", "15 % of 5"]


@pytest.mark.parametrize(
    ("low", "high", "inches", "ticks"),
    [(1, 8, 3.0, [1, 2, 5]), (0.15, 6, 2.0, [0.3, 1, 3]), (0.15, 6, 1.4, [0.3, 1, 3]), (1e-4, 1e2, 2.0, None)],
)
def test_a_logarithmic_axis_has_as_many_ticks_as_have_room(low, high, inches, ticks):
    axes = Figure().add_subplot()
    axes.set(xscale="log", xlim=(low, high))
    panels._number(axes, "x", inches, log=True)
    shown = [tick for tick in axes.get_xticks() if low <= tick <= high]
    if ticks:
        np.testing.assert_allclose(shown, ticks)
    else:
        assert 2 <= len(shown) <= 5
        assert np.log10(shown) % 1 == pytest.approx(0)


@pytest.mark.parametrize("seed", range(20))
def test_labels_beside_an_axis_never_overlap(seed):
    draw = np.random.default_rng(seed)
    wanted, heights = draw.uniform(0, 1, 8) ** 3, draw.uniform(0.02, 0.1, 8)
    places = marks.spread(wanted, heights, 0.0, 1.0)
    order = np.argsort(wanted)
    gaps = np.diff(places[order]) - (heights[order][1:] + heights[order][:-1]) / 2
    assert gaps.min() > -1e-9
    assert (places - heights / 2).min() > -1e-9
    assert (places + heights / 2).max() < 1 + 1e-9
    free = marks.spread(np.array([0.8, 0.2]), np.array([0.1, 0.1]), 0.0, 1.0)
    np.testing.assert_allclose(free, [0.8, 0.2])


def test_the_same_figure_gives_the_same_files(tmp_path):
    shown = [rows(3), CASES["emoji"][1]]
    first, second = (
        panels.save(panels.draw(shown, **WORDS, plain=True), tmp_path / stem, shown, **WORDS, plain=True)
        for stem in ("a.b", "c")
    )
    assert [path.name for path in first] == ["a.b.png", "a.b.pdf", "a.b.csv", "a.b.txt"]
    for one, other in zip(first, second, strict=True):
        assert one.read_bytes() == other.read_bytes()
    pdf = first[1].read_bytes()
    assert b"/Type3" not in pdf
    assert b"CreationDate" not in pdf
    assert b"Punishment alone" in pdf
    for part in WORDS.values():
        assert part in first[3].read_text()


def test_the_table_beside_a_figure_holds_every_number(tmp_path):
    curve = Curve(np.array([1, 2]), np.array([[1.0, 2.0], [3.0, np.nan]]))
    shown = [Rows({"PPO": Estimate.of([1.0, 2.0, 3.0, 4.0])}, "cosine", {"null": -0.5}),
             Curves({"NSR": curve}, "k", "pass@k"), Map(np.array([[7.0]]), ("r",), ("c",), "share"),
             Areas(np.array([1.0]), {"alien": np.array([0.25])}, "update", "KL")]  # fmt: skip
    paths = panels.save(panels.draw(shown), tmp_path / "x", shown)
    assert [path.suffix for path in paths] == [".png", ".pdf", ".csv"]
    with paths[2].open(encoding="utf-8") as file:
        table = [tuple(row.values()) for row in csv.DictReader(file)]
    assert ("cosine", "PPO", "", "1", "2", "", "", "") in table
    mean = next(row for row in table if row[:4] == ("cosine", "PPO", "", "") and row[5])
    interval = scipy.stats.ttest_1samp([1, 2, 3, 4], 0).confidence_interval(0.95)
    np.testing.assert_allclose([float(x) for x in mean[5:]], [2.5, *interval], rtol=1e-5)
    assert ("cosine", "null", "", "", "-0.5", "", "", "") in table
    assert ("pass@k", "NSR", "2", "0", "3", "", "", "") in table
    assert ("pass@k", "NSR", "2", "1", "", "", "", "") in table
    assert ("pass@k", "NSR", "1", "", "", "1.5", "", "") in table
    assert ("share", "r", "c", "", "7", "", "", "") in table
    assert ("KL", "alien", "1", "", "0.25", "", "", "") in table


@pytest.mark.parametrize("arms", [6, 7])
def test_members_of_many_arms_are_in_the_table_alone(arms):
    outlier = np.array([[0.0] * 4, [1.0, 1.0, 1.0, 9.0]])
    curves = {f"arm {number}": Curve(outlier, outlier) for number in range(arms)}
    panel = Curves(curves, "updates", "return")
    (axes,) = panels.draw([panel]).axes
    thin = [line for line in axes.lines if line.get_linewidth() < 1]
    assert len(thin) == (4 * arms if arms == 6 else 0)
    assert (axes.get_xlim()[1] > 9) == (arms == 6)  # where the member is; the mean ends at 3
    assert sum(row.member is not None for row in panel.table()) == 8 * arms


@pytest.mark.parametrize(("low", "high", "shown"), [(0.99998, 1.0, 1.0), (0.001, 0.004, 0.3), (0.4, 0.6, 20.0)])
def test_shares_that_hardly_differ_are_drawn_as_equal(low, high, shown):
    panel = Curves({"a": Curve(np.arange(2), np.array([low, high]))}, "updates", "success", percent=True)
    (axes,) = panels.draw([panel]).axes
    ends = axes.get_ylim()
    assert np.isclose((ends[1] - ends[0]) / 1.12, shown, rtol=0.01)


def test_a_map_of_shares_shows_percentages_and_keeps_shares():
    panel = Map(np.array([[0.125, np.nan]]), ("row",), ("a", "b"), "changed (%)", percent=True)
    (axes, _) = panels.draw([panel]).axes
    assert {text.get_text() for text in axes.texts} == {"12", "–"}
    assert next(row.value for row in panel.table()) == 0.125


def test_a_figure_of_nothing_is_refused():
    for wrong, width in (([], 5.5), ([rows(1)], 0.5), ([rows(1)], np.nan)):
        with pytest.raises(ValueError, match="draw"):
            panels.draw(wrong, width)


@pytest.mark.parametrize("updates", [1, 5])
def test_a_learning_curve_has_a_colour_for_each_point_of_the_grid(updates):
    returns, after = DRAW.normal(10, 2, (updates, 8)), DRAW.normal(14, 2, 8)
    points = [f"rl.learning_rate={rate}" for rate in (0.001, 0.1) for _ in range(4)]
    baselines = {"random": -80.25, "greedy": 17.0}
    panel = learning_curve.panel(returns, after, baselines, algorithm="PPO", episodes=256, points=points)
    figure = panels.draw([panel])
    assert faults(figure) == []
    axes = figure.axes[0]
    for point, mine in zip((points[0], points[4]), (slice(4), slice(4, 8)), strict=True):
        colour = style.of_all(points)[point].colour
        drawn = [np.asarray(line.get_ydata()) for line in axes.lines if to_hex(line.get_color()) == colour]
        for expected in (returns[:, mine].mean(axis=1), after[mine].mean(keepdims=True)):
            assert any(line.shape == expected.shape and np.allclose(line, expected) for line in drawn)
    said = " ".join(text for text, *_ in words(figure))
    assert "0.001, training batches" in said
    assert "0.1, held-out mazes" in said


def test_a_learning_curve_without_a_sweep_is_the_algorithms():
    panel = learning_curve.panel(values(3, 2), values(2), {}, algorithm="NSR", episodes=8, points=["", ""])
    (look,) = {panel.curves[name].style for name in panel.curves}
    assert look == "NSR"


def dataset(*updates: int, layers: int = 2) -> xr.Dataset:
    """A made-up measurement of four members at two points."""
    steps = len(updates)
    return xr.Dataset(
        {
            "kl": (("checkpoint", "member"), values(steps, 4), {"long_name": "KL", "units": "nats"}),
            "cosine": (("checkpoint", "member", "layer"), values(steps, 4, layers), {"long_name": "cosine, mean"}),
        },
        {
            "checkpoint": [f"rl-{update:06}" for update in updates],
            "stage": ("checkpoint", ["rl"] * steps),
            "update": ("checkpoint", list(updates)),
            "unit": (("checkpoint", "member"), np.tile(np.arange(4), (steps, 1))),
            "point": ("member", ["x=1", "x=1", "x=2", "x=2"]),
            "layer": np.arange(layers),
        },
    )


def test_a_measurement_without_a_figure_shows_its_table_as_rows():
    one = dataset(8)
    kl, cosine = defaults.panels({"run": one})
    assert isinstance(kl, Rows)
    assert isinstance(cosine, Rows)
    assert (kl.label, list(kl.estimates)) == ("KL (nats)", ["x=1", "x=2"])
    assert kl.estimates["x=2"].mean == pytest.approx(one["kl"].values[0, 2:].mean())
    assert list(cosine.estimates) == ["layer 0, x=1", "layer 1, x=1", "layer 0, x=2", "layer 1, x=2"]
    assert cosine.estimates["layer 1, x=2"].mean == pytest.approx(one["cosine"].values[0, 2:, 1].mean())
    two, _ = defaults.panels({"a": one, "b": dataset(8)})
    assert list(two.names) == ["a, x=1", "a, x=2", "b, x=1", "b, x=2"]
    alone, _ = defaults.panels({"run": one.isel(member=[0, 1])})
    assert list(alone.names) == ["rl-000008\nx=1"]


def test_what_is_followed_through_training_becomes_curves():
    one = dataset(1, 2, 4)
    kl, *cosines = defaults.panels({"run": one})
    assert isinstance(kl, Curves)
    assert (kl.y, len(cosines)) == ("KL (nats)", 2)
    np.testing.assert_array_equal(kl.curves["x=2"].x, [1, 2, 4])
    np.testing.assert_array_equal(kl.curves["x=2"].values, one["kl"].values[:, 2:])
    np.testing.assert_array_equal(cosines[1].curves["x=1"].values, one["cosine"].values[:, :2, 1])
