"""Requests of the Open Inference Protocol by Triton's own clients, over HTTP and gRPC alike."""

from __future__ import annotations

from concurrent.futures import Future
from types import ModuleType
from typing import Any

import numpy as np
import tritonclient.grpc
import tritonclient.http
from tritonclient.utils import np_to_triton_dtype

Arrays = dict[str, np.ndarray]

CLIENTS = {"http": tritonclient.http, "grpc": tritonclient.grpc}


class Client:
    """One connection to a server, for one thread.

    `protocol`: "http" (tensors in binary) or "grpc". `address`: "127.0.0.1:port".
    """

    def __init__(self, protocol: str, address: str) -> None:
        self._module: ModuleType = CLIENTS[protocol]
        self._as_json = {"as_json": True} if protocol == "grpc" else {}
        self.api = self._module.InferenceServerClient(address)

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.api.close()

    def tensors(self, feed: Arrays) -> list[Any]:
        """The arrays as inputs of a request, each with its own shape and data type."""
        inputs = []
        for name, array in feed.items():
            inputs.append(self._module.InferInput(name, array.shape, np_to_triton_dtype(array.dtype)))
            inputs[-1].set_data_from_numpy(array)
        return inputs

    def infer(self, model: str, feed: Arrays, outputs: tuple[str, ...] = (), version: str = "") -> Arrays:
        """What the server answers: the named outputs, or all. Raises InferenceServerException where it refuses."""
        return self.answer(model, feed, outputs, version)[0]

    def answer(self, model: str, feed: Arrays, outputs: tuple[str, ...] = (), version: str = "") -> tuple[Arrays, str]:
        """As `infer`, with the version of the model that the server used."""
        wanted = [self._module.InferRequestedOutput(name) for name in outputs] or None
        return received(self.api.infer(model, self.tensors(feed), model_version=version, outputs=wanted))

    def max_batch_size(self, model: str) -> int:
        """How many samples the server joins at most."""
        config = self.api.get_model_config(model, **self._as_json)
        return int(config.get("config", config)["max_batch_size"])

    def executions(self, model: str) -> int:
        """How many times the server has run a model; joined requests count once."""
        [stats] = self.api.get_inference_statistics(model, **self._as_json)["model_stats"]
        return int(stats["execution_count"])


def received(result: Any) -> tuple[Arrays, str]:
    """The arrays of an answer by name, and the version of the model that made them."""
    said = result.get_response()
    if not isinstance(said, dict):  # gRPC gives a message
        return {output.name: result.as_numpy(output.name) for output in said.outputs}, said.model_version
    return {output["name"]: result.as_numpy(output["name"]) for output in said["outputs"]}, said["model_version"]


def at_once(address: str, model: str, feeds: list[Arrays]) -> list[Any]:
    """Send all requests over gRPC before the first answer; returns the answers, or errors, in their order."""
    with Client("grpc", address) as client:
        futures: list[Future[Arrays]] = [Future() for _ in feeds]

        def settle(future: Future[Arrays], result: Any, error: Exception | None) -> None:
            if error is None:
                future.set_result(received(result)[0])
            else:
                future.set_exception(error)

        for feed, future in zip(feeds, futures, strict=True):
            client.api.async_infer(
                model, client.tensors(feed), lambda result, error, future=future: settle(future, result, error)
            )
        return [future.exception(timeout=120) or future.result() for future in futures]
