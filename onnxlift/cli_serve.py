"""The command `onnxlift serve`."""

from __future__ import annotations

import os
import re
from pathlib import Path

import click

from onnxlift import cli_options
from onnxlift.errors import OptionError
from onnxlift.files import load
from onnxlift.metadata import served
from onnxlift.runtime import Explainer

_UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9}
_PORT = click.IntRange(0, 65535)


def _bytes(ctx: click.Context, param: click.Parameter, value: str) -> int:
    match = re.fullmatch(r"(\d{1,12}) ?(|KB|MB|GB)", value.strip(), re.IGNORECASE)
    if match is None or not 0 < (size := int(match[1]) * _UNITS[match[2].upper()]) <= 2 * 10**9:
        raise click.BadParameter(f"{value!r} is no size up to 2 GB such as 64MB or 500KB")
    return size


def _grpc_port(ctx: click.Context, param: click.Parameter, value: str) -> int | None:
    return None if value == "off" else int(_PORT(value, param, ctx))


def _name(ctx: click.Context, param: click.Parameter, value: str | None) -> str | None:
    if value is not None and (not value or "/" in value):
        raise click.BadParameter(f"{value!r} cannot be part of a path: a name has no '/'")
    return value


@click.command("serve", short_help="Serve an explainer over HTTP and gRPC (Open Inference Protocol).")
@click.argument("explainer", type=click.Path(path_type=Path))
@click.option("--host", default="127.0.0.1", show_default=True, help="The address to listen on; 0.0.0.0 for all.")
@click.option("--port", type=_PORT, default=8080, show_default=True, help="For HTTP; 0 is any free one.")
@click.option("--grpc-port", callback=_grpc_port, default="8081", show_default=True, metavar="PORT|off",
              help="For gRPC.")  # fmt: skip
@click.option("--name", callback=_name, metavar="NAME", help="What clients call the model. [default: the file's]")
@click.option("--max-request-size", "size", callback=_bytes, default="64MB", show_default=True, metavar="SIZE",
              help="Larger requests are refused before they are in memory.")  # fmt: skip
@click.option("--concurrency", type=click.IntRange(1), default=16, show_default=True, metavar="COUNT",
              help="How many requests may be under way: one is computed, the others wait. More are refused for now: "
              "503, UNAVAILABLE.")  # fmt: skip
@click.option("--batch-size", type=click.IntRange(1), metavar="COUNT",
              help="How many samples of a request run at once. [default: what is fastest]")  # fmt: skip
@cli_options.RUNNING
def serve_command(
    explainer: Path,
    host: str,
    port: int,
    grpc_port: int | None,
    name: str | None,
    size: int,
    concurrency: int,
    batch_size: int | None,
    tolerance: float,
    providers: tuple[str, ...],
) -> None:
    """Serve EXPLAINER over HTTP and gRPC, to clients of the Open Inference Protocol v2 such as tritonclient.

    A response has all outputs of the explainer, or those that are asked for. References that are made of each sample
    (dinuc-shuffle:20) are made here; other servers of ONNX files need them in the request. /metrics is for Prometheus
    and tells how far contributions are from adding up; samples beyond --tolerance are counted.

    Ctrl-C and SIGTERM stop it, when the requests under way are answered. There is neither encryption nor a password:
    put a proxy in front that has them before you listen on more than this machine.

    Needs pip install 'onnxlift[serve]'.

    \b
    Examples:
      onnxlift serve explainer.onnx
      onnxlift serve explainer.onnx --host 0.0.0.0 --port 80 --grpc-port off --name digits --batch-size 32
      curl localhost:8080/v2/models/explainer
    """
    served(load(explainer, weights=False), explainer)
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # or it writes to stderr what is raised too
    try:
        from onnxlift.serving.server import serve
        from onnxlift.serving.service import Limits
    except ImportError as error:
        raise OptionError(f"serving needs {error.name}: pip install 'onnxlift[serve]'") from error
    loaded = Explainer(
        explainer,
        providers=cli_options.providers(providers),
        batch_size=batch_size,
        tolerance=tolerance,
        progress=False,
    )
    serve(loaded, name or explainer.stem, host, port, grpc_port, Limits(size, concurrency))
