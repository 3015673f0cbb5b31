"""Sweeps: many runs of one experiment with other settings, at once, stopped early, resumable."""
