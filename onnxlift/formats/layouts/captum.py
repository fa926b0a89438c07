"""What captum's visualisation takes: attributions with the channels behind height and width."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from onnxlift.arrays import replacing
from onnxlift.errors import OptionError, shown
from onnxlift.explainer import CONTRIBUTIONS
from onnxlift.formats.layouts.source import (
    LayoutInput,
    blocks,
    input_of,
    inputs_of,
    named_axis,
    scores_of,
)
from onnxlift.formats.layouts.writing import Stream, Written, member
from onnxlift.formats.rows import Rows, Stored

_COLOURS = (1, 3, 4)


def write_captum(results: Mapping[str, Rows], data: Stored | None, out: Path, about: LayoutInput) -> Written:
    """Contributions for `captum.attr.visualization.visualize_image_attr(attributions[i], ...)`.

    Those of images are `[N, H, W, C]`, others as they are. A .npz has an array for each input, under its name; a .npy
    is of the only or the chosen one.

    Raises OptionError where both axes of an image could be its channels, or neither. The data are not read.
    """
    if out.suffix.lower() == ".npy":
        name = input_of(results, CONTRIBUTIONS, about.input)
        scores = scores_of(results, name + CONTRIBUTIONS)
        axis, shape = _moved(scores, name, about)
        with replacing(out) as file:
            _fill(Stream(file, shape, scores.dtype), scores, axis)
        return Written((out,))
    with replacing(out) as file, zipfile.ZipFile(file, "w") as archive:
        for name in inputs_of(results, CONTRIBUTIONS, about.input):
            scores = scores_of(results, name + CONTRIBUTIONS)
            axis, shape = _moved(scores, name, about)
            with member(archive, name, shape, scores.dtype) as stream:
                _fill(stream, scores, axis)
    return Written((out,))


def _moved(scores: Rows, name: str, about: LayoutInput) -> tuple[int, tuple[int, ...]]:
    """The axis that goes to the end, and the shape that makes."""
    shape = scores.shape
    if about.axis is not None:
        axis = named_axis(shape, about.axis)
    elif len(shape) == 4:
        axes = [axis for axis in (1, 3) if shape[axis] in _COLOURS]
        if len(axes) != 1:
            raise OptionError(
                f"whether the channels of {name!r} come first or last cannot be told from its shape {shown(shape)}: "
                "give --channels"
            )
        axis = axes[0]
    else:
        axis = len(shape) - 1
    return axis, (*shape[:axis], *shape[axis + 1 :], shape[axis])


def _fill(stream: Stream, scores: Rows, axis: int) -> None:
    for block in blocks(scores):
        stream.write(np.moveaxis(scores[block], axis, -1))
