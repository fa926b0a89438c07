"""What `onnxlift serve` refuses before it serves; tests/serving has the rest, which needs the packages of a server."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

import onnxlift
from onnxlift import cli

MODEL = Path(__file__).parents[1] / "models" / "mnist_cnn.onnx"


def refused(*arguments: object) -> str:
    """What the command says on stderr, one paragraph."""
    result = CliRunner().invoke(cli.main, ["serve", *map(str, arguments)])
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1
    return result.stderr


def test_a_plain_model() -> None:
    said = refused(MODEL)
    assert f"{MODEL} is a plain model, and an explainer is served: make one with `onnxlift rewrite {MODEL} expl" in said


def test_no_file(tmp_path: Path) -> None:
    assert "Cannot read the model" in refused(tmp_path / "nothing.onnx")


@pytest.mark.parametrize("package", ["aiohttp", "grpc", "orjson", "prometheus_client", "tritonclient.grpc"])
def test_without_its_packages(package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    explainer = tmp_path / "explainer.onnx"
    onnxlift.rewrite_file(MODEL, explainer, target="argmax", reference="zeros")
    for name in [name for name in sys.modules if name.startswith("onnxlift.serving.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    assert "pip install 'onnxlift[serve]'" in refused(explainer)


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--max-request-size", "64 MiB", "'64 MiB' is no size up to 2 GB such as 64MB or 500KB"),
        ("--max-request-size", "0", "is no size"),
        ("--max-request-size", "-1MB", "is no size"),
        ("--max-request-size", "2GB", None),
        ("--max-request-size", "3GB", "is no size"),
        ("--max-request-size", "many", "is no size"),
        ("--name", "", "cannot be part of a path"),
        ("--name", "a/b", "'a/b' cannot be part of a path: a name has no '/'"),
        ("--grpc-port", "on", "'on' is not a valid integer range"),
        ("--grpc-port", "70000", "70000 is not in the range 0<=x<=65535"),
        ("--port", "-1", "-1 is not in the range 0<=x<=65535"),
        ("--concurrency", "0", "0 is not in the range x>=1"),
        ("--batch-size", "0", "0 is not in the range x>=1"),
        ("--max-request-size", "64MB", None),
        ("--max-request-size", "1gb", None),
        ("--max-request-size", "500000", None),
        ("--grpc-port", "off", None),
    ],
)
def test_options(option: str, value: str, message: str | None) -> None:
    """Without a message it is the model that is refused."""
    assert (message or "is a plain model") in refused(MODEL, option, value)
