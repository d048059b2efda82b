"""`megatron-patch serve CHECKPOINT`, one process of it: a model behind OpenAI's interface."""

from __future__ import annotations

import contextlib
import signal
import socket
import sys
import threading
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from megatron_patch.arguments.serving import Serving, read_serve
from megatron_patch.arguments.serving_list import SERVE
from megatron_patch.cli.generate import run_and_leave
from megatron_patch.errors import UserError
from megatron_patch.language.sentences import in_language
from megatron_patch.processes.imports import many_imports

if TYPE_CHECKING:
    import uvicorn
    from starlette.applications import Starlette

    from megatron_patch.generate.asking import Asking
    from megatron_patch.generate.continuous_batching import Engine

# Connections beside those that are answered or wait: their clients have not asked yet, or ask how things are.
_OTHER_CONNECTIONS = 64


def main(argv: list[str]) -> None:
    """Read, load, answer until SIGTERM or Ctrl-C.

    Raises:
        SystemExit: status 2, with the sentence, for what a user can mend.
    """
    run_and_leave(SERVE.name, lambda: _serve(read_serve(argv).job), "stopped.")


def _serve(job: Serving) -> None:
    with many_imports():
        from megatron_patch.generate.asking import open_engine
        from megatron_patch.generate.ranks import join, leave
        from megatron_patch.generate.service import serve_along

    try:
        import starlette  # noqa: F401  looked for before minutes of reading weights
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise UserError(f"{error.name} is not installed; run: pip install 'megatron-patch[serve]'") from None
    model = job.generation.model
    ranks = join(model.tensor_model_parallel_size, model.pipeline_model_parallel_size)
    engine, asking = open_engine(
        job.generation, ranks, lambda line: print(in_language(line), flush=True) if ranks.speaks else None
    )
    # The web server has handlers of its own, gives its signal on to this one, and tells the other processes to stop.
    signal.signal(signal.SIGTERM, lambda *_: None)
    if ranks.speaks:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        _listen(job, engine, asking)
    else:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        serve_along(engine)
    leave()


def _listen(job: Serving, engine: Engine, asking: Asking) -> None:
    """The web server in this thread, the engine in another; each ends with the other.

    Raises:
        BaseException: what has ended the engine.
    """
    import uvicorn

    from megatron_patch.generate.prompt import prompt_maker
    from megatron_patch.generate.service import Service
    from megatron_patch.generate.web import Application
    from megatron_patch.generate.web_guard import Guard, is_this_machine

    service = Service(engine, job.queue)

    def answer() -> None:
        service.run()
        server.should_exit = True

    thread = threading.Thread(target=answer, name="engine", daemon=True)

    @contextlib.asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        thread.start()
        yield
        service.stop()
        thread.join()

    longest = job.generation.prompt_length + job.generation.answer_length
    raw = replace(asking, prompt=prompt_maker("none", asking.tokenizer), prompt_length=longest, system="")
    guard = Guard(job.api_key, is_this_machine(job.host))
    application = Application(
        service, replace(asking, prompt_length=longest), raw, job.name, longest, job.generation.answer_length, guard
    )

    class Server(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            for listening in (one for server in self.servers for one in server.sockets):
                _keep_alive(listening)

    server = Server(_config(job, application.app(lifespan), engine.slots + job.queue))
    line = f"Serving {job.name} on http://{job.host}:{job.port}/v1, up to {longest} tokens a request; Ctrl-C ends it."
    print(in_language(line), flush=True)
    server.run()
    if service.failure is not None:
        raise service.failure


def _config(job: Serving, app: Starlette, requests: int) -> uvicorn.Config:
    """The web server's settings; `requests` may be answered or wait at once.

    h11 bounds a request's headers, which uvicorn's other reader of HTTP does not.
    """
    import uvicorn

    from megatron_patch.generate.connections import Connection

    return uvicorn.Config(
        app, host=job.host, port=job.port, log_level="warning", timeout_graceful_shutdown=5,
        http=Connection, ws="none", limit_concurrency=requests + _OTHER_CONNECTIONS,
    )  # fmt: skip


def _keep_alive(listening: Any) -> None:
    """Let the system end connections whose client has gone without a word; each would keep a descriptor for ever.

    After a minute of silence it asks, four times, a quarter of a minute apart.

    Args:
        listening: a socket, whose connections have what is set here.
    """
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in (("TCP_KEEPIDLE", 60), ("TCP_KEEPINTVL", 15), ("TCP_KEEPCNT", 4)):
        if hasattr(socket, option):  # macOS has other names
            listening.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)


if __name__ == "__main__":
    main(sys.argv[1:])
