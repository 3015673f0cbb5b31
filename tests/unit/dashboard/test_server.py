"""The server of the live page, asked over loopback as a browser asks it."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from aiohttp import ClientResponse
from aiohttp.test_utils import TestClient, TestServer
from yarl import URL

from fedvsr.dashboard.server import Site
from tests.conftest import moving_texture
from tests.unit.cli.test_cli import fedvsr
from tests.unit.dashboard.test_index import damage
from tests.unit.report.synthetic import write_frames, write_run

TOKEN = "0123456789abcdef"
Ask = Callable[..., Awaitable[ClientResponse]]


def asked(
    root: Path, questions: Callable[[Ask], Awaitable[None]], only: Path | None = None
) -> None:
    """Start the server, and let `questions` ask it below its token, or `at` another place."""

    async def run() -> None:
        app = Site(root, only, "127.0.0.1", TOKEN).app()
        async with TestClient(TestServer(app)) as client:

            async def ask(path: str, at: str = f"/{TOKEN}/", **options: Any) -> ClientResponse:
                # Encoded already: an address is sent as it stands here.
                url = URL(str(client.make_url("/")).rstrip("/") + at + path, encoded=True)
                options = {"allow_redirects": False, "method": "GET", **options}
                return await client.session.request(url=url, **options)

            await questions(ask)

    asyncio.run(run())


@pytest.fixture
def results(tmp_path: Path) -> Path:
    folder = tmp_path / "results"
    run = write_run(folder, "run")
    gt = moving_texture(1, 48, 64)[0]
    write_frames(run, "b", np.roll(gt, 1, 0), gt)
    damage(write_run(folder, "broken") / "rounds.parquet")
    (tmp_path / "secret.txt").write_text("secret")
    return folder


def test_the_pages_and_what_they_load(results: Path) -> None:
    async def questions(ask: Ask) -> None:
        home = await ask("")
        assert home.status == 200
        text = await home.text()
        assert str(results) in text
        assert "http://" not in text
        assert "https://" not in text, "nothing comes from another host"
        for line in text.split('"'):
            if line.startswith("static/"):
                assert (await ask(line)).status == 200, line
        policy = home.headers["Content-Security-Policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert (await ask("run?id=run")).status == 200
        lines = (await (await ask("runs.json")).json())["runs"]
        assert {line["id"]: line["status"] for line in lines} == {
            "run": "finished",
            "broken": "damaged",
        }
        state = await (await ask("run.json?id=run")).json()
        assert state["psnr_db"] == 32.0
        (scene,) = (await (await ask("frames.json?id=run")).json())["frames"]
        picture = await ask(scene["pictures"][0]["url"])
        assert (picture.status, picture.content_type) == (200, "image/png")
        assert (await picture.read())[1:4] == b"PNG"
        broken = await (await ask("run.json?id=broken")).json()
        assert broken["errors"][0].startswith("rounds.parquet is damaged")

    asked(results, questions)


def test_who_does_not_know_the_token_is_refused(results: Path) -> None:
    async def questions(ask: Ask) -> None:
        for place in ("/", "//", "/wrong/", f"/{TOKEN}x/", f"/{TOKEN[:-1]}/", "/%C3%A4/", "/%ff/"):
            for path in ("", "runs.json", "static/page.css"):
                assert (await ask(path, at=place)).status == 403, place + path
        redirected = await ask("", at=f"/{TOKEN}")
        assert (redirected.status, redirected.headers["Location"]) == (302, f"{TOKEN}/")

    asked(results, questions)


HOSTS: list[tuple[dict[str, str], int]] = [
    ({"Host": "localhost:8000"}, 200),  # an SSH tunnel from another port
    ({"Host": "[::1]:8000"}, 200),
    ({"Host": "LOCALHOST"}, 200),
    ({"Host": "example.com"}, 403),  # a name that somebody lets lead to 127.0.0.1
    ({"Host": "localhost.example.com:80"}, 403),
    ({"Host": ""}, 403),
    ({"Host": "localhost:8000", "Origin": "http://localhost:8000"}, 200),
    ({"Host": "localhost:8000", "Origin": "http://localhost:9000"}, 403),
    ({"Origin": "http://example.com"}, 403),
    ({"Origin": "null"}, 403),
]


def test_pages_of_others_are_refused(results: Path) -> None:
    async def questions(ask: Ask) -> None:
        for headers, status in HOSTS:
            assert (await ask("runs.json", headers=headers)).status == status, headers

    asked(results, questions)


OUTSIDE = [
    "static/../../secret.txt",
    "static/..%2f..%2fsecret.txt",
    "static/page.html.j2",
    "..%2fsecret.txt",
    "run.json?id=../results/run",
    "run.json?id=..",
    "frames.json?id=../results/run",
    "run.json?id=%00",
    "run.json",
    "frame?id=run&name=../../../secret.txt",
    "frame?id=run&name=..%2f..%2f..%2fsecret.txt",
    "frame?id=run&name=b_002_lr.png",
    "frame?id=run&name=link_002_sr.png",
    "frame?id=..&name=secret.txt",
    "frame?name=b_002_sr.png",
]


def test_no_path_leads_out_of_the_runs(results: Path) -> None:
    (results / "run" / "frames" / "link_002_sr.png").symlink_to(results.parent / "secret.txt")

    async def questions(ask: Ask) -> None:
        for path in OUTSIDE:
            response = await ask(path)
            assert response.status in (403, 404), path
            assert b"secret" not in await response.read(), path

    asked(results, questions)


def test_what_has_not_changed_is_not_sent_again(results: Path) -> None:
    async def questions(ask: Ask) -> None:
        for path in ("runs.json", "run.json?id=run", "static/parts.js", ""):
            first = await ask(path)
            tag = {"If-None-Match": first.headers["ETag"]}
            again = await ask(path, headers=tag)
            assert (again.status, await again.read()) == (304, b""), path
        tag = {"If-None-Match": (await ask("runs.json")).headers["ETag"]}
        write_run(results, "newer", done=1, status="running")
        changed = await ask("runs.json", headers=tag)
        assert changed.status == 200
        assert len((await changed.json())["runs"]) == 3

    asked(results, questions)


def test_nothing_can_be_changed(results: Path) -> None:
    async def questions(ask: Ask) -> None:
        for method in ("POST", "PUT", "DELETE", "PATCH"):
            assert (await ask("run.json?id=run", method=method)).status == 405
        assert (await ask("", method="HEAD")).status == 200

    before = {path: path.stat().st_mtime_ns for path in results.rglob("*")}
    asked(results, questions)
    assert {path: path.stat().st_mtime_ns for path in results.rglob("*")} == before


def test_one_run_alone(results: Path) -> None:
    async def questions(ask: Ask) -> None:
        assert "All runs" not in await (await ask("")).text()
        assert (await (await ask("run.json")).json())["id"] == "run"
        assert (await (await ask("run.json?id=broken")).json())["id"] == "run"

    asked(results / "run", questions, only=results / "run")


def test_the_server_loads_no_heavy_library() -> None:
    code = (
        "import sys, fedvsr.dashboard.server\n"
        "print({'torch', 'ray', 'matplotlib', 'pandas'} & {*sys.modules})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


def test_what_cannot_be_served_is_one_line(
    results: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        line = f"error: --port {port} is in use; choose another, or leave it out for a free one\n"
        assert fedvsr("dashboard", str(results), "--port", str(port)) == 2
        assert capsys.readouterr().err == line
        run = str(results / "run")
        assert fedvsr("watch", run, "--serve", "--port", str(port)) == 2
        assert capsys.readouterr().err == line
    # An address that is kept for documentation.
    assert fedvsr("dashboard", str(results), "--host", "192.0.2.1") == 2
    line = capsys.readouterr().err
    assert line.startswith("error: --host 192.0.2.1: cannot listen there: ")
    assert line.count("\n") == 1
    assert fedvsr("dashboard", str(results / "none")) == 2
    assert "there is no folder" in capsys.readouterr().err
    assert fedvsr("watch", "run", "--out", str(results), "--port", "80") == 2
    assert capsys.readouterr().err == "error: --host and --port go with --serve\n"
