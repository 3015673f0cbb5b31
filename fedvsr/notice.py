"""The command that a user has called when a run or a sweep ends: `on_finish`."""

from __future__ import annotations

import logging
import os
import re
import shlex
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress

from fedvsr.errors import UserError
from fedvsr.lookup import did_you_mean

FACTS = {
    "kind": "run or sweep",
    "run_id": "the run's id, or the sweep's name",
    "status": "finished, failed, interrupted or stopped",
    "folder": "its folder",
    "psnr_db": "RGB PSNR of its last evaluation, or of the best trial; empty without one",
    "error": "why it failed, in one line; else empty",
}
"""What the command is told: `{run_id}` in its words, FEDVSR_RUN_ID in its environment."""

LIMIT_S = 30.0
"""Seconds after which the command is killed."""
_PLACE = re.compile("{(" + "|".join(FACTS) + ")}")
_VARIABLE = re.compile(r"\$\{?(FEDVSR_\w*)")
# Seconds for the system to end a process that is killed.
_KILL_S = 5.0


def require_command(text: str) -> str:
    """Check that a text is a command, or empty.

    Raises:
        UserError: its quotes do not match, or it has a variable that nothing fills in.
    """
    words, known = _words(text), [*map(_variable, FACTS)]
    for name in _VARIABLE.findall(" ".join(words)):
        if name not in known:
            hint = did_you_mean(name, known)
            raise UserError(f"on_finish: ${name} is not set{hint} (there are: {', '.join(known)})")
        if "-c" not in words:
            place = name.removeprefix("FEDVSR_").lower()
            raise UserError(
                f"on_finish: no shell reads it, so ${name} stays as it is; write {{{place}}}, or "
                "call a shell: sh -c '...'"
            )
    return text


def _variable(fact: str) -> str:
    return f"FEDVSR_{fact.upper()}"


def warn_if_missing(text: str) -> None:
    """Say at once that a command does not exist here: a run may take days to its end."""
    words = _words(text)
    if words and shutil.which(words[0]) is None:
        _warn(f"there is no command {words[0]} here")


@contextmanager
def noticed(
    text: str, facts: Callable[[BaseException | None], Mapping[str, str] | None]
) -> Iterator[None]:
    """Do some work inside; however that ends, the command is called once, if there is one.

    Args:
        text: the command.
        facts: gives what to tell, from the exception that ended the work, if one did; None if the
            work had not begun, and nobody is called.
    """
    if not text:
        yield
        return
    warn_if_missing(text)
    ended: BaseException | None = None
    try:
        yield
    except BaseException as error:
        # Whatever ends the work; it is raised again.
        ended = error
        raise
    finally:
        try:
            told = facts(ended)
        except (UserError, OSError) as reason:
            _warn(f"not called: {reason}")
        else:
            if told is not None:
                notify(text, told)


def notify(text: str, facts: Mapping[str, str]) -> None:
    """Call the command; do nothing if it is empty. A failure is one warning.

    No shell reads it: its words are split at spaces, as a shell splits them, and then each
    `{run_id}` becomes the fact, which stays in its word whatever it holds. A shell that the command
    calls takes the facts from its environment: in its script, they would be read as commands.
    """
    told = {name: " ".join(facts.get(name, "").split()) for name in FACTS}
    words = [_PLACE.sub(lambda match: told[match[1]], word) for word in _words(text)]
    if not words:
        return
    try:
        with tempfile.TemporaryFile() as errors:
            variables = {_variable(name): fact for name, fact in told.items()}
            code = _call(words, variables, errors.fileno())
            if code:
                errors.seek(0)
                said = errors.read(1 << 20).decode(errors="replace").strip().splitlines()
                reason = f": {said[-1]}" if said else ""
                _warn(f"{words[0]} ended with exit code {code}{reason}")
    except subprocess.TimeoutExpired:
        _warn(f"{words[0]} was killed after {LIMIT_S:g} s")
    except FileNotFoundError:
        _warn(f"there is no command {words[0]} here")
    except (OSError, ValueError) as error:
        # A word with a zero byte is a ValueError.
        _warn(f"{words[0]}: {getattr(error, 'strerror', None) or error}")


def _call(words: list[str], variables: Mapping[str, str], errors: int) -> int:
    """The exit code of a command, which is killed with its children if it does not end in time."""
    process = subprocess.Popen(
        words,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=errors,
        env={**os.environ, **variables},
        # Ctrl-C, which may have ended the run, is not for it.
        start_new_session=True,
    )
    try:
        return process.wait(timeout=LIMIT_S)
    except BaseException:
        # Also an interrupt.
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(timeout=_KILL_S)
        raise


def _words(text: str) -> list[str]:
    try:
        return shlex.split(text)
    except ValueError as error:
        raise UserError(
            f"on_finish: {str(error)[:1].lower()}{str(error)[1:]} in {text[:80]!r}"
        ) from None


def _warn(message: str) -> None:
    logging.getLogger("fedvsr").warning("on_finish: %s", message)
