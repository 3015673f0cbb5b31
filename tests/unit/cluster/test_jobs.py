"""Jobs and packages without a cluster; tests/integration/test_jobs.py has one."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import aiohttp
import pytest

from fedvsr import config, environment
from fedvsr.cluster import job_server, jobs
from fedvsr.cluster import package as job_package
from fedvsr.errors import UserError
from tests.unit.cli.test_cli import fedvsr
from tests.unit.test_plugins import forget, write


def test_a_package_runs_from_its_own_folder(small_yaml: Path, tmp_path: Path) -> None:
    extra = tmp_path / "extra"
    extra.mkdir()
    (extra / "weights.pth").write_bytes(b"w")
    experiment = config.load_config(str(small_yaml))
    built = job_package.build(tmp_path / "package", experiment, [extra], source=True)
    assert set(built.sizes) == {"fedvsr", "run.yaml", "extra"}
    assert not list(built.folder.rglob("__pycache__"))
    assert config.load_config(str(built.folder / "run.yaml")) == experiment
    # Isolated from this checkout: the shipped source is complete, and knows its commit.
    program = (
        "import sys; sys.path.insert(0, '.'); import fedvsr.environment as e; "
        "print(e.__file__, e.git_commit())"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-c", program],
        cwd=built.folder,
        capture_output=True,
        text=True,
        check=True,
    )
    file, commit = done.stdout.split()
    assert (built.folder / file).is_relative_to(built.folder)
    assert commit == str(environment.git_commit())


def test_an_installed_source_is_not_shipped(small_yaml: Path, tmp_path: Path) -> None:
    experiment = config.load_config(str(small_yaml))
    built = job_package.build(tmp_path / "package", experiment, [], source=False)
    assert set(built.sizes) == {"run.yaml"}


def test_a_plugins_file_is_in_the_package(small_yaml: Path, tmp_path: Path) -> None:
    path = write(tmp_path, "mean")
    experiment = config.load_config(str(small_yaml), [f"algorithm.name={path}"])
    built = job_package.build(tmp_path / "package", experiment, [], source=False)
    assert set(built.sizes) == {"run.yaml", "plugins"}
    path.unlink()
    forget("mean")
    inside = config.load_config(str(built.folder / "run.yaml"))
    assert inside.config_hash() == experiment.config_hash()


def test_a_package_that_is_too_large_names_its_largest_files(
    small_yaml: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, mib in {"big.npy": 99, "small.npy": 2}.items():
        with (tmp_path / name).open("wb") as file:
            file.truncate(mib << 20)
    include = [part for name in ("small.npy", "big.npy") for part in ("--include", name)]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        assert fedvsr("submit", str(small_yaml), "--dry-run", *include) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: the job's package has 105.9 MB, and Ray takes 104.9 MB ")
    assert "(largest: big.npy 103.8 MB, small.npy 2.1 MB)" in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--set", "data.videos=[a.mp4]"], "data.videos: a.mp4 is relative"),
        (["--set", "model.weights=w.pth"], "model.weights: w.pth is relative"),
        (["--include", "nowhere"], "--include nowhere: there is no such file"),
        (["--include", "{tmp}/run.yaml"], "the job has another run.yaml already"),
        (["--package", "{tmp}"], "exists already; name a new folder"),
        (["--out", "results"], "--out results: give an absolute path on the cluster"),
        (["--set", "local.stpes=1"], "local.stpes is not a setting"),
    ],
)
def test_mistakes_are_reported_before_anything_is_sent(
    small_yaml: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    (tmp_path / "run.yaml").write_text("x")
    arguments = [argument.format(tmp=tmp_path) for argument in arguments]
    assert fedvsr("submit", str(small_yaml), "--dry-run", *arguments) == 2
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1


def test_a_shipped_file_may_have_a_relative_path(
    small_yaml: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.mp4").write_bytes(b"v")
    arguments = ["--set", "data.videos=[a.mp4]", "--include", str(tmp_path / "a.mp4")]
    assert fedvsr("submit", str(small_yaml), "--dry-run", *arguments) == 0
    assert "a.mp4 1 byte" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("ray://head:10001", "--address ray://head:10001: jobs go to the job server"),
        ("head:8265", "--address head:8265: jobs go to the job server"),
        ("http://127.0.0.1:{free}", "no Ray job server answers at http://127.0.0.1:{free} "),
        ("http://no.such.host.invalid:8265", "no Ray job server answers at http://no.such"),
    ],
)
def test_an_address_without_a_job_server_is_one_error_line(
    address: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    assert fedvsr("jobs", "--address", address.format(free=port)) == 2
    err = capsys.readouterr().err
    assert message.format(free=port) in err
    assert err.count("\n") == 1


def test_a_head_that_is_gone_while_its_log_is_followed_is_one_line() -> None:
    async def follow(address: str) -> None:
        async with aiohttp.ClientSession() as session, session.ws_connect(address):
            pass

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{free.getsockname()[1]}"
    with (
        pytest.raises(UserError, match=r"^no Ray job server answers at .*\(ClientConnectorError\)"),
        job_server.explained(address),
    ):
        asyncio.run(follow(address))


def test_default_address_of_the_job_server(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    assert job_server.resolve(None) == "http://127.0.0.1:8265"
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    assert job_server.resolve(None) == "http://127.0.0.1:8265"
    monkeypatch.setenv("RAY_ADDRESS", "http://a:1/")
    assert job_server.resolve(None) == "http://a:1"
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "https://b")
    assert job_server.resolve(None) == "https://b"
    assert job_server.resolve("http://c:2") == "http://c:2"


@pytest.mark.parametrize(
    ("status", "code", "expected"),
    [
        ("PENDING", None, None),
        ("RUNNING", None, None),
        ("SUCCEEDED", 0, 0),
        ("STOPPED", None, 130),
        ("FAILED", 2, 2),
        ("FAILED", -9, 137),
        ("FAILED", None, 1),
    ],
)
def test_exit_codes_are_those_of_a_shell(
    status: str, code: int | None, expected: int | None
) -> None:
    assert jobs._exit_code(status, code) == expected


def test_names_with_spaces_are_quoted_for_the_shell() -> None:
    arguments = ["python", "-m", "fedvsr", "run", "--out", "~/my results; rm"]
    assert jobs.shell_command(arguments) == "python -m fedvsr run --out ~/'my results; rm'"
    line = jobs.ray_command("http://h:1", "a b", arguments, "demo", "~/my results")
    assert "--working-dir 'a b'" in line
    assert line.endswith("-- python -m fedvsr run --out '~/my results; rm'")


def test_a_broken_log_continues_where_it_broke(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs.time, "sleep", lambda _: None)
    whole = "one\ntwo\nthree\nfour\n"
    # How many characters each connection gives before it breaks.
    connections = iter([5, 0, 0, 11, None])

    class Client:
        async def tail_job_logs(self, job_id: str):  # type: ignore[no-untyped-def]
            end = next(connections)
            for start in range(0, len(whole) if end is None else end, 3):
                yield whole[start : min(start + 3, len(whole) if end is None else end)]
            if end is not None:
                raise RuntimeError("closed unexpectedly")

        def get_job_info(self, job_id: str) -> SimpleNamespace:
            return SimpleNamespace(
                submission_id=job_id,
                status="SUCCEEDED",
                start_time=0,
                end_time=0,
                entrypoint="",
                driver_exit_code=0,
                metadata=None,
            )

    server = jobs.Jobs.__new__(jobs.Jobs)
    server.address, server._client = "http://h", Client()  # type: ignore[assignment]
    printed: list[str] = []
    assert server.follow("job", printed.append).exit_code == 0
    assert "".join(printed) == whole

    connections = iter([5] + [0] * 9)
    with pytest.raises(UserError, match="closed unexpectedly"):
        server.follow("job", printed.append)
