"""What an explainer file says about itself in its metadata."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import onnx

from onnxlift.errors import ModelError
from onnxlift.explainer import METADATA_KEY

_DESCRIBED = "batched emit expose inputs output output_shape outputs reference references target".split()


def description(model: onnx.ModelProto) -> dict[str, Any] | None:
    """What the metadata of an explainer says about it; None for a plain model. Raises ModelError if it is damaged."""
    found = [entry.value for entry in model.metadata_props if entry.key == METADATA_KEY]
    if not found:
        return None
    try:
        about = json.loads(found[-1])
        missing = sorted(set(_DESCRIBED) - set(about))
    except (ValueError, TypeError) as error:
        raise ModelError(f"the metadata {METADATA_KEY!r} of the explainer is damaged: {error}. Rewrite it.") from error
    if missing:
        raise ModelError(f"the metadata {METADATA_KEY!r} of the explainer lacks {missing}: rewrite it")
    return dict(about)


def explains(about: Mapping[str, Any]) -> str:
    """One line that says what an explainer with this metadata explains."""
    target, over = about["target"], about.get("stepped_over")
    if isinstance(target, list):
        neuron = f"neuron {target[0] if len(target) == 1 else target} of "
    else:
        neuron = {
            "argmax": "the largest neuron of ",
            "input": "the neurons given as `target` of ",
            "weights": "a weighted sum of ",
        }.get(target, "")
    inputs = ", ".join(map(repr, about["inputs"]))
    behind = f" (the input of {over})" if over else ""
    builder = about.get("builder")
    made = f"{builder['spec']} of each sample" if builder else None
    reference = made or {
        "paired": "a reference per sample",
        "shared": "shared references",
        "grouped": "several references per sample",
        "baked": "stored references",
    }.get(about["reference"], about["reference"])
    return f"explains {neuron}{about['output']!r}{behind} by {inputs} against {reference}, rule {about.get('rule')}"
