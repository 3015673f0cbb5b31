"""The exceptions for mistakes that the user can fix, and what is skipped because of one."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
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


@contextmanager
def skipping(what: Path, unless: bool = False) -> Iterator[None]:
    """Skip one of many runs: an error inside becomes one line on standard error.

    The line is a warning of the logger `fedvsr`, which Python prints without further set-up.

    Args:
        what: the folder or file that is skipped if it cannot be read.
        unless: whether to raise the error after all.
    """
    try:
        yield
    except (UserError, OSError) as error:
        if unless:
            raise
        reason = str(error).removeprefix(f"{what}/").removeprefix(f"{what} ")
        logging.getLogger("fedvsr").warning("skipped %s: %s", what, reason)
