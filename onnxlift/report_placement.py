"""What `onnxlift inspect --provider cuda` prints: where the nodes of an explainer run, and what is copied."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from onnxlift.placement import Placement
from onnxlift.report import counted, print_fields, print_reasons


def placement(found: Placement) -> dict[str, Any]:
    """Where ONNX Runtime's CUDA provider places an explainer, for JSON."""
    return {
        "onnxruntime": found.onnxruntime,
        "nodes": found.nodes,
        "on_cpu": [{**vars(node), "body": list(node.body)} for node in found.off_gpu],
        "shape_arithmetic": [{**vars(node), "body": list(node.body)} for node in found.on_cpu if node.shape],
        "copies": [{**vars(copy), "body": list(copy.body)} for copy in found.copies],
        "is_on_gpu": found.is_on_gpu,
    }


def print_placement(path: str, facts: Mapping[str, Any], *, quiet: bool, verbose: bool) -> None:
    """Where ONNX Runtime's CUDA provider places an explainer, for people."""
    shown = [*facts["on_cpu"], *(facts["shape_arithmetic"] if verbose else ())]
    if not quiet:
        print_reasons("On the CPU", [{**entry, "node": _inside(entry)} for entry in shown], "reason", "bold red")
        copies = [
            {"node": _inside(entry, "tensor"), "op": f"to the {entry['to']}", "why": _often(entry)}
            for entry in facts["copies"]
        ]
        columns = ("tensor", "copied", "how often")
        print_reasons("Copied between CPU and GPU", copies, "why", "bold red", columns)
    on_cpu, shapes = len(facts["on_cpu"]), len(facts["shape_arithmetic"])
    ops = f" ({counted(entry['op'] for entry in facts['on_cpu'])})" if on_cpu else ""
    fields = {
        "on the GPU": f"{facts['nodes'] - on_cpu - shapes} of {facts['nodes']} nodes that are left at run time",
        "on the CPU": f"{on_cpu}{ops}, and {shapes} of shape arithmetic",
        "copies": f"{len(facts['copies'])} between CPU and GPU",
        "table": f"the kernels of ONNX Runtime {facts['onnxruntime']}; nothing ran",
        "verdict": "placed on the GPU" if facts["is_on_gpu"] else "leaves the GPU",
    }
    print_fields(path, fields)


def _inside(entry: Mapping[str, Any], key: str = "node") -> str:
    """The name, with the nodes that it is inside of."""
    return " / ".join([*entry["body"], entry[key]])


def _often(entry: Mapping[str, Any]) -> str:
    return "in every iteration" if entry["body"] else "in every run"
