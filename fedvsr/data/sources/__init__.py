"""The data sets that can be prepared, one a file."""
