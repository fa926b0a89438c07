"""TF-MoDISco finds the motif that a network looks for, in the files that `onnxlift convert` writes."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from click.testing import CliRunner
from serving.conftest import Table

from onnxlift.cli import main

Array = np.ndarray[Any, Any]

ROOT = Path(__file__).parents[2]
VENV = ROOT / os.environ.get("ONNXLIFT_MODISCO_VENV", ".venv-modisco")
EXPERIMENTS = ROOT / "models" / "experiments"

SAMPLES, LENGTH = 400, 200
SEQLETS = 500
BACKGROUND = (0.3, 0.2, 0.2, 0.3)  # of the sequences that the network was trained on
PATIENCE = 300  # seconds


@dataclass(frozen=True)
class Planted:
    """A motif of JASPAR, and which output of the network tells it."""

    name: str
    profile: str
    target: int

    def matrix(self) -> Array:
        """Frequencies of A, C, G, T, `[width, 4]`."""
        counts = json.loads((EXPERIMENTS / "motifs.json").read_text())["motifs"][self.profile]["counts"]
        matrix = np.array([counts[base] for base in "ACGT"], float).T
        return matrix / matrix.sum(axis=1, keepdims=True)

    def sequences(self) -> Array:
        """Random sequences with one instance each, at random places, on random strands: float32 `[N, 4, L]`."""
        rng = np.random.default_rng(0)
        bases = rng.choice(4, (SAMPLES, LENGTH), p=BACKGROUND)
        for row in bases:
            instance = np.array([rng.choice(4, p=frequencies) for frequencies in self.matrix()])
            start = rng.integers(LENGTH - len(instance))
            row[start : start + len(instance)] = instance if rng.integers(2) else 3 - instance[::-1]
        return np.ascontiguousarray(np.eye(4, dtype=np.float32)[bases].swapaxes(1, 2))


PLANTED = (Planted("GATA1", "MA0035.2", 1), Planted("TAL1", "MA0091.1", 2))

LAYOUTS = {
    "modisco": ("scores.npz", ["-s", "scores.onehot.npz", "-a", "scores.npz"]),
    "chrombpnet": ("chrombpnet.h5", ["-i", "chrombpnet.h5"]),
    "bpnet": ("bpnet.h5", ["-i", "bpnet.h5"]),
}
"""What is written, and the options by which `modisco motifs` reads it."""


@pytest.fixture(scope="module")
def modisco() -> Path:
    """The command of modisco-lite."""
    command = VENV / "bin" / "modisco"
    if not command.exists():
        pytest.fail(f"there is no modisco-lite in {VENV}: `make test-serving` installs it", pytrace=False)
    return command


@pytest.fixture(scope="module", params=PLANTED, ids=[planted.name for planted in PLANTED])
def explained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Planted, Path]:
    """A motif, and the folder with the sequences that have it and their explanation."""
    planted: Planted = request.param
    folder = tmp_path_factory.mktemp(planted.name)
    np.savez(folder / "sequences.npz", x=planted.sequences())
    options = f"--target {planted.target} --reference dinuc-shuffle:20 --emit contributions --emit hypothetical -q"
    files = [EXPERIMENTS / "deeplift_genomics.onnx", folder / "sequences.npz", "--out", folder / "out.npz"]
    result = CliRunner().invoke(main, ["explain", *map(str, files), *options.split()])
    assert result.exit_code == 0, result.output
    return planted, folder


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_planted_motif_is_found(explained: tuple[Planted, Path], layout: str, modisco: Path, table: Table) -> None:
    planted, folder = explained
    out, options = LAYOUTS[layout]
    files = [folder / "out.npz", folder / out, "--layout", layout, "--data", folder / "sequences.npz", "-q"]
    result = CliRunner().invoke(main, ["convert", *map(str, files)])
    assert result.exit_code == 0, result.output

    call = [str(modisco), "motifs", *options, "-n", str(SEQLETS), "-w", str(LENGTH), "-o", f"{layout}.motifs.h5"]
    start = time.monotonic()
    run = subprocess.run(call, cwd=folder, capture_output=True, text=True, timeout=PATIENCE)
    seconds = time.monotonic() - start
    assert run.returncode == 0, run.stderr

    with h5py.File(folder / f"{layout}.motifs.h5") as file:
        patterns = list(file["pos_patterns"].values())
        top = max(patterns, key=lambda pattern: int(pattern["seqlets/n_seqlets"][0]))
        seqlets = int(top["seqlets/n_seqlets"][0])
        found = {name: top[name][:] for name in ("sequence", "contrib_scores", "hypothetical_contribs")}
    likeness, weight = alike(planted.matrix(), found)
    table.add(
        f"TF-MoDISco, layout {layout}",
        f"{planted.name} in {SAMPLES} sequences",
        f"{len(patterns)} pattern(s); the first has {seqlets} seqlets, correlates {likeness:.3f} with JASPAR, has "
        f"{weight:.0%} of its contributions there; {seconds:.0f} s",
    )
    assert seqlets > SAMPLES / 4
    assert likeness > 0.9
    assert weight > 0.9
    # Where it matters most, other letters would lower the output; contributions of the letters there say 0 of others.
    core = np.abs(found["contrib_scores"]).sum(axis=1).argsort()[-4:]
    assert (found["hypothetical_contribs"][core].min(axis=1) < -0.1 * found["contrib_scores"][core].max(axis=1)).all()


def alike(matrix: Array, pattern: Mapping[str, Array]) -> tuple[float, float]:
    """How a pattern agrees with a motif, at the best place and strand.

    The correlation of the letters' frequencies with the motif's, where positions count as much as they contribute; and
    the share of the pattern's contributions that lie there.
    """
    sequence, contributions = pattern["sequence"], np.abs(pattern["contrib_scores"]).sum(axis=1)
    width, best = len(matrix), (-1.0, 0.0)
    for strand in (matrix, matrix[::-1, ::-1]):
        for start in range(len(sequence) - width + 1):
            weights = np.repeat(contributions[start : start + width], 4)
            covariance = np.cov(sequence[start : start + width].ravel(), strand.ravel(), aweights=weights)
            correlation = covariance[0, 1] / np.sqrt(covariance[0, 0] * covariance[1, 1])
            best = max(best, (float(correlation), float(weights[::4].sum() / contributions.sum())))
    return best
