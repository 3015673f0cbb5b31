"""What a client's update reveals: attacks that reconstruct its frames, for `fedvsr audit`."""
