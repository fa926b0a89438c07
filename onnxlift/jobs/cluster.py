"""The engine "ray": actors of Ray Data make the parts, on one machine or on many that see the same files."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from onnxlift import errors
from onnxlift.errors import OnnxliftError, OptionError
from onnxlift.jobs.parts import Parts
from onnxlift.jobs.stores import Store
from onnxlift.jobs.task import Task, Work
from onnxlift.jobs.worker import Job, make_part
from onnxlift.session import CUDA, Provider, runtime

_THREADS = 2  # of an actor on the CPU: with more, each gains less; with fewer, there are more copies of the model


def start(providers: Sequence[Provider] | None) -> None:
    """Connect to the cluster that RAY_ADDRESS names, or start one on this machine that only this machine can reach.

    Raises OptionError: Ray is missing, no cluster answers, or CUDA is asked for and the cluster has no GPU.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    address = os.environ.get("RAY_ADDRESS")
    if address is None:  # then Ray, which asks nobody for a password, need not listen to the network
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise OptionError(f"--engine ray needs Ray: pip install 'onnxlift[ray]' ({error})") from error
    try:
        ray.init(address or "local", logging_level=logging.ERROR, log_to_driver=False, ignore_reinit_error=True)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise OptionError(f"Ray does not answer: {error}. Check RAY_ADDRESS, or leave it out.") from error
    if _wants_cuda(providers) and not ray.cluster_resources().get("GPU"):
        raise OptionError(
            "CUDA is asked for, but the Ray cluster has no GPU: give --providers cpu, or add nodes with GPUs"
        )


@dataclass(frozen=True)
class _Plan:
    """What an actor is told."""

    task: Task
    store: Store
    parts: Parts


class _Actor:
    """Makes parts. The explainer and the data are opened for the first one, so that what goes wrong can be told."""

    def __init__(self, plan: _Plan) -> None:
        self._plan = plan
        self._opened = ExitStack()
        self._work: Work | None = None

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[Any]]:
        """The numbers of parts, and what went wrong with each: the name of an error's class, and its message."""
        number, *bounds = (int(batch[key][0]) for key in ("number", "start", "stop"))
        try:
            if self._work is None:
                self._work = self._opened.enter_context(self._plan.task.open())
            make_part(self._work, self._plan.store, self._plan.parts, number, (bounds[0], bounds[1]))
        except OnnxliftError as error:
            return {"number": [number], "error": [type(error).__name__], "message": [str(error)]}
        return {"number": [number], "error": [""], "message": [""]}


def make_parts(job: Job, missing: list[int], advance: Callable[[int], object]) -> Iterator[int]:
    """Make parts by actors, each with a GPU, or with a few processors where none is to be used.

    An actor that dies is started again, and what it was at is done again, as often as needed: Ray Data's default.
    """
    if not missing:
        return
    import ray

    resources = ray.cluster_resources()
    gpus = int(resources.get("GPU", 0))
    if gpus and _may_use_cuda(job.task.providers):
        actors, options = gpus, {"num_gpus": 1}
    else:
        threads = int(min(_THREADS, *(node["Resources"].get("CPU", 0) or _THREADS for node in ray.nodes())))
        actors, options = max(1, int(resources["CPU"] // threads)), {"num_cpus": threads}
    ray.data.DataContext.get_current().enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    rows = [dict(zip(("number", "start", "stop"), (n, *job.chunks.bounds(n)), strict=True)) for n in missing]
    parts = Parts(job.parts.folder.resolve())
    # A block for each chunk, so that all actors have some; made here, because a task that makes blocks may wait for the
    # processors that the actors have.
    done = ray.data.from_items(rows, override_num_blocks=len(rows)).map_batches(
        _Actor,
        fn_constructor_args=(_Plan(job.task.absolute(), job.store, parts),),
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(size=min(actors, len(rows)), max_tasks_in_flight_per_actor=1),
        **options,
    )
    for row in done.iter_rows():
        if row["error"]:
            raise getattr(errors, row["error"])(row["message"])
        begin, end = job.chunks.bounds(row["number"])
        advance(end - begin)
        yield row["number"]


def _wants_cuda(providers: Sequence[Provider] | None) -> bool:
    return CUDA in [provider if isinstance(provider, str) else provider[0] for provider in providers or ()]


def _may_use_cuda(providers: Sequence[Provider] | None) -> bool:
    """Whether CUDA is asked for, or nothing is and ONNX Runtime could use it."""
    return _wants_cuda(providers) or (providers is None and CUDA in runtime().get_available_providers())
