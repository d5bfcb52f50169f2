"""Runs under attack: killed, signalled, repeated, kept going for hours. `uv run -m tests.endurance`."""
