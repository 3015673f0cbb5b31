"""Sweeps: many runs of one experiment with different settings, run at once and resumable."""
