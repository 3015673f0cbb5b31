"""The data sets that can be prepared, one a file.

Each has a function `recordings(source, ...)`: the recordings of a folder as tasks, and notes.
"""

from fedvsr.plugins import Kind

KIND = Kind("source", __name__, "fedvsr.sources", {}, ("recordings",))
"""What a source that is a plug-in must have."""
