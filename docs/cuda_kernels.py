"""Write onnxlift/data/cuda_kernels.json from the installed ONNX Runtime, whose CUDA libraries have to be found:

python docs/cuda_kernels.py > onnxlift/data/cuda_kernels.json
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import onnx
import onnxruntime
from onnxruntime.capi.onnxruntime_pybind11_state import get_all_opkernel_def

from onnxlift.opset import BASE_OPSET
from onnxlift.session import CUDA

OPSETS = {"": BASE_OPSET, "ai.onnx.ml": 4, "com.microsoft": 1}
OPEN = 2**31 - 1

Types = dict[str, frozenset[str]]
"""Type parameter -> the types that a kernel takes for it; those of tensors without `tensor()`."""


def version(domain: str, op: str) -> int | None:
    """Which version of an operator explainers use; None where they cannot use it."""
    if domain == "com.microsoft":
        return OPSETS[domain]
    try:
        return int(onnx.defs.get_schema(op, OPSETS[domain], domain).since_version)
    except onnx.defs.SchemaError:
        return None


def kernels() -> dict[str, dict[str, list[Types]]]:
    """Domain -> operator -> what each of its CUDA kernels takes.

    ONNX Runtime takes a kernel that begins with the version of the operator, or one whose end is known and not passed.
    """
    found: dict[str, dict[str, list[Types]]] = {}
    for kernel in get_all_opkernel_def():
        domain = "" if kernel.domain == "ai.onnx" else kernel.domain
        if kernel.provider != CUDA or domain not in OPSETS:
            continue
        first, last = kernel.version_range
        wanted = version(domain, kernel.op_name)
        if wanted is None or not (first == wanted or (first < wanted <= last < OPEN)):
            continue
        types = {name: frozenset(map(short, kinds)) for name, kinds in kernel.type_constraints.items()}
        found.setdefault(domain, {}).setdefault(kernel.op_name, []).append(types)
    return found


def short(kind: str) -> str:
    """tensor(float) -> float."""
    return kind.removeprefix("tensor(").removesuffix(")") if kind.startswith("tensor(") else kind


def merged(types: Sequence[Types]) -> list[Types]:
    """Fewer entries that say the same: kernels that differ in one parameter become one."""
    result: list[Types] = []
    for one in sorted(types, key=lambda each: sorted((name, sorted(kinds)) for name, kinds in each.items())):
        for other in result:
            differing = [name for name in one if one[name] != other.get(name)]
            if one.keys() == other.keys() and len(differing) <= 1:
                other.update({name: one[name] | other[name] for name in differing})
                break
        else:
            result.append(dict(one))
    return result if len(result) == len(types) else merged(result)


def table() -> dict[str, Any]:
    """The file's content."""
    return {
        "onnxruntime": onnxruntime.__version__,
        "opset": BASE_OPSET,
        "kernels": {
            domain or "ai.onnx": {
                op: [{name: " ".join(sorted(kinds)) for name, kinds in sorted(one.items())} for one in merged(all_)]
                for op, all_ in sorted(ops.items())
            }
            for domain, ops in sorted(kernels().items())
        },
    }


if __name__ == "__main__":
    print(json.dumps(table(), indent=1))
