"""What an explainer file says about itself in its metadata."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnx

from onnxlift.errors import ModelError, OptionError
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


def served(model: onnx.ModelProto, path: Path) -> dict[str, Any]:
    """The same of a file that is to be served. Raises OptionError where it is a plain model."""
    about = description(model)
    if about is None:
        raise OptionError(
            f"{path} is a plain model, and an explainer is served: make one with `onnxlift rewrite {path} "
            "explainer.onnx --target argmax --reference zeros`"
        )
    return about


def conserves(about: Mapping[str, Any]) -> bool:
    """Whether contributions are meant to add up to t(x) - t(r): by every rule but the gradient family's."""
    return bool(about.get("conserves", True))


def must_be_one_hot(about: Mapping[str, Any]) -> dict[str, int]:
    """Attributed tensor -> channel axis, where the numbers mean something for one-hot data only.

    These are hypothetical contributions and normalised weights; a reference by name looks at its data itself.
    """
    needed = "hypothetical" in about["emit"] or about.get("normalize_one_hot", False)
    return dict(about.get("one_hot") or {}) if needed else {}


def explains(about: Mapping[str, Any]) -> str:
    """One line that says what an explainer with this metadata explains, and how."""
    target, over = about["target"], about.get("stepped_over")
    if about.get("targets") is not None:
        neuron = f"neurons {', '.join(str(index[0] if len(index) == 1 else index) for index in target)} of "
    elif isinstance(target, list):
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
    what = f"explains {neuron}{about['output']!r}{behind} by {inputs} against {reference}"
    caveat = "" if conserves(about) else " (which does not conserve: contributions are not expected to add up)"
    return f"{what}, rule {about.get('rule')}{caveat}{_planned(about.get('plan'))}"


def _planned(plan: str | list[str] | None) -> str:
    """The plan that was given: by its name, or how many choices it has."""
    if plan is None:
        return ""
    if isinstance(plan, str):
        return f", plan {plan}"
    return f", a plan of {len(plan)} choice{'s' * (len(plan) != 1)}"
