"""A cluster from outside: its nodes, its jobs, and what travels between."""
