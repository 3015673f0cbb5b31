"""One experiment: its folder, its launch, its execution and its events."""
