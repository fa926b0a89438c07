"""ONNX Runtime sessions: which provider runs, said in one plain line, and errors without C++ paths."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import io
import os
import re
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any

from onnxlift.errors import ModelError, OnnxliftError, OptionError
from onnxlift.machine import cpus

CUDA = "CUDAExecutionProvider"
CPU = "CPUExecutionProvider"
Provider = str | tuple[str, dict[str, Any]]

_DRIVERS = ("libcuda.so.1", "nvcuda.dll")
_SILENT = 4
_SPIN_US = "100"  # microseconds


def open_session(
    source: bytes | str, providers: Sequence[Provider] | None = None, folder: Path | None = None
) -> tuple[Any, str]:
    """An ONNX Runtime session on a serialized model or a path, and a line that says which provider runs it.

    `folder`: where the external data of a serialized model lie.

    `providers`: as ONNX Runtime takes them; default: CUDA without TF32 where it can run, then the CPU.
    Raises ModelError: ONNX Runtime refuses the model. OptionError: no asked provider can run here.
    """
    ort = runtime()
    options = ort.SessionOptions()
    options.log_severity_level = _SILENT  # what goes wrong is raised, and told in one paragraph
    # A plan of the memory per input shape needs a block of its own for it: a third more at the peak, and no faster.
    options.enable_mem_pattern = False
    # So long a thread that waits for work keeps its processor. ONNX Runtime's own choice is longer, which gains nothing
    # on an idle machine, and on a busy one takes the processor from the thread that is waited for.
    options.add_session_config_entry("session.intra_op.spin_duration_us", _SPIN_US)
    if cpus() < (os.cpu_count() or 1):  # a quota or an affinity, of which ONNX Runtime does not know
        options.intra_op_num_threads = cpus()
    if folder is not None:
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(folder))
    asked = _default_providers(ort) if providers is None else _checked(ort, providers)
    if any(_name(provider) == CUDA for provider in asked):
        _load_cuda(ort)
    try:
        session = ort.InferenceSession(source, options, providers=asked)
    except Exception as error:  # ONNX Runtime's exceptions have no common class
        raise ModelError(f"ONNX Runtime cannot load the model: {essential(error)}.") from error
    session._model_bytes = None  # the Python class would keep what it has parsed, weights and all
    return session, _line(ort, session, asked)


def runtime() -> ModuleType:
    """ONNX Runtime, imported late because that takes long. Raises OnnxliftError where its installation is broken."""
    remedy = "Uninstall onnxruntime and onnxruntime-gpu, then install one of them (see the README)."
    try:
        import onnxruntime
    except ImportError as error:
        raise OnnxliftError(f"ONNX Runtime cannot be imported ({error}). {remedy}") from error
    if not hasattr(onnxruntime, "InferenceSession"):
        raise OnnxliftError(f"The installation of ONNX Runtime is incomplete. {remedy}")
    module: ModuleType = onnxruntime
    return module


def essential(error: Exception) -> str:
    """What an ONNX Runtime error says, in one line without C++ locations."""
    text = " ".join(str(error).split())
    text = re.sub(r"^(Error in execution: |\[ONNXRuntimeError\] : \d+ : \w+ : )+", "", text)
    text = re.sub(r"Non-zero status code returned while running (\S+) node\. Name:'([^']*)'", r"\1 node '\2'", text)
    text = text.replace(" Status Message:", ":").replace("Please fix either the inputs/outputs or the model.", "")
    text = re.sub(r"\S*onnxruntime_src\S*:\d+ .*?\)( const)? ", "", text)  # file, line and C++ signature
    text = re.sub(r"\b\w+\.(h|cc|cpp):\d+ \w+ ", "", text)
    return text.strip(" .")


@functools.cache
def cuda_obstacle() -> str | None:
    """Why CUDA cannot run on this machine; None where an NVIDIA driver with a device answers."""
    for library in _DRIVERS:
        try:
            driver = ctypes.CDLL(library)
        except OSError:
            continue
        count = ctypes.c_int(0)
        if driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count)) or not count.value:
            return "no NVIDIA device found"
        return None
    return "no NVIDIA driver found"


def cuda_without_tf32() -> Provider:
    """CUDA with the whole float32: TF32 would be off by 1e-3."""
    return CUDA, {"use_tf32": "0"}


def _default_providers(ort: ModuleType) -> list[Provider]:
    if CUDA in ort.get_available_providers() and cuda_obstacle() is None:
        return [cuda_without_tf32(), CPU]
    return [CPU]


def _checked(ort: ModuleType, providers: Sequence[Provider]) -> list[Provider]:
    """The asked providers that can run here; CUDA without a device would only write to stderr."""
    available = ort.get_available_providers()
    for provider in providers:
        if _name(provider) not in available:
            raise OptionError(
                f"this ONNX Runtime has no provider {_name(provider)!r}: it has {', '.join(map(repr, available))}"
            )
    obstacle = cuda_obstacle()
    usable = [provider for provider in providers if _name(provider) != CUDA or obstacle is None]
    if not usable:
        raise OptionError(f"CUDA is asked for, but it cannot run here: {obstacle or 'no provider is given'}")
    return usable


def _load_cuda(ort: ModuleType) -> None:
    """Find the CUDA libraries that pip installed. What is missing shows in the providers of the session."""
    if hasattr(ort, "preload_dlls"):
        with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(Exception):
            ort.preload_dlls()


def _line(ort: ModuleType, session: Any, asked: Sequence[Provider]) -> str:
    first = session.get_providers()[0]
    version = f"ONNX Runtime {ort.__version__}"
    note = ""
    if first == CPU:
        if CUDA not in ort.get_available_providers():
            note = "a build without CUDA"
        elif cuda_obstacle():
            note = cuda_obstacle() or ""
        elif any(_name(provider) == CUDA for provider in asked):
            note = "CUDA did not start: pip install 'onnxruntime-gpu[cuda,cudnn]' brings its libraries"
        if all(map(_installed, ("onnxruntime", "onnxruntime-gpu"))):
            note += ", onnxruntime and onnxruntime-gpu are both installed and break each other: keep one"
    place = "on the CPU" if first == CPU else "on CUDA" if first == CUDA else f"with {first}"
    return f"runs {place} ({version}{'; ' * bool(note)}{note.lstrip(', ')})"


def _installed(package: str) -> bool:
    with contextlib.suppress(metadata.PackageNotFoundError):
        return bool(metadata.version(package))
    return False


def _name(provider: Provider) -> str:
    return provider if isinstance(provider, str) else provider[0]
