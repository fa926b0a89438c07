"""Peak memory of an explanation, each in a process of its own, beside captum's."""

from __future__ import annotations

from pathlib import Path

from results import Result, row
from timing import fresh, limit_threads, peak, resident

REPEATS = 3
SAMPLES = 8


def measure(folder: Path) -> Result:
    path = folder / "resnet18.onnx"
    fresh(_write, path)
    found: dict[str, list[int]] = {}
    for _ in range(REPEATS):
        for reference in ("zeros", "paired"):
            found.setdefault(f"Explainer, {reference}", []).append(fresh(_explainer, path, reference))
            found.setdefault(f"session.run, {reference}", []).append(fresh(_session, path, reference))
        found.setdefault("captum", []).append(fresh(_captum))
    goals = {"Explainer, zeros": 0.6, "Explainer, paired": 0.6}
    result = Result()
    for name in found.keys() - {"captum"}:
        shares = [ours / theirs for ours, theirs in zip(found[name], found["captum"], strict=True)]
        result.rows.append(row(f"{name}, over captum", shares, goals.get(name), "×"))
    result.rows.sort(key=lambda line: line.what)
    result.rows += [row(name, [peak / 2**20 for peak in peaks], None, " MiB") for name, peaks in found.items()]
    return result


def _write(path: Path) -> None:
    import torch
    from images import IMAGE, noise
    from networks import export, made, resnet18

    x = torch.from_numpy(noise(SAMPLES, *IMAGE))
    export(made(resnet18, x), x, path)


def _explainer(path: Path, reference: str) -> int:
    """Bytes above the loaded libraries: rewriting, loading and explaining."""
    import numpy as np

    import onnxlift

    limit_threads()
    before = resident()
    x = np.random.default_rng(0).standard_normal((SAMPLES, 3, 224, 224), np.float32)
    explainer = onnxlift.Explainer(path, target=0, reference=reference, progress=False)
    explainer(x, reference=np.zeros_like(x) if reference == "paired" else None)
    return peak() - before


def _session(path: Path, reference: str) -> int:
    """The same with all samples in one session.run."""
    import numpy as np
    from forward import rewritten
    from timing import runs

    limit_threads()
    before = resident()
    x = np.random.default_rng(0).standard_normal((SAMPLES, 3, 224, 224), np.float32)
    feed = {"x": x, "x_reference": np.zeros_like(x)} if reference == "paired" else {"x": x}
    runs(rewritten(path, target=0, reference=reference), feed)()
    return peak() - before


def _captum() -> int:
    import torch
    from captum.attr import DeepLift
    from networks import resnet18
    from timing import THREADS

    torch.set_num_threads(THREADS)
    before = resident()
    network = resnet18().eval().requires_grad_(False)
    x = torch.randn(SAMPLES, 3, 224, 224)
    DeepLift(network).attribute(x, torch.zeros_like(x), target=0)
    return peak() - before
