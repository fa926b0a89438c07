"""An explainer that answers requests, whichever protocol they come by: one after the other, counted, limited.

They are computed in one thread, because ONNX Runtime uses all processors for one: on two cores, two at once took 0.8 to
1.5 times as long. It also keeps what `Explainer` measures of time and memory true.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

from onnxlift.arrays import Array
from onnxlift.errors import OnnxliftError
from onnxlift.runtime import Explainer
from onnxlift.serving.metrics import Metrics
from onnxlift.serving.protocol import VERSION, Request, Signature

SECONDS = 30  # for a client to send a request, or to take the answer; for requests under way when the server stops
_LONGEST = 1000  # characters of a refusal, which may quote the request; gRPC has 8 KB for it
_GONE = 499  # as proxies call a client that does not wait for its answer
_LOG = logging.getLogger(__name__)
_T = TypeVar("_T")


@dataclass(frozen=True)
class Limits:
    """`size`: of a request, in bytes. `concurrency`: how many requests may be under way; all but one wait."""

    size: int
    concurrency: int


class Refusal(Exception):
    """A request that is not answered: the HTTP status, which gRPC has a code for, and one paragraph."""

    def __init__(self, status: int, message: str) -> None:
        text = " ".join(message.split())
        super().__init__(text if len(text) <= _LONGEST else f"{text[:_LONGEST]} ...")
        self.status = status


class Service:
    """An explainer and its requests. Raises DataError where the protocol lacks the type of an input."""

    def __init__(self, explainer: Explainer, name: str, limits: Limits) -> None:
        self.explainer, self.limits = explainer, limits
        self.signature = Signature(name, explainer)
        self.metrics = Metrics()
        self._under_way = 0
        self._thread = ThreadPoolExecutor(max_workers=1)

    def close(self) -> None:
        """Wait for what is being computed, and compute nothing more."""
        self._thread.shutdown(cancel_futures=True)

    def check(self, name: str, version: str) -> None:
        """Refuse a model that is not here."""
        if name != self.signature.name or version not in ("", VERSION):
            raise Refusal(404, f"no model {name!r} of version {version or VERSION}: this is {self.signature.name!r}")

    async def answer(self, protocol: str, work: Callable[[], Awaitable[_T]]) -> _T:
        """What `work` makes of a request, if not too many are under way. Raises Refusal.

        It goes on where the client does not wait for it, and counts until it is done.
        """
        with self.metrics.request(protocol) as outcome:
            try:
                if self._under_way >= self.limits.concurrency:
                    raise Refusal(503, f"{self._under_way} requests are under way, as many as may be: try again")
                self._under_way += 1
                task = asyncio.ensure_future(work())
                task.add_done_callback(self._done)
                return await asyncio.shield(task)
            except asyncio.CancelledError:
                outcome.code = _GONE
                raise
            except Exception as error:
                refusal = refused(error)
                outcome.code = refusal.status
                raise refusal from error

    def _done(self, task: asyncio.Future[_T]) -> None:
        self._under_way -= 1
        if not task.cancelled():
            task.exception()  # has been told, or there is nobody to tell

    async def compute(self, work: Callable[[], _T]) -> _T:
        """Do what keeps the processors busy, when it is its turn."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    def explain(self, request: Request) -> dict[str, Array]:
        """All outputs of the explainer, by name. Raises DataError."""
        explanation, found = self.explainer.part(request.arrays, 0, lambda samples: None)
        self.metrics.explained(explanation, found)
        return explanation.arrays()


def refused(error: Exception) -> Refusal:
    """Why a request failed, for the client. What is not the client's doing is logged."""
    match error:
        case Refusal():
            return error
        case OnnxliftError():
            return Refusal(400, str(error))
        case TimeoutError():
            return Refusal(408, f"the request did not arrive, or the answer was not taken, within {SECONDS} s")
        case ConnectionError():
            return Refusal(_GONE, "the client has gone")
        case MemoryError():
            return Refusal(503, "out of memory: send fewer samples at a time")
    _LOG.error("a request failed", exc_info=error)
    return Refusal(500, "the server failed on this request; its log says why")
