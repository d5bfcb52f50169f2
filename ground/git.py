"""What git says of a checkout, where there is one."""

import subprocess
from pathlib import Path


def answer(folder: Path, *arguments: str) -> str | None:
    """What `git ARGUMENTS` prints in a folder; None where there is no git, no repository or no answer in 10 s."""
    command = ["git", "--no-optional-locks", "-C", folder, *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.SubprocessError, UnicodeError):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
