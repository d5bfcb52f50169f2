"""What the commands write beside their tables: all numbers in a file, and the figure."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import tyro

from analysis.figures import panels
from analysis.figures.panels import Curves, Panel
from ground import files
from ground.terminal import ConfigError


@dataclasses.dataclass(frozen=True)
class Output:
    """Files that are written."""

    json: Annotated[Path | None, tyro.conf.arg(metavar="FILE", help_behavior_hint="")] = None
    """Write all numbers to this file."""
    figures: bool = True
    """Draw the figure beside the numbers, into the first run's folder."""
    width: float = 5.5
    """Width of the figure in inches; 3.25 and 5.5 are usual columns."""
    plain: bool = False
    """No headline and footer in the figure; they go into a caption file beside it."""

    def check(self) -> None:
        """Refuse what cannot be drawn or written, before anything is measured; raises ConfigError."""
        files.check_json(self.json, {"measurement", "runs"}, {"measure", "differences"})
        if not 2 <= self.width <= 40:
            raise ConfigError(f"--width={self.width:g}: use 2 to 40 inches")

    def write(
        self,
        document: Callable[[], Mapping[str, Any]],
        shown: Callable[[], Sequence[Panel]],
        stem: Callable[[], Path],
        title: str,
        footer: str,
    ) -> list[Path]:
        """Write what was asked for; nothing else is called.

        Args:
            document: the numbers.
            shown: panels of the figure.
            stem: of the figure's paths.
            title, footer: of the figure.

        Returns:
            The paths.
        """
        written = list[Path]()
        if self.json:
            files.write_json(self.json, {"schema": 1, **document()})
            written.append(self.json)
        if self.figures and (drawn := list(shown())):
            crowded = any(isinstance(panel, Curves) and panel.crowded for panel in drawn)
            who = "whom the CSV lists" if crowded else "and the members"
            meaning = f"Mean and 95 % interval over members, {who}; no interval below 4 independent ones."
            words = {"title": title, "meaning": meaning, "footer": footer, "plain": self.plain}
            written += panels.save(panels.draw(drawn, self.width, **words), stem(), drawn, **words)
        return written
