"""Every wait in the package has a limit, or stands below with the reason why it needs none."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import fedvsr

PACKAGE = Path(fedvsr.__file__).parent

# A call, as it is written, and why it has no limit. A computation has none: only the user knows
# how long it may take.
UNLIMITED = {
    ("cluster/stream.py", "piece.result()"): "the task is done",
    ("dashboard/server.py", "stop.wait()"): "the server runs until Ctrl-C",
    (
        "data/loader.py",
        "self._work.get()",
    ): "a thread that lives until told to end",
    ("data/degraded.py", "future.result()"): "the futures are done",
    ("data/degraded.py", "wait(futures, return_when=FIRST_EXCEPTION)"): "a computation",
    ("data/loader.py", "future.result()"): "the future is done",
    ("data/prepare.py", "future.result()"): "the futures are done",
    ("data/prepare.py", "future.exception()"): "the futures are done",
    ("data/prepare.py", "wait(futures, return_when=FIRST_EXCEPTION)"): "a computation",
    ("federation/connection.py", "self._close.wait()"): "the thread that holds the connection",
    ("federation/driver.py", "event.result()"): "the future is done",
    ("federation/driver.py", "stopped.result()"): "inside `within`",
    ("inference/side_thread.py", "self._work.get()"): "a thread that lives until told to end",
    ("inference/side_thread.py", "future.result()"): "the future is done",
    ("loggers/feed.py", "self._inbox.get()"): "a thread that lives until the run ends",
    ("metrics/vmaf.py", "self._process.communicate()"): "a computation, whose input has ended",
    ("runs/scoring.py", "pending.result()"): "`Pending.result` itself waits with limits",
    ("runs/scoring.py", "self.scorer.score(whole).result()"): "the same",
    ("tuning/progress.py", "self._thread.join()"): "the thread reads tables, which this one would",
}

# Names of calls that wait for ever without one of these arguments, however they are given.
NEED = {
    "acquire": {"timeout", "blocking"},
    "communicate": {"timeout"},
    "create_connection": {"timeout"},
    "check_call": {"timeout"},
    "check_output": {"timeout"},
    "urlopen": {"timeout"},
    "as_completed": {"timeout"},
}
# Methods that wait for ever only if they are called without any argument: a dictionary's `get`
# has one, and so has a text's `join`.
BARE = {"get", "join", "wait", "result", "exception", "recv"}
# Functions of a module that need a limit in any case.
OF_MODULE = {("ray", "get"), ("ray", "wait"), ("subprocess", "run"), ("subprocess", "call")}
# Functions of the standard library that are imported by name.
BY_NAME = {"wait", "as_completed"}


def unlimited(tree: ast.AST) -> Iterator[str]:
    """The calls in a module that wait without a limit, as they are written."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        given = {keyword.arg for keyword in node.keywords}
        is_bare = not node.args and not node.keywords
        called = node.func
        if isinstance(called, ast.Attribute):
            module = called.value.id if isinstance(called.value, ast.Name) else ""
            needs = NEED.get(
                called.attr, {"timeout"} if (module, called.attr) in OF_MODULE else None
            )
            waits = bool(needs and not given & needs) or (is_bare and called.attr in BARE)
        else:
            name = called.id if isinstance(called, ast.Name) else ""
            waits = name in BY_NAME and bool(node.args) and "timeout" not in given
        if waits:
            yield ast.unparse(node)


def test_every_wait_has_a_limit_or_a_reason() -> None:
    waits = {
        (path.relative_to(PACKAGE).as_posix(), call)
        for path in PACKAGE.rglob("*.py")
        for call in unlimited(ast.parse(path.read_text()))
    }
    assert waits - UNLIMITED.keys() == set(), "waits without a limit"
    assert UNLIMITED.keys() - waits == set(), "no longer in the package"


@pytest.mark.parametrize(
    "call",
    [
        "ray.get(ref)",
        "ray.wait(refs, num_returns=1)",
        "lock.acquire()",
        "lock.acquire(poll_interval=1)",
        "thread.join()",
        "queue.get()",
        "future.result()",
        "wait(futures)",
        "subprocess.run(command, check=True)",
        "process.communicate()",
        "process.wait()",
    ],
)
def test_a_wait_without_a_limit_is_seen(call: str) -> None:
    assert list(unlimited(ast.parse(f"x = [{call} for _ in y]"))) == [call]


@pytest.mark.parametrize(
    "call",
    [
        "ray.get(ref, timeout=3)",
        "ray.wait(refs, timeout=0)",
        "lock.acquire(timeout=3)",
        "lock.acquire(blocking=False)",
        "thread.join(3)",
        "', '.join(words)",
        "table.get('a')",
        "queue.get(timeout=3)",
        "wait(futures, timeout=3)",
        "wait()",
    ],
)
def test_a_wait_with_a_limit_is_not(call: str) -> None:
    assert list(unlimited(ast.parse(call))) == []
