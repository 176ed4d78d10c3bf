"""What a run tells: folders, log, bars, history, plots."""
