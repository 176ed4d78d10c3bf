"""Reporting of a run: folders, logs, progress bars, history, plots."""
