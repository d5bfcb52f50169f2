"""The table of verdicts: every criterion a row, nothing typed, nothing but what lies between the markers replaced."""

import pytest

from agents.runs.config import ConfigError
from studies import study as frame
from studies import tables
from studies.negative_reinforcement import STUDY
from tests import verdicts

PAGE = f"# title\n{tables.BEGIN}\nold | text\n{tables.END}\nthe end\n"


def test_every_criterion_is_a_row_with_its_numbers():
    text = tables.markdown([verdicts.document("refuted", packages={"jax": "0.10.2"})])
    rows = [line.split(" | ") for line in text.splitlines() if line.startswith("|")]
    assert {len(row) for row in rows} == {6}
    assert rows[2][-1] == "**refuted** |"
    assert rows[3][0] == "| **Is there a gain?**"
    assert rows[3][2].startswith("−0.30 [−0.3")
    assert rows[3][3:] == ["+0.40", "above 0", "refuted |"]
    assert rows[5][1:3] == ["never made below 0", ""]
    assert "scale smoke, 6 members, 120 minutes of training and 0 of the last command" in text
    assert "commit abcdef012345 with changes" in text


def test_only_what_lies_between_the_markers_is_written_and_the_largest_scale_counts(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(PAGE)
    for scale, verdict in (("smoke", "refuted"), ("laptop", "supported")):
        path = verdicts.write(tmp_path, STUDY.name, scale, verdict=verdict, packages={"jax": "1"})
        assert path == frame.directory(tmp_path, STUDY, scale) / frame.VERDICT
    tables.write(page, tmp_path, [STUDY])
    text = page.read_text()
    assert text.startswith(f"# title\n{tables.BEGIN}\n| question")
    assert text.endswith(f"\n{tables.END}\nthe end\n")
    assert "**supported**" in text
    assert "refuted" not in text
    assert "old" not in text


@pytest.mark.parametrize("page", ["no markers", f"{tables.END}{tables.BEGIN}", tables.BEGIN])
def test_a_page_without_markers_is_refused_and_kept(tmp_path, page):
    (tmp_path / "page.md").write_text(page)
    with pytest.raises(ConfigError, match="has no lines"):
        tables.write(tmp_path / "page.md", tmp_path, [STUDY])
    assert (tmp_path / "page.md").read_text() == page


def test_nothing_run_is_said(tmp_path):
    (tmp_path / "page.md").write_text(PAGE)
    with pytest.raises(ConfigError, match="holds no verdicts yet"):
        tables.write(tmp_path / "page.md", tmp_path, [STUDY])
    assert (tmp_path / "page.md").read_text() == PAGE
