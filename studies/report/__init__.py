"""The static report: one site, opened from disk, of every study that has been run."""
