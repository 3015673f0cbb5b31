"""A cluster that cannot be reached or started is refused in a line; nothing is waited for."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from fedvsr.errors import UserError
from fedvsr.federation.connection import (
    _keep_environment,
    connect,
    require_temporary_folder,
)


@pytest.fixture
def closed_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@pytest.mark.parametrize("address", ["127.0.0.1:{}", "ray://127.0.0.1:{}", "localhost:{}"])
def test_an_address_where_nothing_listens_is_refused(address: str, closed_port: int) -> None:
    address = address.format(closed_port)
    with pytest.raises(UserError, match=r"no Ray cluster answers at .*: Connection refused; start"):
        connect(address, 0)


@pytest.mark.parametrize("address", [None, "auto"])
def test_a_variable_that_is_left_over_is_named(
    address: str | None, closed_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{closed_port}")
    with pytest.raises(UserError, match=r"\(RAY_ADDRESS\): .*; unset it, or --address local$"):
        connect(address, 0)


@pytest.mark.parametrize("address", ["nosuchhost.invalid:6379", "127.0.0.1:99999999", "http://h"])
def test_an_address_that_cannot_be_is_refused(address: str) -> None:
    with pytest.raises(UserError, match="no Ray cluster answers at"):
        connect(address, 0)


@pytest.mark.full
def test_a_port_at_which_something_else_listens_is_given_up(tmp_path: Path) -> None:
    """In a process of its own: Ray stays half started in it, and it ends all the same."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        program = (
            "import sys; from fedvsr import cli; from fedvsr.federation import connection;"
            "connection.connect.__defaults__ = (1, 3.0);"
            f"sys.argv = ['fedvsr', 'doctor', '--address', '127.0.0.1:{port}'];"
            "connection.connected.__wrapped__.__defaults__ = (1, 3.0); cli.main()"
        )
        done = subprocess.run(
            [sys.executable, "-c", program], capture_output=True, text=True, timeout=60
        )
    assert done.returncode == 2, done.stdout + done.stderr
    assert f"no Ray cluster answers at '127.0.0.1:{port}': no answer within 3 s" in done.stderr


@pytest.mark.parametrize("variable", ["RAY_TMPDIR", "TMPDIR"])
@pytest.mark.parametrize(
    ("folder", "problem"),
    [
        ("/tmp/" + "x" * 80, r"= /tmp/x+: the path is \d+ bytes too long for Ray's sockets"),
        ("/proc/nope", "= /proc/nope: Ray cannot write there"),
        ("/dev/null", "= /dev/null: Ray cannot write there"),
        ("there", "= there: Ray needs an absolute path"),
        ("", "= .*: Ray needs an absolute path"),
    ],
)
def test_a_temporary_folder_that_ray_cannot_use_is_named(
    variable: str, folder: str, problem: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("RAY_TMPDIR", "TMPDIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(variable, folder)
    with pytest.raises(UserError, match=f"^{variable} {problem}"):
        require_temporary_folder()


def test_a_temporary_folder_that_is_missing_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    short = Path(f"/tmp/fedvsr-{os.getpid()}")
    monkeypatch.setenv("RAY_TMPDIR", str(short))
    try:
        require_temporary_folder()
        assert list((short / "ray").iterdir()) == []
    finally:
        (short / "ray").rmdir()
        short.rmdir()


@pytest.mark.parametrize("wanted", [None, "1"])
def test_uv_run_makes_no_environment_for_workers(
    monkeypatch: pytest.MonkeyPatch, wanted: str | None
) -> None:
    import ray

    # What `ray.init` looks at; true by default, and missing in old releases.
    constants = ray._private.ray_constants
    monkeypatch.setattr(constants, "RAY_ENABLE_UV_RUN_RUNTIME_ENV", True, raising=False)
    monkeypatch.delenv("RAY_ENABLE_UV_RUN_RUNTIME_ENV", raising=False)
    if wanted:
        monkeypatch.setenv("RAY_ENABLE_UV_RUN_RUNTIME_ENV", wanted)
    _keep_environment()
    assert bool(wanted) == constants.RAY_ENABLE_UV_RUN_RUNTIME_ENV
