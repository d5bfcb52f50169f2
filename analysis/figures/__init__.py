"""Figures: functions from arrays to a `matplotlib.figure.Figure`."""
