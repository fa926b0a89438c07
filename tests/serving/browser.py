"""A web page in Chromium: what a visitor does there, told as steps, and what the page answers."""

from __future__ import annotations

import functools
import json
import shutil
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

_SCRIPT = Path(__file__).with_name("web")
_NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")


@dataclass(frozen=True)
class Visit:
    """What came of the steps, one result for each; warnings and errors of the page; the addresses it asked for."""

    results: list[Any]
    problems: list[str]
    requests: list[str]


class Browser:
    """Chromium, driven by playwright-core, which npm installs into `folder`."""

    def __init__(self, folder: Path) -> None:
        found = next(filter(None, map(shutil.which, _NAMES)), None)
        if found is None:
            pytest.fail("Chromium is missing: install it, on Debian with `apt-get install chromium`")
        if shutil.which("npm") is None:
            pytest.fail("npm is missing: install Node.js 20 or later, on Debian with `apt-get install nodejs npm`")
        self.path = found
        self.folder = folder
        shutil.copytree(_SCRIPT, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("node_modules"))
        npm = subprocess.run(["npm", "ci", "--ignore-scripts"], cwd=folder, capture_output=True, text=True)
        if npm.returncode:
            pytest.fail(f"npm could not install playwright-core: {npm.stderr}")

    def visit(
        self, url: str, *steps: tuple[Any, ...], width: int = 1200, scheme: str = "light", flags: tuple[str, ...] = ()
    ) -> Visit:
        """Open a page and do the steps, `(name, *arguments)` as in web/drive.mjs. Fails where one cannot be done."""
        asked = {"browser": self.path, "flags": flags, "url": url, "width": width, "height": 900, "scheme": scheme}
        told = json.dumps({**asked, "steps": steps}, default=str)
        run = subprocess.run(
            ["node", "drive.mjs"], cwd=self.folder, input=told, capture_output=True, text=True, timeout=300
        )
        if run.returncode:
            pytest.fail(run.stderr)
        return Visit(**json.loads(run.stdout))


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        pass


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """A static web server of a folder, as `python -m http.server` is: its address."""
    with ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(_Quiet, directory=folder)) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()
        thread.join()
