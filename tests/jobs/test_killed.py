"""Jobs in processes of their own: killed at any moment, and bounded in memory whatever the size of the data."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import onnx
import pytest
from laws import model

import onnxlift
from onnxlift.formats import read_all

N = 60
RNG = np.random.default_rng(8)
X = RNG.standard_normal((N, 40)).astype(np.float32)
W = RNG.standard_normal((40, 3)).astype(np.float32)
MODEL = model("g (float[N, 40] x) => (float[N, 3] y) { h = MatMul(x, W) y = Relu(h) }", W=W)
OPTIONS = {"target": 1, "reference": "zeros"}
JOB = f"""
import sys
from pathlib import Path
from onnxlift.jobs import Task, run
task = Task(Path("model.onnx"), Path("data.npy"), options={OPTIONS}, batch_size=int(sys.argv[3]))
run(task, Path(sys.argv[1]), chunk_size=int(sys.argv[2]), resume=True)
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    onnx.save(MODEL, "model.onnx")
    np.save("data.npy", X)
    return tmp_path


def start(out: str, chunk: int, batch: int) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", JOB, out, str(chunk), str(batch)])


def finished(parts: Path) -> dict[str, int]:
    """The marks of the parts that are finished, and when they were written."""
    return {mark.name: mark.stat().st_mtime_ns for mark in parts.glob("part-*.json")}


@pytest.mark.parametrize("suffix", [".npz", ".zarr", ".parquet"])
def test_killed_at_any_moment(folder: Path, suffix: str) -> None:
    """No part that was finished is lost or made again, and every sample is there once, to the bit."""
    moments = random.Random(suffix)
    parts = Path(f"out{suffix}.parts")
    before: dict[str, int] = {}
    for wanted in sorted(moments.sample(range(1, N // 2), 2)):
        process = start(f"out{suffix}", 1, 1)
        try:
            while len(finished(parts)) < wanted:
                assert process.poll() is None
                time.sleep(0.001)
            time.sleep(moments.uniform(0, 0.02))
        finally:
            process.kill()
            process.wait()
        now = finished(parts)
        assert before.items() <= now.items()
        assert wanted <= len(now) < N
        before = now
    assert start(f"out{suffix}", 1, 1).wait() == 0
    expected = onnxlift.Explainer(MODEL, batch_size=1, **OPTIONS)(X).arrays()
    got = read_all(f"out{suffix}")
    assert isinstance(got, dict)
    assert expected.keys() - got.keys() <= {"y_reference"}
    for name, array in got.items():
        assert array.tobytes() == expected[name].tobytes(), name
    assert [path.name for path in folder.iterdir() if path.name.startswith("out")] == [f"out{suffix}"]
    assert not [path for path in folder.rglob("*") if path.name.endswith((".tmp", ".partial"))]


@pytest.mark.skipif(sys.platform != "linux", reason="memory is measured as Linux tells it")
def test_memory_is_that_of_a_chunk(folder: Path) -> None:
    """200 MB of data, and more of results, take hardly more memory than a tenth of them."""

    def peak(samples: int) -> int:
        """In bytes, of the process that explains so many samples."""
        np.lib.format.open_memmap("data.npy", "w+", np.float32, (samples, 40)).flush()
        process = start(f"out{samples}.npz", 50_000, 10_000)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        assert process.returncode == 0
        return usage.ru_maxrss * 1024

    assert peak(1_250_000) - peak(125_000) < 50 << 20
