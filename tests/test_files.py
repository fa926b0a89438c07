"""onnxlift.files: what is read and written, and every error of both."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto, numpy_helper
from onnx_text import floats, parse, shapes

from onnxlift.arrays import write_arrays
from onnxlift.equivalence import equivalence
from onnxlift.errors import ModelError, OptionError
from onnxlift.files import load, save, save_with_weights, weights_elsewhere
from onnxlift.model import normal_form

CONSTANTS = {"shape": [0, -1], "one": [1]}


def net(weight: int = 6000) -> ModelProto:
    big = numpy_helper.from_array(floats(4, weight), "w")
    model = parse(
        "t = MatMul(x, w)\nu = Reshape(t, shape)\ny = ReduceSum <keepdims = 0> (u, one)", outputs="float[N] y"
    )
    model.graph.initializer.extend([big, *(numpy_helper.from_array(np.int64(v), n) for n, v in CONSTANTS.items())])
    return model


def external(folder: Path, **changes: str) -> Path:
    """A model whose weights lie beside it in w.bin; `changes` overwrite entries of the reference of `w`."""
    model = net()
    for tensor in model.graph.initializer:
        externalize(tensor, folder)
    for entry in model.graph.initializer[0].external_data:
        entry.value = changes.get(entry.key, entry.value)
    path = folder / "model.onnx"
    path.write_bytes(model.SerializeToString())
    return path


def externalize(tensor: TensorProto, folder: Path) -> None:
    with (folder / "w.bin").open("ab") as file:
        onnx.external_data_helper.set_external_data(tensor, "w.bin", file.tell(), len(tensor.raw_data))
        file.write(tensor.raw_data)
    tensor.ClearField("raw_data")


def test_external_data_is_read_or_referenced(tmp_path: Path) -> None:
    path = external(tmp_path)
    full, light = load(path), load(str(path), weights=False)
    assert not full.graph.initializer[0].external_data
    assert light.graph.initializer[0].external_data
    assert not light.graph.initializer[0].raw_data
    result = normal_form(light, folder=tmp_path)
    assert shapes(result)["u"] == ["N", 6000], "the small shape tensor was read"
    assert [t.name for t in result.graph.initializer if t.external_data] == ["w"]
    save(result, tmp_path / "copy.onnx")
    data = {"x": floats(3, 4)}
    assert equivalence(full, load(tmp_path / "copy.onnx"), data) == {"y": 0.0}
    (tmp_path / "elsewhere").mkdir()
    with pytest.raises(ModelError, match=r"w\.bin.* is missing"):
        save(result, tmp_path / "elsewhere" / "copy.onnx")
    assert not list((tmp_path / "elsewhere").iterdir())
    assert {t.name for t in normal_form(light).graph.initializer if t.external_data} == {"w", "one", "shape"}
    with pytest.raises(ModelError, match="does not know"):
        load(light)
    assert load(light, weights=False) == light


def test_every_small_external_tensor_is_read_wherever_it_is(tmp_path: Path) -> None:
    body = """t = f.A(x)
        k = Constant <value = float[4] {1.0, 2.0, 3.0, 4.0}> ()
        u = Mul(t, k)
        s = Add(u, i)
        c = Less(zero, one)
        y = If(c) <then_branch = a () => (float[N, 4] p) {
            h = Constant <value = float[4] {5.0, 6.0, 7.0, 8.0}> ()
            p = Add(s, h) }, else_branch = b () => (float[N, 4] r) { r = Identity(s) }>
        z = MatMul(x, w)"""
    function = """<domain: "f", opset_import: ["": 21]> A (x) => (y) {
        h = Constant <value = float[4] {9.0, 8.0, 7.0, 6.0}> ()
        y = Add(x, h) }"""
    weights = {"zero": np.float32(0), "one": np.float32(1), "w": floats(4, 6000)}
    outputs = "float[N, 4] y, float[N, 6000] z"
    model = parse(body, outputs=outputs, imports=', "f": 1', tail=function, **weights)
    sparse = model.graph.sparse_initializer.add(dims=[4])
    sparse.values.CopyFrom(numpy_helper.from_array(np.float32([5, 7]), "i"))
    sparse.indices.CopyFrom(numpy_helper.from_array(np.int64([1, 3])))
    branch = model.graph.node[5].attribute[0].g
    nodes = (model.graph.node[1], branch.node[0], model.functions[0].node[0])
    tensors = [*model.graph.initializer, sparse.values, sparse.indices, *(node.attribute[0].t for node in nodes)]
    for tensor in tensors:
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor), tensor.name))  # text gives no raw_data
    expected = normal_form(model)
    for tensor in tensors:
        externalize(tensor, tmp_path)
    save(model, tmp_path / "model.onnx")
    result = normal_form(load(tmp_path / "model.onnx", weights=False), folder=tmp_path)
    assert [tensor.name for tensor in result.graph.initializer if tensor.external_data] == ["w"]
    save(result, tmp_path / "normal.onnx")
    assert load(tmp_path / "normal.onnx") == expected


def test_a_model_over_2_gb_works_by_reference(tmp_path: Path) -> None:
    model = net()
    weight = model.graph.initializer[0]
    weight.ClearField("raw_data")
    weight.dims[:] = [4, 200_000_000]
    weight.data_location = TensorProto.EXTERNAL
    weight.external_data.add(key="location", value="w.bin")
    with (tmp_path / "w.bin").open("wb") as file:
        os.truncate(file.fileno(), 3_200_000_000)  # sparse: takes no space
    save(model, tmp_path / "model.onnx")
    result = normal_form(load(tmp_path / "model.onnx", weights=False), folder=tmp_path)
    save(result, tmp_path / "normal.onnx")
    assert shapes(result)["u"] == ["N", 200_000_000]


@pytest.mark.parametrize("weights", [True, False])
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"location": "missing.bin"}, "is missing"),
        ({"location": "../w.bin"}, "outside of the model's folder"),
        ({"location": "sub/../../w.bin"}, "outside of the model's folder"),
        ({"location": "/etc/hostname"}, "outside of the model's folder"),
        ({"location": "link.bin"}, "outside of the model's folder"),
        ({"location": "linked/hostname"}, "outside of the model's folder"),
        ({"location": ""}, "outside of the model's folder"),
        ({"location": "sub"}, "is missing"),
        ({"location": "a\0b"}, "malformed"),
        ({"offset": "-8"}, "malformed"),
        ({"offset": "many"}, "malformed"),
        ({"offset": "100"}, "too short"),
        ({"length": "99999999"}, "malformed"),
        ({"length": "4"}, "malformed"),
    ],
)
def test_hostile_and_broken_external_data(tmp_path: Path, changes: dict[str, str], message: str, weights: bool) -> None:
    folder = tmp_path / "model"
    (folder / "sub").mkdir(parents=True)
    (tmp_path / "w.bin").write_bytes(b"secret" * 99999)
    (folder / "link.bin").symlink_to(tmp_path / "w.bin")
    (folder / "linked").symlink_to("/etc")
    with pytest.raises(ModelError, match=message) as error:
        load(external(folder, **changes), weights=weights)
    assert "tensor 'w'" in str(error.value)
    assert "\n" not in str(error.value)


def truncated(data: bytes, fraction: float) -> bytes:
    return data[: int(len(data) * fraction)]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not a complete ONNX model"),
        (b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR\x00\x00", "ONNX model"),
        (b"The quick brown fox jumps over the lazy dog.\n", "ONNX model"),
        (b'{"irVersion": "8"}', "ONNX model"),
        (b"\x08\x08", "not a complete ONNX model"),
        (b"\x80\x04\x95cos\nsystem\n(S'true'\ntR.", "ONNX model"),
        *[(truncated(net(20).SerializeToString(), f / 10), "ONNX model") for f in range(1, 10)],
    ],
)
def test_files_that_are_no_models(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    with pytest.raises(ModelError, match=message) as error:
        load(path)
    assert str(path) in str(error.value)


@pytest.mark.parametrize("where", ["nothing.onnx", ".", "file/model.onnx"])
def test_unreadable_paths(tmp_path: Path, where: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ModelError, match="Cannot read"):
        load(tmp_path / where)


def test_opsets_that_onnx_runtime_does_not_load_are_refused() -> None:
    with pytest.raises(ModelError, match=r"opset 99.*knows those up to"):
        load(parse("y = Neg(x)", opset=99))


def test_a_model_proto_is_copied() -> None:
    model = net(3)
    copy = load(model)
    copy.graph.name = "other"
    assert model.graph.name == "net"


@pytest.mark.parametrize("where", [".", "missing/model.onnx", "file/model.onnx"])
def test_unwritable_paths_leave_nothing(tmp_path: Path, where: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ModelError, match="Cannot write"):
        save(net(3), tmp_path / where)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_save_replaces_atomically(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(b"old")
    save(net(3), path)
    assert load(path).graph.name == "net"
    assert [file.name for file in tmp_path.iterdir()] == ["model.onnx"]


def test_a_link_stays_and_the_file_behind_it_is_written(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    link, real = tmp_path / "link.onnx", tmp_path / "elsewhere" / "model.onnx"
    link.symlink_to(real)
    for text in (b"", b"old"):
        real.write_bytes(text)
        save(net(3), link)
        write_arrays(tmp_path / "link.onnx", {"x": floats(2)})
        save(net(3), link)
        assert link.is_symlink()
        assert load(real).graph.name == "net"
        assert [path.name for path in real.parent.iterdir()] == ["model.onnx"]


def test_only_regular_files_are_replaced(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to(tmp_path / "pipe")
    for name in ("pipe", "link"):
        with pytest.raises(ModelError, match=rf"Cannot write .*{name}: it is not a regular file"):
            save(net(3), tmp_path / name)
        with pytest.raises(OptionError, match=rf"Cannot write .*{name}: it is not a regular file"):
            write_arrays(tmp_path / name, {"x": floats(2)})
    assert (tmp_path / "pipe").is_fifo()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "pipe"]


def retype(kind: int) -> Callable[[ModelProto], object]:
    return lambda model: setattr(model.graph.initializer[0], "data_type", kind)


def reshape(*dims: int) -> Callable[[ModelProto], object]:
    return lambda model: model.graph.initializer[0].dims.__setitem__(slice(None), dims)


def retype_value(values: str, kind: int) -> Callable[[ModelProto], object]:
    return lambda model: setattr(getattr(model.graph, values)[0].type.tensor_type, "elem_type", kind)


def as_values(kind: int, field: str, count: int) -> Callable[[ModelProto], object]:
    """A weight of shape [3] whose data are numbers instead of bytes."""

    def change(model: ModelProto) -> None:
        model.graph.initializer[0].CopyFrom(TensorProto(name="w", data_type=kind, dims=[3]))
        getattr(model.graph.initializer[0], field).extend([1] * count)

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (retype(77), "tensor 'w' has the unknown element type 77"),
        (retype(TensorProto.UNDEFINED), "tensor 'w' has the unknown element type 0"),
        (reshape(4, 999), "tensor 'w' of shape [4, 999] needs 15984 bytes, but has 48"),
        (reshape(-4, 3), "tensor 'w' has the negative shape [-4, 3]"),
        (reshape(-4, -3), "tensor 'w' has the negative shape [-4, -3]"),
        (as_values(TensorProto.FLOAT, "float_data", 2), "tensor 'w' of shape [3] needs 3 values, but has 2"),
        (as_values(TensorProto.COMPLEX64, "float_data", 3), "tensor 'w' of shape [3] needs 6 values, but has 3"),
        (as_values(TensorProto.INT4, "int32_data", 3), "tensor 'w' of shape [3] needs 2 values, but has 3"),
        (as_values(TensorProto.INT64, "float_data", 3), "tensor 'w' of shape [3] needs 3 values, but has 0"),
        (retype_value("input", 77), "tensor 'x' has the unknown element type 77"),
        (retype_value("input", 0), "tensor 'x' has the unknown element type 0"),
        (retype_value("output", 77), "tensor 'y' has the unknown element type 77"),
        (lambda model: model.graph.input[0].ClearField("type"), "graph input 'x' has no type"),
        (lambda model: model.graph.input.append(model.graph.input[0]), "Two graph inputs have the name 'x'"),
    ],
)
def test_models_that_are_broken_inside(tmp_path: Path, change: Callable[[ModelProto], object], message: str) -> None:
    model = net(3)
    change(model)
    (tmp_path / "model.onnx").write_bytes(model.SerializeToString())
    for given in (model, tmp_path / "model.onnx"):
        for weights in (True, False):
            with pytest.raises(ModelError) as error:
                load(given, weights=weights)
            assert message in str(error.value)


@pytest.mark.parametrize("kind", sorted(set(TensorProto.DataType.values()) - {TensorProto.UNDEFINED}))
@pytest.mark.parametrize("raw", [True, False])
@pytest.mark.parametrize("shape", [(0,), (1,), (3,), (5, 3)])
def test_tensors_of_every_type_are_accepted(kind: int, raw: bool, shape: tuple[int, ...]) -> None:
    if kind == TensorProto.STRING:
        tensor = onnx.helper.make_tensor("w", kind, shape, ["a"] * int(np.prod(shape)))
    else:
        array = np.ones(shape, onnx.helper.tensor_dtype_to_np_dtype(kind))
        tensor = numpy_helper.from_array(array, "w") if raw else onnx.helper.make_tensor("w", kind, shape, array)
    model = net(3)
    model.graph.initializer[0].CopyFrom(tensor)
    assert load(model).graph.initializer[0] == tensor


def test_what_onnx_stumbles_over_is_a_model_error() -> None:
    model = parse("y = Add(x, s)")
    sparse = model.graph.sparse_initializer.add(dims=[4])
    sparse.values.CopyFrom(numpy_helper.from_array(np.float32([5]), "s"))
    sparse.indices.CopyFrom(numpy_helper.from_array(np.int64([99])))
    with pytest.raises(ModelError, match=r"cannot be brought to normal form: .*99"):
        normal_form(model)


def test_weights_are_copied_into_a_file_of_their_own(tmp_path: Path) -> None:
    path = external(tmp_path)
    other = tmp_path / "other"
    other.mkdir()
    light = load(path, weights=False)
    assert weights_elsewhere(light, tmp_path) == (tmp_path / "w.bin").stat().st_size
    save_with_weights(light, other / "copy.onnx", tmp_path)
    assert sorted(file.name for file in other.iterdir()) == ["copy.onnx", "copy.onnx.data"]
    data = {"x": floats(3, 4)}
    assert equivalence(load(path), load(other / "copy.onnx"), data) == {"y": 0.0}
    with pytest.raises(OptionError, match="there is no folder"):
        save_with_weights(light, tmp_path / "nowhere" / "copy.onnx", tmp_path)
