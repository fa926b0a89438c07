"""The folder in which a job keeps its finished parts: OUT.parts, beside OUT."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

from onnxlift.arrays import replacing
from onnxlift.completeness import Completeness, Miss
from onnxlift.errors import OptionError
from onnxlift.jobs.identity import differences

_JOB, _LOCK = "job.json", "lock"


@dataclass(frozen=True)
class ArrayFacts:
    """Of an array in a part: its dtype and shape; whether it has a row for each sample, and a hash where it has not."""

    dtype: str
    shape: tuple[int, ...]
    split: bool
    content: str = ""


@dataclass(frozen=True)
class Mark:
    """What is told of a finished part: its samples, what ran it, its arrays by name, and whether they add up."""

    start: int
    stop: int
    provider: str
    arrays: Mapping[str, ArrayFacts]
    found: Completeness


class Parts:
    """The parts of a job. A part is finished when its mark is there, which is written last and at once.

    `results`: where the format's files lie.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.results = folder / "results"

    def finish(self, number: int, mark: Mark) -> None:
        """Mark a part as finished, when its files are on the disk."""
        _write(self._mark(number), asdict(mark))

    def mark(self, number: int) -> Mark | None:
        """What is told of a finished part; None of one that is not."""
        about = _read(self._mark(number))
        if about is None:
            return None
        found = about["found"]
        worst = tuple(Miss(**miss | {"place": tuple(miss["place"])}) for miss in found["worst"])
        arrays = {
            name: ArrayFacts(**facts | {"shape": tuple(facts["shape"])}) for name, facts in about["arrays"].items()
        }
        first, last = found["differences"]
        completeness = Completeness(**found | {"worst": worst, "differences": (first, last)})
        return Mark(**about | {"arrays": arrays, "found": completeness})

    def moved(self, count: int) -> bool:
        """Whether all of `count` parts are finished, and their files have moved to where they are to stay."""
        return not self.results.exists() and all(self.mark(number) is not None for number in range(count))

    def _mark(self, number: int) -> Path:
        return self.folder / f"part-{number:06}.json"


@contextlib.contextmanager
def claimed(folder: Path, job: Mapping[str, str], *, resume: bool) -> Iterator[Parts]:
    """The parts of a job, for this process alone. At the end the folder is deleted, unless an error leaves some in it.

    Raises OptionError: another process has them, they are those of another job, or they are there without `resume`.
    """
    if folder.exists() and not folder.is_dir():
        raise OptionError(f"{folder}, where parts are kept, is a file: move it away, or choose another --out")
    if folder.is_dir() and any(folder.iterdir()) and not (folder / _LOCK).is_file():
        raise OptionError(f"{folder}, where parts are kept, holds other files: move it away, or choose another --out")
    try:
        folder.mkdir(exist_ok=True)
        lock = (folder / _LOCK).open("ab")
    except OSError as error:
        raise OptionError(f"Cannot write {folder}: {error.strerror}. Choose a writable path for --out.") from error
    with lock:
        if not _lock(lock) or not _is(lock, folder / _LOCK):
            raise OptionError(f"another process is at work on {folder}: wait for it, or choose another --out")
        _check(folder, job, resume)
        _write(folder / _JOB, job)
        for partial in folder.rglob(".*.tmp"):  # of a process that was killed
            partial.unlink(missing_ok=True)
        parts = Parts(folder)
        try:
            yield parts
        except BaseException:
            if not any(folder.glob("part-*.json")):
                shutil.rmtree(folder, ignore_errors=True)
            raise
        shutil.rmtree(folder, ignore_errors=True)
    if sys.platform == "win32":  # where an open file cannot be deleted
        shutil.rmtree(folder, ignore_errors=True)


def _check(folder: Path, job: Mapping[str, str], resume: bool) -> None:
    """Whether there are no parts, or those of this job. Raises OptionError."""
    old = _read(folder / _JOB)
    if old is None:
        return
    if not resume:
        raise OptionError(
            f"{folder} holds the parts of an explanation that did not end: go on with it by --resume, or delete the "
            "folder to begin anew"
        )
    changed = differences(old, job)
    if changed:
        raise OptionError(
            f"{folder} holds the parts of another job, which --resume cannot go on with: {changed}. Give what was "
            "given then, choose another --out, or delete the folder to begin anew"
        )


def _lock(file: IO[bytes]) -> bool:
    """Lock a file until it is closed, or the process ends in whatever way; False where another process has it."""
    try:
        if sys.platform == "win32":
            import msvcrt

            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _is(file: IO[bytes], path: Path) -> bool:
    """Whether an open file is still the one at a path: who had the lock may have deleted it."""
    with contextlib.suppress(OSError):
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    return False


def _write(path: Path, value: Any) -> None:
    with replacing(path) as file:
        file.write(json.dumps(value, indent=1).encode())
        file.flush()
        os.fsync(file.fileno())


def _read(path: Path) -> dict[str, Any] | None:
    """What `_write` wrote; None where it did not come to its end."""
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
    return dict(value)
