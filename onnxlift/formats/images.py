"""Images as rows: those in a folder, or a single one, in the size, channels and dtype of the model's input."""

from __future__ import annotations

import contextlib
import math
import os
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from onnxlift.arrays import Array
from onnxlift.errors import DataError, OptionError, shown
from onnxlift.feed import Port
from onnxlift.formats.rows import FileRows, Form, Rows, refusing, required

if TYPE_CHECKING:
    import PIL.Image

_FORMATS = ("PNG", "JPEG", "BMP", "GIF", "TIFF", "WEBP")
SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp")
_MODES = {1: "L", 3: "RGB", 4: "RGBA"}
_ORIENTATION, _TRANSPOSED = (
    0x0112,
    (5, 6, 7, 8),
)  # in EXIF: the tag, and its values where width and height change places


@dataclass(frozen=True)
class _Frame:
    """What an input takes: `[N, C, H, W]` or `[N, H, W, C]`, of which H and W may be any number, None."""

    channels: int
    height: int | None
    width: int | None
    channels_first: bool


class ImageRows(FileRows):
    """N images, decoded when they are asked for: `[N, C, H, W]` or `[N, H, W, C]`.

    folder, names: where they are, and their paths in there. size: height and width. values: what each pixel becomes in
    each channel, `[C, 256]` in the dtype of the input.
    """

    def __init__(self, folder: Path, names: list[str], frame: _Frame, size: tuple[int, int], values: Array) -> None:
        layout = (frame.channels, *size) if frame.channels_first else (*size, frame.channels)
        super().__init__(str(folder), (len(names), *layout), values.dtype, self._decoded)
        self._folder, self._names, self._frame, self._size, self._values = folder, names, frame, size, values

    def labels(self, start: int, stop: int) -> list[str]:
        """What the rows are called: the images' paths in the folder."""
        return [os.fsencode(name).decode("utf-8", "replace") for name in self._names[start:stop]]

    def _decoded(self, start: int, stop: int) -> Array:
        rows = np.empty((stop - start, *self.shape[1:]), self.dtype)
        for row, name in zip(rows, self._names[start:stop], strict=True):
            pixels = self._pixels(self._folder / name)
            planes = row if self._frame.channels_first else row.transpose(2, 0, 1)
            for channel, values in enumerate(self._values):
                planes[channel] = values[pixels[:, :, channel]]
        return rows

    def _pixels(self, path: Path) -> Array:
        """An image as uint8 `[H, W, C]`."""
        from PIL import ImageOps

        with _opened(path) as image:
            upright = ImageOps.exif_transpose(image).convert(_MODES[self._frame.channels])
            return np.asarray(_fitted(upright, *self._size)).reshape(*self._size, self._frame.channels)


@contextlib.contextmanager
def open_images(path: Path, port: Port, form: Form) -> Iterator[dict[str, Rows]]:
    """The rows of the images in a folder and in the folders in it, in the order of their paths; or of one image.

    An image is turned as its EXIF says, resized so that it covers the input's height and width (bilinear, with
    antialiasing) and cut to its centre; where these are dynamic, all images must have one size. Of several frames it is
    the first. Hidden files are left out. `port`: the input; one of integers gets the pixels, 0 to 255.
    Raises DataError: unreadable, no images, a file that is none, a link that leaves the folder, one of another size.
    OptionError: the input takes no images, `form` does not fit it, Pillow is missing. Reading rows raises DataError for
    damaged images, and such that are too large.
    """
    required("PIL.Image", "reading images")
    frame = _frame(port)
    values = _values(form, frame, port)
    folder, names = (path, _files(path)) if path.is_dir() else (path.parent, [path.name])
    if frame.height is None or frame.width is None:
        size = _common_size(folder, names, frame, port)
    else:
        size = frame.height, frame.width
        for name in names:
            if not name.lower().endswith(SUFFIXES):
                with _opened(folder / name):
                    pass
    yield {port.name: ImageRows(folder, names, frame, size, values)}


def _frame(port: Port) -> _Frame:
    """Raises OptionError where an input takes no images."""
    places = [axis for axis in (1, 3) if len(port.shape) == 4 and port.shape[axis] in _MODES]
    if len(places) != 1 or not port.split or not np.can_cast(np.uint8, port.dtype):
        raise OptionError(
            f"input {port.name!r}, {port.dtype} {shown(port.shape)}, takes no images: their shape is [N, C, H, W] or "
            "[N, H, W, C] with 1, 3 or 4 channels, where N is the batch, and 0 to 255 must fit"
        )
    channels, *sizes = (port.shape[axis] for axis in ((1, 2, 3) if places == [1] else (3, 1, 2)))
    assert isinstance(channels, int)
    height, width = (size if isinstance(size, int) else None for size in sizes)
    return _Frame(channels, height, width, places == [1])


def _values(form: Form, frame: _Frame, port: Port) -> Array:
    """What the pixels 0 to 255 become in each channel, `[C, 256]`. Raises OptionError where `form` does not fit."""
    if port.dtype.kind != "f" and form != Form(form.genome):
        raise OptionError(f"input {port.name!r} takes pixels as they are ({port.dtype}): leave out mean, std and scale")
    if port.dtype.kind != "f":
        return np.tile(np.arange(256), (frame.channels, 1)).astype(port.dtype)
    for what, numbers in (("mean", form.mean), ("std", form.std)):
        if len(numbers) not in (0, frame.channels):
            raise OptionError(f"`{what}` has {len(numbers)} numbers for the {frame.channels} channels of {port.name!r}")
    mean = np.array(form.mean or [0.0] * frame.channels)[:, None]
    std = np.array(form.std or [1.0] * frame.channels)[:, None]
    with np.errstate(all="ignore"):
        values: Array = ((np.arange(256) / form.scale - mean) / std).astype(port.dtype)
    if not np.isfinite(values).all() or form.scale < 0 or std.min() < 0:
        raise OptionError(f"mean {form.mean}, std {form.std} and scale {form.scale} give no finite values of pixels")
    return values


def _files(folder: Path) -> list[str]:
    """The files below a folder, in the order of their paths in it."""
    names = []
    with refusing(str(folder)):
        root = folder.resolve(strict=True)
        for path, folders, files in os.walk(folder, onerror=_raise):
            folders[:] = filter(_visible, folders)
            links = [name for name in folders if os.path.islink(os.path.join(path, name))]
            for item in (Path(path, name) for name in (*filter(_visible, files), *links)):
                if not item.is_file() or (item.is_symlink() and not item.resolve().is_relative_to(root)):
                    raise DataError(f"{item} is neither a file nor a link to one in {folder}: take it out of there.")
                names.append(item.relative_to(folder).as_posix())
    if not names:
        raise DataError(f"The folder {folder} has no images.")
    return sorted(names)


def _raise(error: OSError) -> None:
    raise error


def _visible(name: str) -> bool:
    return not name.startswith(".")


def _common_size(folder: Path, names: list[str], frame: _Frame, port: Port) -> tuple[int, int]:
    """Height and width of all images. Raises DataError where they differ, or are not the input's."""
    common: tuple[int, int] | None = None
    for name in names:
        with _opened(folder / name) as image:
            turned = image.format != "TIFF" and image.getexif().get(_ORIENTATION) in _TRANSPOSED
            width, height = image.size[::-1] if turned else image.size
        common = common or (frame.height or height, frame.width or width)
        if (height, width) != common:
            raise DataError(
                f"{folder / name} is {height} x {width} (height x width), expected {common[0]} x {common[1]}: input "
                f"{port.name!r} takes more than one size, so images are not resized, and all must be of one."
            )
    assert common is not None
    return common


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[PIL.Image.Image]:
    """An image of which only the header is read. Raises DataError; also for what goes wrong with the image inside."""
    import PIL.Image

    with refusing(str(path)), warnings.catch_warnings(), path.open("rb") as file:
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", PIL.Image.DecompressionBombWarning)
        try:
            # Not by its path: Pillow would map the file into memory, and mixes up the rows of a turned TIFF there.
            image = PIL.Image.open(file, formats=_FORMATS)
        except PIL.UnidentifiedImageError as error:
            raise ValueError(f"it is none of {', '.join(_FORMATS)}") from error
        with image:
            if image.mode.startswith(("I", "F")):
                raise ValueError(f"it has more than 8 bits per channel (mode {image.mode}), which would be cut off")
            yield image


def _fitted(image: PIL.Image.Image, height: int, width: int) -> PIL.Image.Image:
    """An image that covers a height and a width, with what is over on two sides cut off."""
    import PIL.Image

    if image.size == (width, height):
        return image
    if image.width * height > image.height * width:
        size = image.width * height // image.height, height
    else:
        size = width, image.height * width // image.width
    if math.prod(size) > (PIL.Image.MAX_IMAGE_PIXELS or math.inf):
        raise ValueError(f"it is {image.width} x {image.height}, too narrow for {width} x {height}")
    left, top = round((size[0] - width) / 2), round((size[1] - height) / 2)
    covering = image.resize(size, PIL.Image.Resampling.BILINEAR)
    return covering.crop((left, top, left + width, top + height))
