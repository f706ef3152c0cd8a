"""JupyterLab on a copy of the lessons, and a Chromium, both ended by process id."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import nbformat
import psutil
from papermill.iorw import load_notebook_node
from papermill.parameterize import parameterize_notebook

ROOT = Path(__file__).resolve().parents[2]
CHROMIUMS = ("chromium", "chromium-browser", "google-chrome")
INSTALL = f'{sys.executable} -m pip install "playwright>=1.50,<2"'
INSTALL_CHROMIUM = (
    "install one (Debian: apt-get install chromium; elsewhere: "
    f"{sys.executable} -m playwright install chromium) or set ALPACA_CHROMIUM to its path"
)
STARTUP_SECONDS = 180.0
GRACE_SECONDS = 20.0
# A reader's own settings count for nothing here; no question about news, nothing fetched.
SETTINGS = {
    "@jupyterlab/apputils-extension/notification.jupyterlab-settings": {
        "fetchNews": "false",
        "checkForUpdates": False,
    },
}


class MissingBrowserError(Exception):
    """Reports that no browser can be driven; the text says what to install."""


def require_playwright() -> None:
    """Raises MissingBrowserError, with the line that installs it, if playwright is missing."""
    if importlib.util.find_spec("playwright") is None:
        raise MissingBrowserError(f"playwright is not installed; run {INSTALL}")


def find_chromium(
    environment: Mapping[str, str], which: Callable[[str], str | None] = shutil.which
) -> str | None:
    """Returns the path of an installed Chromium; None: playwright's own is left to try."""
    named = environment.get("ALPACA_CHROMIUM")
    if not named:
        return next((found for name in CHROMIUMS if (found := which(name))), None)
    found = which(named)
    if found is None:
        raise MissingBrowserError(f"ALPACA_CHROMIUM={named} is not a program; {INSTALL_CHROMIUM}")
    return found


def launch_chromium(playwright: Any) -> Any:
    """Starts a headless Chromium and returns it, or raises MissingBrowserError."""
    as_root = hasattr(os, "geteuid") and os.geteuid() == 0
    try:
        return playwright.chromium.launch(
            executable_path=find_chromium(os.environ),
            args=["--no-sandbox"] if as_root else [],
            timeout=STARTUP_SECONDS * 1000,
        )
    except Exception as error:  # playwright's, of a missing or broken browser
        if isinstance(error, MissingBrowserError):
            raise
        first = str(error).strip().splitlines()[0]
        raise MissingBrowserError(f"no Chromium started ({first}); {INSTALL_CHROMIUM}") from None


def copy_lessons(folder: Path, parameters: Mapping[str, Mapping[str, Any]]) -> None:
    """Writes lessons with these parameters, without outputs, and the images they show."""
    (folder / "notebooks").mkdir(parents=True)
    shutil.copytree(ROOT / "images", folder / "images")
    for name, values in parameters.items():
        book = load_notebook_node(str(ROOT / "notebooks" / f"{name}.ipynb"))
        if values:
            book = parameterize_notebook(book, dict(values))
        for cell in book.cells:
            cell.metadata.pop("papermill", None)
            if cell.cell_type == "code":
                cell.outputs, cell.execution_count = [], None
        book.metadata.pop("papermill", None)
        nbformat.write(book, folder / "notebooks" / f"{name}.ipynb")


def make_environment(base: Mapping[str, str], folder: Path) -> dict[str, str]:
    """Returns the environment of a server whose notebooks are read by a person.

    Settings, workspaces and outputs of the course are inside ``folder``.
    """
    kept = {
        name: value
        for name, value in base.items()
        if name not in ("ALPACA_HEADLESS", "ALPACA_RUN", "PYTEST_CURRENT_TEST", "JUPYTER_CONFIG")
        and not name.startswith(("JUPYTER_", "JUPYTERLAB_"))
    }
    paths = [str(ROOT), base.get("PYTHONPATH", "")]
    bin_folder = str(Path(sys.executable).parent)
    return kept | {
        "ALPACA_RUNS": str(folder / "runs"),
        "JUPYTER_CONFIG_DIR": str(folder / "config"),
        "JUPYTER_DATA_DIR": str(folder / "data"),
        "JUPYTER_RUNTIME_DIR": str(folder / "runtime"),
        "JUPYTERLAB_SETTINGS_DIR": str(folder / "settings"),
        "JUPYTERLAB_WORKSPACES_DIR": str(folder / "workspaces"),
        "PATH": bin_folder + os.pathsep + base.get("PATH", ""),
        "PYTHONPATH": os.pathsep.join(path for path in paths if path),
        "PYTHONUTF8": "1",
    }


def free_port() -> int:
    """Returns a port of this machine that nobody listens at."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def remember(processes: Iterable[psutil.Process]) -> set[psutil.Process]:
    """Returns processes and all that they started, as far as they are still there."""
    found = set()
    for process in processes:
        try:
            found |= {process, *process.children(recursive=True)}
        except psutil.NoSuchProcess:
            continue
    return found


def end(processes: Iterable[psutil.Process]) -> None:
    """Ends processes by their ids: SIGTERM, and after GRACE_SECONDS SIGKILL."""
    running = [process for process in processes if process.is_running()]
    for way in ("terminate", "kill"):
        for process in running:
            try:
                getattr(process, way)()
            except psutil.NoSuchProcess:
                continue
        _, running = psutil.wait_procs(running, timeout=GRACE_SECONDS)


class Lab:
    """A JupyterLab server at 127.0.0.1, started by ``start`` and ended by ``stop``.

    >>> lab = Lab(folder)   # folder/notebooks has the lessons
    >>> lab.start()
    >>> page.goto(lab.address("notebooks/01_self_instruct.ipynb"))
    >>> lab.stop()
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = free_port()
        self.token = os.urandom(16).hex()
        self.log = folder / "server.log"
        self._process: subprocess.Popen[bytes] | None = None

    def address(self, path: str) -> str:
        """Returns the address at which JupyterLab opens a file of the folder, and it alone."""
        workspace = re.sub(r"\W", "-", path)  # the default one opens what was open before, too
        root = f"http://127.0.0.1:{self.port}/lab/workspaces/{workspace}"
        return f"{root}/tree/{path}?token={self.token}"

    def command(self) -> list[str]:
        """Returns the command line of the server."""
        return [
            sys.executable,
            "-m",
            "jupyter",
            "lab",
            "--no-browser",
            "--allow-root",
            "--expose-app-in-browser",
            "--ServerApp.ip=127.0.0.1",
            f"--ServerApp.port={self.port}",
            "--ServerApp.port_retries=0",
            f"--IdentityProvider.token={self.token}",
            f"--ServerApp.root_dir={self.folder}",
        ]

    def start(self) -> None:
        """Starts the server and waits until it answers."""
        for name, values in SETTINGS.items():
            path = self.folder / "settings" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(values), encoding="utf-8")
        with open(self.log, "wb") as log:
            self._process = subprocess.Popen(
                self.command(),
                cwd=self.folder,
                env=make_environment(os.environ, self.folder),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        deadline = time.monotonic() + STARTUP_SECONDS
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > deadline:
                text = self.log.read_text(encoding="utf-8", errors="replace")
                self.stop()
                raise RuntimeError(f"JupyterLab did not start:\n{text[-3000:]}")
            time.sleep(0.3)

    def stop(self) -> None:
        """Ends the server, its kernels and what they started."""
        if self._process is None:
            return
        try:
            started = remember([psutil.Process(self._process.pid)])
        except psutil.NoSuchProcess:
            started = set()
        self._process.terminate()  # at which it ends its kernels
        try:
            self._process.wait(GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        end(started)

    def _answers(self) -> bool:
        address = f"http://127.0.0.1:{self.port}/api/status?token={self.token}"
        direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with direct.open(address, timeout=5) as reply:
                return bool(reply.status == 200)
        except (urllib.error.URLError, OSError):
            return False
