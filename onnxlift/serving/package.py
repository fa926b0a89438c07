"""Folders that servers and browsers take as they are: made beside, and renamed once they are complete."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from onnxlift.arrays import temporary
from onnxlift.errors import OptionError
from onnxlift.serving import kserve, readme, triton
from onnxlift.serving.contract import Contract, Trial, try_explainer
from onnxlift.serving.predict import cut, original, try_predictions
from onnxlift.serving.triton import Serving

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}")


@dataclass(frozen=True)
class Repository:
    """A Triton model repository: its entries by name, the explainer first, and the trial run of the explainer.

    `off`: how far predictions are from the explainer's outputs, as `predict.try_predictions` measures it.
    """

    entries: Mapping[str, Contract]
    trial: Trial
    off: float | None
    serving: Serving


def package_triton(
    explainer: Path,
    folder: Path,
    *,
    serving: Serving,
    name: str | None = None,
    model: Path | None = None,
    dims: Mapping[str, int] | None = None,
    for_kserve: bool = False,
) -> Repository:
    """Write a Triton model repository into `folder`, which exists and is empty: NAME explains, NAME_predict predicts.

    `name`: default: the explainer's file without its suffix. `model`: the original, which predicts then.
    `dims`: sizes of dynamic dimensions in the trial run, the warm-up and the README. `for_kserve`: with the
    InferenceService that serves the repository.
    Raises OptionError, ModelError: what `contract` and `predict` refuse; a name that is no folder's.
    """
    name = explainer.stem if name is None else name
    if not _NAME.fullmatch(name):
        raise OptionError(
            f"the name {name!r} does not fit a model repository: choose one of letters, digits, '_', '-' and '.' "
            "with --name, that starts with a letter or digit"
        )
    if serving.backend == "python" and serving.accelerator == "tensorrt":
        raise OptionError("--accelerator tensorrt is of Triton's onnxruntime backend: leave out --backend python")
    service = kserve.service_name(name) if for_kserve else None
    trial = try_explainer(explainer, dims or {})
    if model is None:
        predictor, weights = cut(trial.proto, trial.data, trial.about["outputs"]), explainer.parent
    else:
        predictor, weights = original(model, trial.data), model.parent
    triton.write_model(folder / name, trial.proto, explainer.parent, serving.version)
    predict = f"{name}_predict"
    path = triton.write_model(folder / predict, predictor, weights, serving.version)
    contract, off = try_predictions(path, trial, model)
    if service is not None:
        serving = replace(serving, threads=kserve.CPUS)
        models = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
        kserve.write_service(folder / "inferenceservice.yaml", service, serving, models)
    repository = Repository({name: trial.contract, predict: contract}, trial, off, serving)
    for entry, promised in repository.entries.items():
        triton.write_entry(folder / entry, promised, serving)
    page = readme.text(repository.entries, trial, off, serving, in_kserve=for_kserve)
    (folder / "README.md").write_text(page, encoding="utf-8")
    return repository


@contextlib.contextmanager
def making(folder: Path) -> Iterator[Path]:
    """An empty folder to fill, which becomes `folder` once all is in it; nothing is left of it otherwise.

    Raises OptionError: `folder` exists and is not an empty folder, or cannot be written.
    """
    real = Path(os.path.realpath(folder))
    if not real.parent.is_dir():
        raise OptionError(f"Cannot write {folder}: there is no folder {real.parent}. Make it first.")
    if real.exists() and not real.is_dir():
        raise OptionError(f"Cannot write {folder}: it is a file. Give the name of a folder.")
    if not real.name:
        raise OptionError(f"Cannot write {folder}: it is the root of a file system. Give the name of a folder.")
    partial = temporary(real)
    try:
        if real.is_dir() and any(real.iterdir()):
            raise OptionError(f"The folder {folder} is not empty: choose another name, or remove it first.")
        partial.mkdir()
        yield partial
        if real.is_dir():
            real.rmdir()
        os.replace(partial, real)
    except OSError as error:
        raise OptionError(f"Cannot write {folder}: {error.strerror or error}. Choose a writable folder.") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
