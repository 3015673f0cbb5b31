"""A job server on this machine that speaks Ray's protocol, and can fall silent."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

from aiohttp import web

JOB = "demo-20260101-000000-abcd"
# Ray's client passes it to aiohttp.
SSL_WARNING = "ignore:ssl=None is deprecated:DeprecationWarning"


class Server:
    """Answers as Ray's job server does, until it is told to stop."""

    def __init__(self) -> None:
        self.status, self.out = "RUNNING", "/results"
        self.is_silent = False
        self.logs = list[tuple[str, bool]]()
        """For each connection that follows the log: what it sends, and whether it then closes.

        `|` parts pieces; PAUSE waits for a second, END ends the job, FREEZE silences the server.
        """
        self.num_asked = 0
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        assert self._ready.wait(30)

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(self._start())
        self._ready.set()
        self._loop.run_forever()
        self._loop.run_until_complete(self._runner.cleanup())
        tasks = asyncio.all_tasks(self._loop)
        for task in tasks:
            task.cancel()
        self._loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
        self._loop.close()

    async def _start(self) -> None:
        app = web.Application(middlewares=[self._answer])
        app.router.add_get("/api/version", self._version)
        app.router.add_get("/api/packages/{rest:.*}", self._yes)
        app.router.add_post("/api/jobs/", self._submit)
        app.router.add_get("/api/jobs/{job}", self._job)
        app.router.add_get("/api/jobs/{job}/logs", self._logs)
        app.router.add_get("/api/jobs/{job}/logs/tail", self._tail)
        app.router.add_post("/api/jobs/{job}/stop", self._stop)
        app.router.add_delete("/api/jobs/{job}", self._yes)
        self._runner = web.AppRunner(app, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        self.port = self._runner.addresses[0][1]

    @web.middleware
    async def _answer(self, request: web.Request, handler: Any) -> web.StreamResponse:
        if self.is_silent:
            await asyncio.sleep(3600)
        response: web.StreamResponse = await handler(request)
        return response

    async def _version(self, _: web.Request) -> web.Response:
        return web.json_response(
            {"version": "4", "ray_version": "2.50.0", "ray_commit": "", "session_name": ""}
        )

    async def _yes(self, _: web.Request) -> web.Response:
        return web.json_response({"deleted": True})

    async def _submit(self, request: web.Request) -> web.Response:
        job_id = (await request.json())["submission_id"]
        return web.json_response({"job_id": job_id, "submission_id": job_id})

    async def _stop(self, _: web.Request) -> web.Response:
        self.status = "STOPPED"
        return web.json_response({"stopped": True})

    async def _job(self, request: web.Request) -> web.Response:
        self.num_asked += 1
        return web.json_response(
            {
                "type": "SUBMISSION",
                "job_id": None,
                "submission_id": request.match_info["job"],
                "driver_info": None,
                "status": self.status,
                "entrypoint": "python -m fedvsr run",
                "message": "",
                "metadata": {"fedvsr": "demo", "fedvsr_out": self.out},
                "driver_exit_code": 0,
            }
        )

    async def _logs(self, _: web.Request) -> web.Response:
        return web.json_response({"logs": "".join(text for text, _ in self.logs)})

    async def _tail(self, request: web.Request) -> web.WebSocketResponse:
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        text, closes = self.logs.pop(0)
        for piece in text.split("|"):
            if piece == "PAUSE":
                await asyncio.sleep(1.0)
            elif piece == "END":
                self.status = "SUCCEEDED"
            elif piece == "FREEZE":
                self.is_silent = True
            else:
                await socket.send_str(piece)
        if not closes:
            await asyncio.sleep(3600)
        return socket
