"""An explainer beside the original model's own forward: the measurement that most cases share."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from operators import profile
from results import Result, ratio
from timing import Array, interleaved, runs

import onnxlift

FORWARD = "the model's forward"


@dataclass(frozen=True)
class Variant:
    """One way to explain the samples: its name, the reference given at run time, the goal as a ratio, the options."""

    name: str
    reference: Array | None = None
    goal: float | None = None
    options: dict[str, Any] = field(default_factory=dict)


def beside_forward(model: Path, x: Array, forward_of: Array, variants: list[Variant]) -> Result:
    """Time each variant against a forward of `forward_of`, as one session.run and through `Explainer`."""
    result = Result()
    for variant in variants:
        given = feed(x, variant.reference)
        file = rewritten(model, **variant.options)
        explainer = onnxlift.Explainer(file, progress=False)
        name, chunked = variant.name, f"{variant.name}, Explainer"
        actions = {FORWARD: runs(model, {"x": forward_of}), name: runs(file, given), chunked: partial(explainer, given)}
        times = interleaved(actions)
        lines = [ratio(each, times, (each, FORWARD), variant.goal) for each in (name, chunked)]
        result.rows += lines
        took, gap = np.median(times[FORWARD]), explainer(given).relative_gap.max()
        result.notes.append(
            f"{name}: the forward takes {1e3 * took:.1f} ms; the completeness gap is at most {gap:.1e} of t(x) - t(r)."
        )
        if any(line.reached is False for line in lines):
            result.operators[name] = profile(file, given)
    return result


def rewritten(model: Path, **options: Any) -> Path:
    """The file of an explainer, beside the model and in place of one that was there."""
    path = model.with_name("explainer.onnx")
    onnxlift.rewrite_file(model, path, **options)
    return path


def feed(x: Array, reference: Array | None) -> dict[str, Array]:
    """What an explainer is run on."""
    return {"x": x} if reference is None else {"x": x, "x_reference": reference}
