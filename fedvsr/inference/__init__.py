"""Trained networks at work: streams, tiles, scores and exports."""
