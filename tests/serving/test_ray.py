"""Jobs on Ray: what is killed is made again, and nothing twice."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from laws import model

import onnxlift
from onnxlift.formats import read_all

pytest.importorskip("ray")

N, CHUNK, ACTORS = 480, 4, 3
RNG = np.random.default_rng(8)
X = RNG.standard_normal((N, 512)).astype(np.float32)
WIDE = RNG.standard_normal((512, 4096)).astype(np.float32) / 20
DEEP = RNG.standard_normal((4096, 4096)).astype(np.float32) / 64
W = RNG.standard_normal((4096, 3)).astype(np.float32)
MODEL = model(
    "g (float[N, 512] x) => (float[N, 3] y) "
    "{ a = MatMul(x, WIDE) b = Relu(a) c = MatMul(b, DEEP) d = Relu(c) y = MatMul(d, W) }",
    WIDE=WIDE,
    DEEP=DEEP,
    W=W,
)
OPTIONS = {"target": "argmax", "reference": "zeros"}
JOB = f"""
import sys
from pathlib import Path
from onnxlift.jobs import Task, run
task = Task(Path("model.onnx"), Path("data.npy"), options={OPTIONS}, batch_size={CHUNK})
run(task, Path(sys.argv[1]), engine=sys.argv[2], chunk_size={CHUNK}, resume=True)
"""
COMMAND = [sys.executable, "-c", "from onnxlift.cli import main; main()", "explain", "model.onnx", "data.npy"]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to work in. Ray is told of as many processors as three actors need, and of no GPU."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RAY_OVERRIDE_RESOURCES", json.dumps({"CPU": 2 * ACTORS, "GPU": 0}))
    onnx.save(MODEL, "model.onnx")
    np.save("data.npy", X)
    return tmp_path


def start(out: str, engine: str = "ray") -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", JOB, out, engine])


def finished(parts: Path) -> dict[str, int]:
    """The marks of the parts that are finished, and when they were written."""
    return {mark.name: mark.stat().st_mtime_ns for mark in parts.glob("part-*.json")}


def wait_for(parts: Path, count: int, process: subprocess.Popen[bytes]) -> None:
    while len(finished(parts)) < count:
        assert process.poll() is None
        time.sleep(0.002)


def actors() -> list[int]:
    """The processes that make parts, of whichever job on this machine; it has no other."""
    found = []
    for each in Path("/proc").glob("[0-9]*"):
        try:
            name = (each / "cmdline").read_bytes()
        except OSError:
            continue
        if name.startswith(b"ray::MapWorker(MapBatches(_Actor))"):
            found.append(int(each.name))
    return found


def check(out: str) -> None:
    """Every sample is there once, to the bit as in a single process."""
    got = read_all(out)
    assert isinstance(got, dict)
    expected = onnxlift.Explainer(MODEL, batch_size=CHUNK, tolerance=1, **OPTIONS)(X).arrays()
    assert set(got) == set(expected)
    for name, array in expected.items():
        assert got[name].tobytes() == array.tobytes(), name
    assert not Path(f"{out}.parts").exists()


def test_the_driver_is_killed_at_a_third(folder: Path, table: Any) -> None:
    parts, count = Path("out.zarr.parts"), N // CHUNK
    driver = start("out.zarr")
    wait_for(parts, count // 3, driver)
    driver.kill()
    driver.wait()
    while actors():  # whose parts are finished, until Ray ends them
        time.sleep(0.05)
    before = finished(parts)
    assert count // 3 <= len(before) < count
    resumed = start("out.zarr")
    wait_for(parts, len(before) + 1, resumed)
    assert before.items() <= finished(parts).items()
    assert resumed.wait() == 0
    check("out.zarr")
    table.add(
        "Ray", f"driver killed, {len(before)} of {count} parts finished", f"resumed: all {N} samples once, bits equal"
    )


def test_a_worker_is_killed(folder: Path, table: Any) -> None:
    driver = start("out.npz")
    wait_for(Path("out.npz.parts"), 10, driver)
    victim = actors()[0]
    os.kill(victim, signal.SIGKILL)
    assert driver.wait() == 0
    check("out.npz")
    table.add("Ray", f"1 of {ACTORS} workers killed", f"not noticed: all {N} samples once, bits equal")


def test_a_job_changes_engines(folder: Path) -> None:
    for engine in ("ray", "local"):
        process = start("out.npz", engine)
        wait_for(Path("out.npz.parts"), {"ray": 20, "local": 40}[engine], process)
        process.kill()
        process.wait()
    assert start("out.npz").wait() == 0
    check("out.npz")


def test_few_chunks_are_for_all_actors(folder: Path, table: Any) -> None:
    np.save("data.npy", X[: 3 * ACTORS * CHUNK])
    driver = start("out.npz")
    seen: set[int] = set()
    while driver.poll() is None:
        seen |= {actor for actor in actors() if processor_time(actor) > 0}
        time.sleep(0.02)
    assert driver.returncode == 0
    assert len(seen) == ACTORS
    table.add("Ray", f"{3 * ACTORS} chunks", f"made by {len(seen)} actors")


def processor_time(process: int) -> float:
    """Seconds."""
    try:
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0
    return int(fields[11]) / os.sysconf("SC_CLK_TCK")


def test_no_gpu_is_told_at_once(folder: Path, table: Any) -> None:
    begin = time.monotonic()
    options = [
        "--out",
        "out.npz",
        "--target",
        "argmax",
        "--reference",
        "zeros",
        "--engine",
        "ray",
        "--providers",
        "cuda",
    ]
    done = subprocess.run([*COMMAND, *options], capture_output=True, text=True, timeout=100)
    assert done.returncode == 2
    assert done.stderr.startswith("error: CUDA is asked for, but the Ray cluster has no GPU: give --providers cpu")
    assert done.stderr.count("\n") == 1
    assert sorted(path.name for path in folder.iterdir()) == ["data.npy", "model.onnx"]
    table.add("Ray", "CUDA asked for, no GPU", f"refused in {time.monotonic() - begin:.0f} s")


def test_what_goes_wrong_in_a_worker_is_told(folder: Path) -> None:
    data = X.copy()
    data[N - 3, 7] = np.nan
    np.save("data.npy", data)
    options = ["--out", "out.npz", "--target", "argmax", "--reference", "zeros", "--engine", "ray", "--chunk-size", "4"]
    done = subprocess.run([*COMMAND, *options], capture_output=True, text=True, timeout=300)
    assert done.returncode == 2
    said = done.stderr.splitlines()[-1]  # in front of it may be what Ray says
    assert said.startswith(f"error: input 'x' has NaN in sample {N - 3} (1 such value in samples {N - 4} to {N - 1}")
    assert "parts are kept in out.npz.parts" in said
    assert "Traceback" not in done.stderr
    assert len(finished(Path("out.npz.parts"))) > 0
