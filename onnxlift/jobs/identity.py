"""What tells a job from another one, so that the parts of the one are never taken for those of the other."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from onnxlift.files import files_of_weights, load
from onnxlift.jobs.task import Task, Work
from onnxlift.session import runtime

_PIECE = 1 << 22
_DIGITS = 16  # of a hash


def identity(task: Task, work: Work, chunk: int, store: str) -> dict[str, str]:
    """What the results and their parts depend on, by the words for it in messages.

    The model is known by its content and that of its external data; data by name, size and time of change, because
    they may be too many to read twice. Folders do not count, so that everything may be moved together, nor do
    providers and the engine, which may change between two runs of a job: parts then differ by rounding.
    """
    given = {**task.options, "reference": task.reference} if task.reference is not None else dict(task.options)
    form = {name: value for name, value in vars(task.form).items() if name != "genome"}
    return {
        "the model": _content(task.model),
        "the data": _look(task.data),
        "the genome": "none" if task.form.genome is None else _look(task.form.genome),
        "the numbers of images": json.dumps(form),
        **{f"--{name.replace('_', '-')}": _value(value) for name, value in sorted(given.items())},
        "--batch-size": str(task.batch_size),
        "--seed": str(task.seed),
        "--tolerance": str(task.tolerance),
        "the number of samples": str(work.samples),
        "--chunk-size": str(chunk),
        "the format of the parts": store,
        "onnxlift": metadata.version("onnxlift"),
        "ONNX Runtime": runtime().__version__,
    }


def differences(old: Mapping[str, str], new: Mapping[str, str]) -> str:
    """What differs, for people; empty if nothing does."""
    names = [name for name in {**old, **new} if old.get(name) != new.get(name)]
    return ", ".join(f"{name} ({old.get(name, 'not given')} then, {new.get(name, 'not given')} now)" for name in names)


def _content(model: Path) -> str:
    """A hash of a model's file and of the external data that it refers to."""
    files = [model, *files_of_weights(load(model, weights=False), model.parent)]
    return _hash(piece for file in files for piece in _pieces(file))


def _look(path: Path) -> str:
    """A name, and a hash of the sizes and times of change of a file, or of all files in a folder."""
    files = [path]
    if path.is_dir():
        files = sorted(Path(folder) / name for folder, _, names in os.walk(path) for name in names)
    looks = ((file.relative_to(path.parent), file.stat()) for file in files)
    return f"{path.name} {_hash(f'{name}|{stat.st_size}|{stat.st_mtime_ns}|'.encode() for name, stat in looks)}"


def _value(value: Any) -> str:
    """An option as it was given; files and arrays by their content."""
    if isinstance(value, Mapping):
        return json.dumps({str(name): _value(each) for name, each in sorted(value.items())})
    if isinstance(value, np.ndarray):
        return f"{value.dtype} {list(value.shape)} {_hash([np.ascontiguousarray(value).tobytes()])}"
    if isinstance(value, str) and Path(value).is_file():  # a plan
        return _hash(_pieces(Path(value)))
    return str(value)


def _pieces(file: Path) -> Iterator[bytes]:
    with file.open("rb") as stream:
        while piece := stream.read(_PIECE):
            yield piece


def _hash(pieces: Iterable[bytes]) -> str:
    found = hashlib.sha256()
    for piece in pieces:
        found.update(piece)
    return found.hexdigest()[:_DIGITS]
