"""Real connections to a web server in this process: how long it waits for a request, and how many it keeps."""

from __future__ import annotations

import asyncio
import contextlib

import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from uvicorn.server import ServerState

from megatron_patch.generate.connections import Connection

POST = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n"
PATIENCE = 0.5
FAR = 20.0  # seconds in which anything ends that is not stuck


class Server:
    """A server that gives a request's body back, and what has become of its requests."""

    def __init__(self, limit=None):
        self.left, self.limit, self.answer_at = [], limit, asyncio.Event()
        self.answer_at.set()

    async def echo(self, request: Request):
        try:
            body = await request.body()
        except ClientDisconnect:
            self.left.append(request)
            return PlainTextResponse("")
        await self.answer_at.wait()
        return PlainTextResponse(body)

    @contextlib.asynccontextmanager
    async def running(self):
        """Its port, while it runs."""
        app = Starlette(routes=[Route("/", self.echo, methods=["POST"])])
        config = uvicorn.Config(app, http=Connection, ws="none", limit_concurrency=self.limit, log_config=None)
        config.load()
        self.state = ServerState()
        loop = asyncio.get_running_loop()
        listening = await loop.create_server(lambda: config.http_protocol_class(config, self.state, {}, loop), "127.0.0.1", 0)
        async with listening:
            yield listening.sockets[0].getsockname()[1]


async def ended(reader):
    """Everything until the server ends the connection."""
    with contextlib.suppress(ConnectionError):
        return await asyncio.wait_for(reader.read(), FAR)
    return b""


@pytest.fixture(autouse=True)
def patience(monkeypatch):
    monkeypatch.setattr(Connection, "patience", PATIENCE)


@pytest.mark.parametrize("begun", [b"", b"POST / HTT", b"POST / HTTP/1.1\r\nHost: x\r\n", POST % 100 + b"abc"])
def test_a_request_that_does_not_come_is_not_waited_for(begun):
    """Whether nothing comes, or now and then some of it: uvicorn's own timer begins anew with each byte, if it runs."""

    async def go():
        server = Server()
        async with server.running() as port:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(begun)
            end = asyncio.ensure_future(ended(reader))
            while not end.done():
                if begun:
                    with contextlib.suppress(ConnectionError):
                        writer.write(b"a")
                await asyncio.sleep(PATIENCE / 5)
            assert await end == b"" and not server.state.connections
            writer.close()
            await asyncio.wait_for(asyncio.gather(*server.state.tasks), FAR)
            assert len(server.left) == begun.startswith(POST % 100)

    asyncio.run(asyncio.wait_for(go(), FAR))


def test_an_answer_may_take_as_long_as_it_takes():
    """Also the second one of a connection."""

    async def go():
        server = Server()
        server.answer_at.clear()
        async with server.running() as port:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            for body in (b"first", b"second"):
                writer.write(POST % len(body) + body)
                await asyncio.sleep(2 * PATIENCE)
                server.answer_at.set()
                said = await asyncio.wait_for(reader.readuntil(body), FAR)
                assert said.startswith(b"HTTP/1.1 200")
                server.answer_at.clear()
            writer.close()

    asyncio.run(asyncio.wait_for(go(), FAR))


def test_connections_are_bounded(monkeypatch):
    """A request too many is told so; connections without one are ended at twice the number."""
    monkeypatch.setattr(Connection, "patience", FAR)

    async def go():
        server = Server(limit=3)
        async with server.running() as port:
            idle = [await asyncio.open_connection("127.0.0.1", port) for _ in range(6)]
            more = [await asyncio.open_connection("127.0.0.1", port) for _ in range(3)]
            assert [await ended(reader) for reader, _ in more] == [b""] * 3
            assert len(server.state.connections) == 6
            reader, writer = idle[0]
            writer.write(POST % 1 + b"x")
            assert (await asyncio.wait_for(reader.readline(), FAR)).startswith(b"HTTP/1.1 503")
            for _, one in idle + more:
                one.close()

    asyncio.run(asyncio.wait_for(go(), FAR))


def test_headers_are_bounded():
    async def go():
        async with Server().running() as port:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(b"POST / HTTP/1.1\r\n" + b"a: b\r\n" * 4_000)
            assert b" 400 " in await ended(reader)
            writer.close()

    asyncio.run(asyncio.wait_for(go(), FAR))
