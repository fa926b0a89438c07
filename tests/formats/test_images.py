"""Images as rows, beside arrays that were never images and a resize of its own."""

from __future__ import annotations

import os
import pickle
import struct
import zlib
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from onnxlift import DataError, Explainer, OnnxliftError, OptionError
from onnxlift.arrays import Array
from onnxlift.feed import Port
from onnxlift.formats import Form, open_data
from onnxlift.formats.images import ImageRows, open_images

RNG = np.random.default_rng(5)


def port(*shape: int | str, kind: str = "float", split: bool = True) -> Port:
    return Port("x", f"tensor({kind})", ("N", *shape), "data", "x", split)


def read(path: Path, port: Port, form: Form | None = None) -> ImageRows:
    with open_images(path, port, form or Form()) as rows:
        assert list(rows) == ["x"]
        found = rows["x"]
        assert isinstance(found, ImageRows)
        return found


def pixels(height: int, width: int, channels: int = 3) -> Array:
    array = RNG.integers(0, 256, (height, width, channels), dtype=np.uint8)
    return array[:, :, 0] if channels == 1 else array


def smooth(height: int, width: int) -> Array:
    """Waves of grey, `[H, W]`."""
    y, x = np.mgrid[:height, :width]
    return np.rint(127.5 + 80 * np.sin(x / 5) + 40 * np.cos(y / 3 + x / 9)).astype(np.uint8)


def encoded(array: Array, kind: str, **options: object) -> bytes:
    stream = BytesIO()
    Image.fromarray(array).save(stream, kind, **options)
    return stream.getvalue()


def triangle(size: int, wanted: int) -> Array:
    """`[wanted, size]`: weights of bilinear interpolation, stretched where it makes smaller."""
    scale = size / wanted
    places = (np.arange(wanted)[:, None] + 0.5) * scale - 0.5
    weights = np.maximum(1 - np.abs(np.arange(size) - places) / max(scale, 1), 0)
    return np.asarray(weights / weights.sum(axis=1, keepdims=True))


@pytest.mark.parametrize("kind", ["float", "float16", "double", "uint8", "int32", "int64"])
@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("dynamic", [True, False])
def test_an_image_of_the_right_size_keeps_its_pixels(
    tmp_path: Path, kind: str, channels: int, first: bool, dynamic: bool
) -> None:
    arrays = [pixels(6, 9, channels) for _ in range(3)]
    for number, (array, suffix) in enumerate(zip(arrays, ("PNG", "TIFF", "PNG"), strict=True)):
        (tmp_path / f"{number}.{suffix.lower()}").write_bytes(encoded(array, suffix))
    size = ("H", "W") if dynamic else (6, 9)
    rows = read(tmp_path, port(*((channels, *size) if first else (*size, channels)), kind=kind))
    expected = np.stack(arrays).reshape(3, 6, 9, channels)
    if first:
        expected = expected.transpose(0, 3, 1, 2)
    assert rows.shape == expected.shape
    assert rows.dtype == rows[:].dtype == port(kind=kind).dtype
    if rows.dtype.kind == "f":
        np.testing.assert_allclose(rows[:], expected / 255, rtol=1e-3 if kind == "float16" else 1e-6)
    else:
        np.testing.assert_array_equal(rows[:], expected)
    np.testing.assert_array_equal(rows[1:2], rows[:][1:2])
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(rows))[:], rows[:])


@pytest.mark.parametrize("first", [True, False])
def test_values_are_scaled_and_normalised_per_channel(tmp_path: Path, first: bool) -> None:
    array = pixels(6, 5)
    (tmp_path / "a.png").write_bytes(encoded(array, "PNG"))
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    rows = read(tmp_path, port(*((3, 6, 5) if first else (6, 5, 3))), Form(None, 255, mean, std))
    expected = (array / 255 - mean) / std
    np.testing.assert_allclose(rows[:][0], expected.transpose(2, 0, 1) if first else expected, rtol=1e-5, atol=1e-6)
    rows = read(tmp_path, port(6, 5, 3), Form(None, 127.5, (1, 1, 1)))
    np.testing.assert_allclose(rows[:][0], array / 127.5 - 1, rtol=1e-5, atol=1e-6)


# height and width of the image and of the input; what it is resized to, and the pixel at which the cut begins
SIZES: dict[str, tuple[tuple[int, int], tuple[int, int], tuple[int, int], tuple[int, int]]] = {
    "wide": ((40, 64), (20, 20), (20, 32), (0, 6)),
    "high": ((75, 50), (20, 20), (30, 20), (5, 0)),
    "half a pixel": ((50, 75), (20, 20), (20, 30), (0, 5)),
    "not a whole size": ((37, 50), (22, 22), (22, 29), (0, 4)),
    "made larger": ((10, 16), (24, 24), (24, 38), (0, 7)),
    "no square": ((60, 60), (20, 30), (30, 30), (5, 0)),
    "only cut": ((20, 31), (20, 20), (20, 31), (0, 6)),
    "wide, but not as the input": ((60, 80), (20, 60), (45, 60), (12, 0)),
    "half a pixel over": ((47, 60), (20, 60), (47, 60), (14, 0)),
    "as high": ((64, 40), (16, 10), (16, 10), (0, 0)),
}


@pytest.mark.parametrize("case", SIZES)
def test_other_sizes_are_resized_to_cover_the_input_and_cut_to_their_centre(tmp_path: Path, case: str) -> None:
    size, wanted, covering, (top, left) = SIZES[case]
    array = smooth(*size)
    (tmp_path / "a.png").write_bytes(encoded(array, "PNG"))
    rows = read(tmp_path, port(1, *wanted, kind="uint8"))
    resized = triangle(size[0], covering[0]) @ array @ triangle(size[1], covering[1]).T
    expected = resized[top : top + wanted[0], left : left + wanted[1]]
    assert np.abs(rows[:][0, 0] - expected).max() <= 1.01  # rounded after each of the two axes


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_the_exif_orientation_is_applied(tmp_path: Path, kind: str) -> None:
    upright = pixels(5, 7, 1)
    # Where the first row and the first column of what is stored are in the picture (EXIF 2.32, tag 274).
    stored: dict[int, Callable[[Array], Array]] = {
        1: lambda a: a,  # top, left
        2: lambda a: a[:, ::-1],  # top, right
        3: lambda a: a[::-1, ::-1],  # bottom, right
        4: lambda a: a[::-1],  # bottom, left
        5: lambda a: a.T,  # left, top
        6: lambda a: a[:, ::-1].T,  # right, top
        7: lambda a: a[::-1, ::-1].T,  # right, bottom
        8: lambda a: a[::-1].T,  # left, bottom
    }
    for orientation, store in stored.items():
        exif = Image.Exif()
        exif[274] = orientation
        content = encoded(np.ascontiguousarray(store(upright)), kind, exif=exif)
        (tmp_path / f"{orientation}.png").write_bytes(content)
    for size in ((5, 7), ("H", "W")):
        rows = read(tmp_path, port(1, *size, kind="uint8"))[:]
        for row in rows:
            np.testing.assert_array_equal(row[0], upright)


@pytest.mark.parametrize(
    ("mode", "colour", "expected"),
    [
        ("1", 1, {1: [255], 3: [255] * 3, 4: [255] * 4}),
        ("L", 90, {1: [90], 3: [90] * 3, 4: [90, 90, 90, 255]}),
        ("LA", (90, 10), {1: [90], 3: [90] * 3, 4: [90, 90, 90, 10]}),
        ("RGB", (200, 100, 50), {1: [124], 3: [200, 100, 50], 4: [200, 100, 50, 255]}),
        ("RGBA", (200, 100, 50, 7), {1: [124], 3: [200, 100, 50], 4: [200, 100, 50, 7]}),
    ],
)
def test_channels_become_those_of_the_input(
    tmp_path: Path, mode: str, colour: int | tuple[int, ...], expected: dict[int, list[int]]
) -> None:
    Image.new(mode, (3, 2), colour).save(tmp_path / "a.png")
    for channels, values in expected.items():
        np.testing.assert_array_equal(read(tmp_path, port(2, 3, channels, kind="uint8"))[:][0, 1, 2], values)


def test_formats_are_told_by_their_content_and_the_first_frame_counts(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (5, 5), colour) for colour in ((255, 0, 0), (0, 255, 0))]
    for number, kind in enumerate(("GIF", "TIFF", "WEBP", "PNG")):
        options = {"lossless": True} if kind == "WEBP" else {}
        frames[0].save(tmp_path / f"{number}", kind, save_all=True, append_images=frames[1:], **options)
    for number, kind in enumerate(("BMP", "JPEG"), 4):
        options = {"quality": 100} if kind == "JPEG" else {}
        frames[0].save(tmp_path / f"{number}.png", kind, **options)
    rows = read(tmp_path, port(5, 5, 3, kind="uint8"))
    assert np.abs(rows[:].astype(int) - [255, 0, 0]).max() <= 2


def test_rows_are_in_the_order_of_paths_and_called_by_them(tmp_path: Path) -> None:
    names = ["a-1.png", "a.png", "a/1.png", "a/10.png", "a/b/c.png", "b.PNG"]
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / ".hidden").mkdir()
    for name in (".hidden/a.png", ".DS_Store"):
        (tmp_path / name).write_text("no image")
    for number, name in reversed(list(enumerate(names))):
        Image.new("L", (2, 2), number).save(tmp_path / name)
    os.symlink(tmp_path / "a" / "1.png", tmp_path / "c.png")
    rows = read(tmp_path, port(1, 2, 2, kind="uint8"))
    assert rows.labels(0, 7) == [*names, "c.png"]
    assert rows.labels(2, 4) == names[2:4]
    np.testing.assert_array_equal(rows[:][:, 0, 0, 0], [0, 1, 2, 3, 4, 5, 2])
    np.testing.assert_array_equal(rows[2:4][:, 0, 0, 0], [2, 3])


def test_an_explainer_takes_a_folder_and_a_file(tmp_path: Path) -> None:
    digits = np.load("models/mnist_digits.npz")["x"][:3]
    for number, digit in enumerate(digits):
        (tmp_path / f"{number}.png").write_bytes(encoded(digit.astype(np.uint8), "PNG"))
    explainer = Explainer("models/mnist_cnn.onnx", target="argmax", reference="zeros")
    x = digits[:, None].astype(np.float32) / 255
    for path, expected in ((tmp_path, x), (tmp_path / "1.png", x[1:2])):
        with open_data(path, inputs=[port(1, 28, 28)]) as rows:
            assert isinstance(rows, dict)
            given = rows["x"][0:3]
        np.testing.assert_allclose(given, expected, rtol=1e-6)
        found, wanted = explainer(given).contributions["x"], explainer(expected).contributions["x"]
        np.testing.assert_allclose(found, wanted, atol=1e-5)


def png_header(width: int, height: int) -> bytes:
    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b"\0" * 1000))
        + chunk(b"IEND", b"")
    )


BAD: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "it is none of PNG"),
    "text": (b"label,1\n", "it is none of PNG"),
    "PostScript": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "it is none of PNG"),
    "PNG cut": (encoded(pixels(20, 20), "PNG")[:600], "truncated|broken"),
    "JPEG cut": (encoded(pixels(20, 20), "JPEG")[:700], "truncated|broken"),
    "WEBP cut": (encoded(pixels(20, 20), "WEBP")[:200], "could not create decoder"),
    "large": (png_header(10_000, 10_000), "exceeds limit"),
    "huge": (png_header(60_000, 60_000), "exceeds limit"),
    "thin": (encoded(pixels(1, 30_000, 1), "PNG"), "too narrow"),
    "16 bits": (encoded(np.arange(400, dtype=np.uint16).reshape(20, 20) * 99, "PNG"), "more than 8 bits"),
    "floats": (encoded(np.ones((20, 20), np.float32), "TIFF"), "more than 8 bits"),
}


@pytest.mark.parametrize("name", ["bad.png", "bad"])
@pytest.mark.parametrize("case", BAD)
def test_a_bad_image_is_refused_by_name(tmp_path: Path, case: str, name: str) -> None:
    content, message = BAD[case]
    (tmp_path / "a.png").write_bytes(encoded(pixels(20, 20), "PNG"))
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message) as refused:
        read(tmp_path, port(3, 200, 200))[:]
    assert str(tmp_path / name) in str(refused.value)


def test_what_is_no_image_by_its_name_is_refused_before_anything_is_read(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(encoded(pixels(20, 20), "PNG"))
    (tmp_path / "labels.csv").write_text("a.png,1\n")
    with pytest.raises(DataError, match=r"labels\.csv"):
        read(tmp_path, port(3, 20, 20))


def outside(folder: Path) -> Path:
    path = folder.parent / "outside.png"
    path.write_bytes(encoded(pixels(5, 5), "PNG"))
    return path


ENTRIES: dict[str, Callable[[Path], None]] = {
    "a link to a file elsewhere": lambda path: path.symlink_to(outside(path.parent)),
    "a relative link out": lambda path: (outside(path.parent), path.symlink_to("../outside.png"))[-1],
    "a link to a folder": lambda path: path.symlink_to(path.parent, target_is_directory=True),
    "a link to nothing": lambda path: path.symlink_to(path.parent / "missing.png"),
    "a pipe": os.mkfifo,
}


@pytest.mark.parametrize("case", ENTRIES)
def test_what_is_no_file_of_the_folder_is_refused(tmp_path: Path, case: str) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    (folder / "a.png").write_bytes(encoded(pixels(5, 5), "PNG"))
    ENTRIES[case](folder / "b.png")
    with pytest.raises(DataError, match=r"b\.png is neither a file nor a link to one"):
        read(folder, port(3, 5, 5))


def test_a_folder_without_images_and_a_missing_file_are_refused(tmp_path: Path) -> None:
    (tmp_path / ".hidden.png").write_bytes(encoded(pixels(5, 5), "PNG"))
    with pytest.raises(DataError, match="has no images"):
        read(tmp_path, port(3, 5, 5))
    with pytest.raises(DataError, match="Cannot read"):
        read(tmp_path / "missing.png", port(3, "H", "W"))


@pytest.mark.parametrize("size", [("H", "W"), (4, "W"), ("H", 6)])
def test_where_any_size_fits_all_images_must_have_one(tmp_path: Path, size: tuple[int | str, ...]) -> None:
    (tmp_path / "a.png").write_bytes(encoded(pixels(4, 6), "PNG"))
    assert read(tmp_path, port(3, *size)).shape == (1, 3, 4, 6)
    (tmp_path / "b.png").write_bytes(encoded(pixels(6, 4), "PNG"))
    with pytest.raises(DataError, match=r"b\.png is 6 x 4 .* expected 4 x 6"):
        read(tmp_path, port(3, *size))


@pytest.mark.parametrize(
    ("port", "form", "message"),
    [
        (port(28, 28), Form(), "takes no images"),
        (port(2, 28, 28), Form(), "takes no images"),
        (port(3, 28, 3), Form(), "takes no images"),
        (port("c", "h", "w"), Form(), "takes no images"),
        (port(3, 5, 5, kind="int8"), Form(), "takes no images"),
        (port(3, 5, 5, kind="bool"), Form(), "takes no images"),
        (port(3, 5, 5, split=False), Form(), "takes no images"),
        (port(3, 5, 5), Form(mean=(0.5,)), "`mean` has 1 numbers for the 3 channels"),
        (port(1, 5, 5), Form(std=(1, 1, 1)), "`std` has 3 numbers for the 1 channels"),
        (port(1, 5, 5), Form(std=(0,)), "no finite values"),
        (port(1, 5, 5), Form(std=(-1,)), "no finite values"),
        (port(1, 5, 5), Form(scale=-1), "no finite values"),
        (port(1, 5, 5), Form(scale=0), "no finite values"),
        (port(1, 5, 5, kind="float16"), Form(scale=1e-6), "no finite values"),
        (port(1, 5, 5), Form(mean=(float("nan"),)), "no finite values"),
        (port(1, 5, 5, kind="uint8"), Form(mean=(0.5,)), "takes pixels as they are"),
        (port(1, 5, 5, kind="uint8"), Form(scale=1), "takes pixels as they are"),
    ],
)
def test_options_that_do_not_fit_are_refused(tmp_path: Path, port: Port, form: Form, message: str) -> None:
    Image.new("L", (5, 5)).save(tmp_path / "a.png")
    with pytest.raises(OptionError, match=message):
        read(tmp_path, port, form)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "BMP", "GIF", "TIFF", "WEBP"])
def test_flipped_bytes_give_an_error_or_an_image(tmp_path: Path, kind: str) -> None:
    rng = np.random.default_rng(6)
    exif = Image.Exif()
    exif[274] = 6
    options = {} if kind in ("BMP", "GIF") else {"exif": exif}
    content = encoded(pixels(12, 12), kind, **options)
    path = tmp_path / f"a.{kind.lower()}"
    messages = []
    for _ in range(100):
        broken = bytearray(content)
        for place in rng.integers(len(content), size=3):
            broken[place] ^= int(rng.integers(1, 256))
        if rng.random() < 0.3:
            broken = broken[: int(rng.integers(len(content)))]
        path.write_bytes(broken)
        try:
            assert read(path, port(3, 8, 8))[:].shape == (1, 3, 8, 8)
        except OnnxliftError as error:
            messages.append(str(error))
    assert messages
    assert all(str(path) in message for message in messages)
