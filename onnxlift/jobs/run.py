"""A job from its beginning to its end: plan the chunks, have the engine make the missing parts, make OUT of them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from onnxlift.arrays import leftovers
from onnxlift.completeness import Completeness, joined
from onnxlift.errors import DataError, OnnxliftError
from onnxlift.formats.layouts import LAYOUTS
from onnxlift.jobs import cluster
from onnxlift.jobs.identity import identity
from onnxlift.jobs.parts import ArrayFacts, Mark, Parts, claimed
from onnxlift.jobs.stores import check_out, store_of
from onnxlift.jobs.task import Task
from onnxlift.jobs.worker import Chunks, Job, make_part
from onnxlift.progress import bar
from onnxlift.session import CPU

ENGINES = ("local", "ray")

Engine = Callable[[Job, list[int], Callable[[int], object]], Iterator[int]]
"""Makes missing parts, and yields the number of each one that is finished; tells how many more samples are done."""


@dataclass(frozen=True)
class Outcome:
    """What a job came to.

    description: the explainer's metadata. providers: a line for each way in which parts ran. arrays: of the results by
    name. found: whether the contributions of all samples add up. notes: what the user should know.
    """

    description: Mapping[str, Any]
    providers: Sequence[str]
    arrays: Mapping[str, ArrayFacts]
    found: Completeness
    notes: Sequence[str]


def run(
    task: Task,
    out: Path,
    *,
    layout: str | None = None,
    engine: str = "local",
    chunk_size: int | None = None,
    resume: bool = False,
    progress: bool | None = None,
) -> Outcome:
    """Explain all samples of a task, and write `out`.

    Finished parts are kept in OUT.parts until `out` is complete, whatever ends the process. Because parts are the
    checkpoint, a job may go on with another engine. (Ray Data's own CheckpointConfig resumes what Ray has written, and
    needs a pool of actors more to filter what is done.)

    Args:
        out: .npz, .h5, or a folder .zarr or .parquet; what the layout wants, where one is given.
        layout: one of LAYOUTS.
        engine: "local", in this process; "ray", on the cluster that RAY_ADDRESS names, or on this machine.
        chunk_size: how many samples make a part; default: 64 MiB of data and results.
        resume: go on with the parts that are there, if there are any.
        progress: as of `Explainer`.

    Raises:
        OptionError, DataError, ModelError, RuleError: as `Explainer`; the job cannot be resumed; `out` cannot be
            written. What is wrong with numbers of a late sample is found when it is read.
    """
    check_out(out, layout)
    planning = task
    if engine == "ray":
        cluster.start(task.providers)
        planning = replace(task, providers=[CPU])
    with planning.open() as work:
        size = chunk_size or work.chunk_size()
        chunks = Chunks(work.samples, size)
        store = store_of(out, layout, work.samples, size)
        folder = Path(f"{out}.parts")
        moved = resume and Parts(folder).moved(len(chunks))
        if not moved:
            store.check(out, task, work)
        with claimed(folder, identity(task, work, size, store.name), resume=resume) as parts:
            for path in [out] if layout is None else LAYOUTS[layout].files(out):
                for partial in leftovers(path):  # of this job: no other one can be at `out`
                    partial.unlink(missing_ok=True)
            make: Engine = _local if engine == "local" else cluster.make_parts
            job = Job(task, work, store, parts, chunks)
            marks = _completed(job, make, progress)
            notes = [f"the data's {name!r} is no input of the explainer, and is left out" for name in work.left_out]
            if not moved:
                with _telling_what_is_kept(job, marks):
                    notes += store.finish(parts.results, marks, out, task, work)
        return Outcome(
            work.explainer.description,
            list(dict.fromkeys(mark.provider for mark in marks)),
            {name: _whole(name, marks) for name in marks[0].arrays},
            joined(mark.found for mark in marks),
            notes,
        )


def _completed(job: Job, make: Engine, progress: bool | None) -> list[Mark]:
    """What is told of all parts, when those that were missing are made. Raises OnnxliftError, after which some are."""
    marks = {number: mark for number in range(len(job.chunks)) if (mark := job.parts.mark(number)) is not None}
    missing = [number for number in range(len(job.chunks)) if number not in marks]
    samples = job.chunks.samples or 1
    with _telling_what_is_kept(job, marks), bar(samples, progress, more=samples > 1) as advance:
        advance(sum(mark.stop - mark.start for mark in marks.values()))
        for number in make(job, missing, advance):
            mark = job.parts.mark(number)
            assert mark is not None
            marks[number] = mark
            _check_joins(next(iter(marks.values())), mark, samples)
    return [marks[number] for number in range(len(job.chunks))]


@contextmanager
def _telling_what_is_kept(job: Job, marks: Collection[Any]) -> Iterator[None]:
    """Adds to the message of an error that parts are finished, as many as there are marks then."""
    try:
        yield
    except OnnxliftError as error:
        if not marks:
            raise
        raise type(error)(
            f"{str(error).rstrip('.')}. {len(marks)} of {len(job.chunks)} parts are kept in {job.parts.folder}: "
            "--resume goes on with them, as long as the data are the same"
        ) from error


def _local(job: Job, missing: list[int], advance: Callable[[int], object]) -> Iterator[int]:
    """Make parts in this process."""
    for number in missing:
        make_part(job.work, job.store, job.parts, number, job.chunks.bounds(number), advance)
        yield number


def _check_joins(first: Mark, mark: Mark, samples: int) -> None:
    """Raises DataError where the arrays of two parts are not of one whole."""
    for name, facts in mark.arrays.items():
        whole = first.arrays[name]
        lead = int(whole.split)
        text = np.dtype(facts.dtype).kind == np.dtype(whole.dtype).kind == "U"
        if (facts.split, facts.content, facts.shape[lead:]) != (whole.split, whole.content, whole.shape[lead:]) or not (
            text or facts.dtype == whole.dtype
        ):
            raise DataError(
                f"output {name!r} differs between chunks and cannot be joined: explain all samples at once, with "
                f"--chunk-size {samples}"
            )


def _whole(name: str, marks: list[Mark]) -> ArrayFacts:
    """Of an array, when its parts are joined."""
    facts = marks[0].arrays[name]
    return replace(facts, shape=(marks[-1].stop, *facts.shape[1:])) if facts.split else facts
