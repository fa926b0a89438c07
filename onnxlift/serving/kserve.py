"""A Triton model repository as a KServe InferenceService.

One service serves both entries: they are versions of one thing, and share the address, the memory of the server and its
scaling. Whoever wants predictions not to wait behind explanations applies it twice, as the README says.
"""

from __future__ import annotations

import re
from pathlib import Path

from onnxlift.arrays import replacing
from onnxlift.errors import OptionError
from onnxlift.serving.triton import Serving

CPUS = 4
"""Processors of the container, and threads of a run: ONNX Runtime would take as many as the node has."""

TRITON = "25.03"
"""The first release of Triton's container images that is known to have ONNX Runtime 1.20."""

_LONGEST_NAME = 40  # KServe makes host names and labels of it, of at most 63 characters
_SPARE = 2 << 30  # bytes of memory for the server and the largest batch
_COPIES = 5  # of the weights, while a model is loaded: those of a VGG-16 of 0.55 GB peaked at 2.4 GB


def service_name(name: str) -> str:
    """The name of a model as Kubernetes takes it. Raises OptionError where there is none."""
    plain = re.sub(r"[_.]+", "-", name).lower().strip("-")
    if not re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", plain) or len(plain) > _LONGEST_NAME:
        raise OptionError(
            f"KServe takes no service of the name {plain!r}: choose one with --name that starts with a letter and has "
            f"at most {_LONGEST_NAME} letters, digits and '-'"
        )
    return plain


def write_service(path: Path, name: str, serving: Serving, size: int) -> None:
    """Write the InferenceService. `size`: of the models in bytes. Raises OptionError where PyYAML is missing."""
    try:
        import yaml
    except ImportError as error:
        raise OptionError("packaging for KServe needs PyYAML: pip install 'onnxlift[triton]'") from error
    gib = -(-(_SPARE + _COPIES * size) // (1 << 30))
    resources = {"cpu": str(CPUS), "memory": f"{gib}Gi"}
    if serving.accelerator in ("cuda", "tensorrt"):
        resources["nvidia.com/gpu"] = "1"
    service = {
        "apiVersion": "serving.kserve.io/v1beta1",
        "kind": "InferenceService",
        "metadata": {"name": name},
        "spec": {
            "predictor": {
                "model": {
                    "modelFormat": {"name": "triton"},
                    "protocolVersion": "v2",
                    "runtimeVersion": f"{TRITON}-py3",
                    "storageUri": "pvc://CLAIM/FOLDER",
                    "resources": {"requests": dict(resources), "limits": dict(resources)},
                }
            }
        },
    }
    header = (
        "# Written by `onnxlift package`. Copy this folder where the cluster can read it, and name that place in\n"
        "# storageUri (pvc://, s3://, gs://, https:// ...). The processors are as many as the threads of a run, which\n"
        "# are intra_op_thread_count in each config.pbtxt.\n"
    )
    with replacing(path) as file:
        file.write((header + yaml.safe_dump(service, sort_keys=False)).encode())
