"""A server for one explainer, which speaks the Open Inference Protocol over HTTP and gRPC: how it starts and stops.

It stands on aiohttp and grpcio. The KServe SDK (0.21) was tried first: it makes a Python list of every tensor that
comes as bytes (2,000 digits take 1.9 s there and 0.2 s here), answers most requests that do not fit with 500, binds
every address and lets any client unload the model. MLServer (1.7) takes no tensors as bytes over HTTP.
"""

from __future__ import annotations

import asyncio
import logging
import signal

from aiohttp import web

from onnxlift.errors import OptionError
from onnxlift.runtime import Explainer
from onnxlift.serving.grpc_front import GrpcFront
from onnxlift.serving.http_front import HttpFront
from onnxlift.serving.service import SECONDS, Limits, Service

_IDLE_SECONDS = 75  # until an unused connection is closed; longer than proxies keep theirs


def serve(explainer: Explainer, name: str, host: str, port: int, grpc_port: int | None, limits: Limits) -> None:
    """Answer requests until the process is told to stop (SIGINT, SIGTERM), then those that are under way.

    Prints where it listens, once it does. Port 0 is any free one; without `grpc_port` there is no gRPC.
    Raises OptionError where it cannot listen, DataError where the protocol lacks the type of an input.
    """
    asyncio.run(_serve(Service(explainer, name, limits), host, port, grpc_port))


async def _serve(service: Service, host: str, port: int, grpc_port: int | None) -> None:
    logging.getLogger("aiohttp.server").disabled = True  # a traceback for every request that is not HTTP
    application = HttpFront(service).application()
    runner = web.AppRunner(application, access_log=None, keepalive_timeout=_IDLE_SECONDS, shutdown_timeout=SECONDS)
    server = GrpcFront(service).server()
    await runner.setup()
    try:
        try:
            await web.TCPSite(runner, host, port).start()
        except OSError as error:
            reason = str(error.strerror).rpartition(": ")[2]  # asyncio puts the address in front
            raise OptionError(
                f"cannot listen on {_address(host, port)} ({reason}): choose another --host or --port"
            ) from error
        where = [f"http://{_address(host, runner.addresses[0][1])}/v2/models/{service.signature.name}"]
        if grpc_port is not None:
            try:
                bound = server.add_insecure_port(_address(host, grpc_port))
            except RuntimeError as error:
                raise OptionError(
                    f"cannot listen on {_address(host, grpc_port)} for gRPC: choose another --grpc-port, or off"
                ) from error
            await server.start()
            where.append(f"grpc://{_address(host, bound)}")
        print(f"serving {' and '.join(where)}\n{service.explainer}", flush=True)
        await _told_to_stop()
    finally:
        await asyncio.gather(runner.cleanup(), server.stop(SECONDS))
        service.close()


async def _told_to_stop() -> None:
    """Wait for a signal; the next one has its usual effect again."""
    stop, loop = asyncio.Event(), asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    await stop.wait()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.remove_signal_handler(number)


def _address(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
