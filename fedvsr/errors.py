"""The exceptions for mistakes that the user can fix."""

from __future__ import annotations

from pathlib import Path


class UserError(ValueError):
    """A setting, file or request that the program cannot accept; the message says how to fix it.

    The command line prints only the message and exits with 2. Any other exception is a fault of the
    program and exits with 1.
    """


class FileError(UserError):
    """A file or folder that the program cannot accept.

    Args:
        path: the file or folder.
        reason: the rest of the message, which begins with a verb or with a colon.
    """

    def __init__(self, path: Path, reason: str) -> None:
        # Both are the exception's arguments, so that it can be pickled.
        super().__init__(path, reason)
        self.reason = reason.removeprefix(": ")

    def __str__(self) -> str:
        path, reason = self.args
        return f"{path}{reason}" if reason.startswith(":") else f"{path} {reason}"


class DamagedError(FileError):
    """A saved file that is missing, incomplete, or not as it was written."""
