"""The round loop and the executors that run its clients: in this process, or on Ray."""
