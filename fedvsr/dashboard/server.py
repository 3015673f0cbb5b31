"""The server of the live page: it answers who knows its token, and writes nothing."""

from __future__ import annotations

import asyncio
import errno
import hashlib
import ipaddress
import json
import re
import secrets
import signal
import socket
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from aiohttp import web
from jinja2 import PackageLoader

from fedvsr.dashboard.index import Index
from fedvsr.dashboard.state import RunReader
from fedvsr.errors import UserError
from fedvsr.report.assets import environment, static
from fedvsr.report.saved_frames import saved_frames

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

# By name in an address: the package, and the kind of text.
_STATIC = {
    "uPlot.iife.min.js": ("fedvsr.report", "text/javascript"),
    "uPlot.min.css": ("fedvsr.report", "text/css"),
    "parts.js": ("fedvsr.report", "text/javascript"),
    "page.css": ("fedvsr.report", "text/css"),
    "live.js": ("fedvsr.dashboard", "text/javascript"),
    "list.js": ("fedvsr.dashboard", "text/javascript"),
    "run.js": ("fedvsr.dashboard", "text/javascript"),
    "live.css": ("fedvsr.dashboard", "text/css"),
}
_HEADERS = {
    "Cache-Control": "private, no-cache",
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; "
        "img-src 'self' data:; connect-src 'self'; base-uri 'none'; form-action 'none'; "
        "frame-ancestors 'none'"
    ),
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
# Runs whose state is kept in memory, those that were asked for last.
_MOST_READERS = 8
_COMPRESSED_BYTES = 1024
# Hosts that stand for all addresses of this machine.
_ANY = ("0.0.0.0", "::")
# Seconds that open requests are given when the server ends.
_GOODBYE_S = 1.0


class Site:
    """The pages of the runs at or below a folder.

    Args:
        root: the folder.
        only: a run's folder, if it alone is to be shown.
        host: the address that the server listens at.
        token: what an address must contain.
    """

    def __init__(self, root: Path, only: Path | None, host: str, token: str) -> None:
        self._root, self._only, self._token = root, only, token
        self._index = Index(root, only)
        self._readers = OrderedDict[str, RunReader]()
        self._names = {"localhost", host.lower(), socket.gethostname().lower()}
        # A file changes only with the program.
        self._static = {
            name: (static(name, package).encode(), kind)
            for name, (package, kind) in _STATIC.items()
        }
        self._templates = environment(PackageLoader("fedvsr.dashboard", "static"))

    def app(self) -> web.Application:
        """The application. Every address in it begins with the token."""
        app = web.Application(middlewares=[self._guard])
        routes: dict[str, Handler] = {
            "": self._home,
            "run": self._run,
            "runs.json": self._lines,
            "run.json": self._state,
            "frames.json": self._frames,
            "frame": self._frame,
            "static/{name}": self._file,
        }
        for path, handler in routes.items():
            app.router.add_get(f"/{{token}}/{path}", handler)
        app.router.add_get("/{token}", self._slash)
        return app

    @web.middleware
    async def _guard(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Refuse what does not know the token, or comes by a page of another site."""
        refusal = self._refusal(request)
        if refusal:
            return web.Response(status=403, text=f"{refusal}\n", headers=_HEADERS)
        try:
            response = await handler(request)
        except web.HTTPException as error:
            error.headers.update(_HEADERS)
            raise
        response.headers.update(_HEADERS)
        return response

    def _refusal(self, request: web.Request) -> str:
        """Why a request is refused; empty if it is not."""
        # A site of somebody else may let its name lead to this machine, and then ask as its page.
        # It cannot let an address lead anywhere else.
        if not self._is_own(request.headers.get("Host", "")):
            return "this host name is not the server's own; use localhost or its address"
        origin = request.headers.get("Origin")
        if origin and urlsplit(origin).netloc != request.headers.get("Host"):
            return "asked by a page of another site"
        given = request.path.split("/")[1]
        if not secrets.compare_digest(given.encode(errors="replace"), self._token.encode()):
            return "wrong token; use the whole address that the command has printed"
        return ""

    def _is_own(self, host: str) -> bool:
        name = re.sub(r":\d+$", "", host).strip("[]").lower()
        if name in self._names:
            return True
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return False
        return True

    async def _slash(self, request: web.Request) -> web.StreamResponse:
        # Relative, as all addresses: a tunnel or a proxy may change what comes before.
        raise web.HTTPFound(f"{self._token}/")

    async def _home(self, request: web.Request) -> web.StreamResponse:
        if self._only is not None:
            return self._page(request, "run.html.j2")
        return self._page(request, "list.html.j2")

    async def _run(self, request: web.Request) -> web.StreamResponse:
        return self._page(request, "run.html.j2")

    def _page(self, request: web.Request, template: str) -> web.StreamResponse:
        single = self._only is not None
        title = self._only.name if self._only is not None else str(self._root)
        text = self._templates.get_template(template).render(title=title, single=single)
        return _answer(request, text.encode(), "text/html")

    async def _lines(self, request: web.Request) -> web.StreamResponse:
        lines = await asyncio.to_thread(self._index.lines)
        return _json(request, {"runs": lines})

    async def _state(self, request: web.Request) -> web.StreamResponse:
        reader = await self._reader(request)
        return _json(request, await asyncio.to_thread(reader.state))

    async def _frames(self, request: web.Request) -> web.StreamResponse:
        reader = await self._reader(request)
        return _json(request, await asyncio.to_thread(reader.frames))

    async def _reader(self, request: web.Request) -> RunReader:
        run_id, folder = await self._asked(request)
        reader = self._readers.setdefault(run_id, RunReader(run_id, folder))
        self._readers.move_to_end(run_id)
        while len(self._readers) > _MOST_READERS:
            self._readers.popitem(last=False)
        return reader

    async def _frame(self, request: web.Request) -> web.StreamResponse:
        _, folder = await self._asked(request)
        name = request.query.get("name", "")

        def read() -> bytes | None:
            # Compared with the names of the run's pictures, and never part of a path.
            path = next((s.path for s in saved_frames(folder) if s.path.name == name), None)
            return path.read_bytes() if path and not path.is_symlink() else None

        content = await asyncio.to_thread(read)
        if content is None:
            raise web.HTTPNotFound(text="the run has no such picture\n")
        return _answer(request, content, "image/png")

    async def _file(self, request: web.Request) -> web.StreamResponse:
        known = self._static.get(request.match_info["name"])
        if known is None:
            raise web.HTTPNotFound(text="there is no such file\n")
        return _answer(request, *known)

    async def _asked(self, request: web.Request) -> tuple[str, Path]:
        """The run that a request names, or the only one."""
        run_id = self._only.name if self._only is not None else request.query.get("id", "")
        folder = await asyncio.to_thread(self._index.folder, run_id)
        if folder is None:
            raise web.HTTPNotFound(text="there is no such run here\n")
        return run_id, folder


def _json(request: web.Request, value: Any) -> web.StreamResponse:
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    return _answer(request, text.encode(), "application/json")


def _answer(request: web.Request, content: bytes, kind: str) -> web.StreamResponse:
    """The content, or 304 if the browser has it already."""
    tag = hashlib.sha256(content).hexdigest()[:32]
    if any(known.value == tag for known in request.if_none_match or ()):
        response = web.Response(status=304)
    else:
        text = not kind.startswith("image/")
        response = web.Response(body=content, content_type=kind, charset="utf-8" if text else None)
        if text and len(content) > _COMPRESSED_BYTES:
            response.enable_compression()
    response.etag = tag
    return response


def serve(
    root: Path, only: Path | None, host: str, port: int, ready: Callable[[str], None]
) -> None:
    """Serve the live page until Ctrl-C or SIGTERM.

    Args:
        root: folder of the runs.
        only: a run's folder, if it alone is to be shown.
        host: address to listen at.
        port: 0 for a free one.
        ready: called with the page's address once the server answers.

    Raises:
        UserError: the server cannot listen there.
    """
    asyncio.run(_serve(root, only, host, port, ready))


async def _serve(
    root: Path, only: Path | None, host: str, port: int, ready: Callable[[str], None]
) -> None:
    token = secrets.token_hex(16)
    # Without a log of requests, which would hold the token.
    app = Site(root, only, host, token).app()
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=_GOODBYE_S)
    await runner.setup()
    try:
        site = web.TCPSite(runner, host, port)
        try:
            await site.start()
        except OSError as error:
            raise UserError(_why_not(host, port, error)) from None
        stop = asyncio.Event()
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
        port = runner.addresses[0][1]
        shown = socket.gethostname() if host in _ANY else f"[{host}]" if ":" in host else host
        ready(f"http://{shown}:{port}/{token}/")
        await stop.wait()
    finally:
        await runner.cleanup()


def _why_not(host: str, port: int, error: OSError) -> str:
    if error.errno == errno.EADDRINUSE:
        return f"--port {port} is in use; choose another, or leave it out for a free one"
    if error.errno == errno.EACCES:
        return f"--port {port}: not allowed; choose one from 1024"
    reason = (error.strerror or str(error)).lower()
    return f"--host {host}: cannot listen there: {reason}; give an address of this machine"
