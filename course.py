#!/usr/bin/env python3
"""Starts the course. It needs Python 3.11 or newer, and nothing else.

    python course.py run      run the five notebooks, print one table of results
    python course.py lab      open them in JupyterLab
    python course.py test     run every test, the notebooks included; with --browser only
                              those that move the widgets in JupyterLab, in a Chromium
    python course.py check    report what this machine can do

    python course.py exercises    run the solutions, write the exercises from them
    python course.py student OUT  copy the course without outputs and solutions
    python course.py grade FILES  run students' notebooks, print who solved what
    python course.py badges --repo OWNER/NAME   link the notebooks of a copy to Colab
    python course.py book         build the pages of the book (requirements-book.txt)
    python course.py translate zh write the Chinese edition from its translations

    python course.py run --help      its options; those of `lab` and `test` are
                                     JupyterLab's and pytest's

The first call creates .venv, installs requirements.txt and alpaca_lib in it (2 to
10 minutes), and fetches the embedded model (98 MB). Later calls start at once. An
environment that already has the packages (conda, Colab) is used unchanged; with
--here as the first option, missing packages are installed into it instead.
"""

from __future__ import annotations

import hashlib
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
import threading
import time
from pathlib import Path
from typing import Any, TextIO

ROOT = Path(__file__).resolve().parent
VENV = ROOT / ".venv"
IS_WINDOWS = os.name == "nt"
INSIDE = "Scripts/python.exe" if IS_WINDOWS else "bin/python"  # of an environment
STAMP = VENV / "course-stamp"
NEEDED_GB = 7
# Every cell of every notebook is a test; the output of a cell tagged nbval-check-output
# is compared too.
NBVAL = ("--nbval-lax", "--nbval-current-env", "--nbval-cell-timeout=1200")
# tests/notebooks/test_exercises.py runs the solutions; the Chinese edition has the same code.
NOT_NBVAL = tuple(f"--ignore=notebooks/{name}" for name in ("exercises", "solutions", "zh"))
# Processes that run the tests, about 2 GB each; one of them runs the notebooks.
MOST_WORKERS = 4
# Packages that --here does not replace where they are new enough: large, built for the machine's
# GPU, or loaded in the running kernel.
KEPT = ("torch", "torchvision", "torchaudio", "numpy", "transformers")
# pytest's options whose value is the next word.
VALUED = ("-c", "-k", "-m", "-n", "-o", "-p", "-r", "-W", "--deselect", "--durations", "--ignore")
# Commands that are modules of their own, and those of course/exercises.py.
MODULES = {"check": "machine", "book": "book", "translate": "editions", "badges": "badges"}
EXERCISES = ("exercises", "student", "grade")
COMMANDS = ("run", "lab", "test", "check", *EXERCISES, "badges", "book", "translate")

QUIET: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}


class SetupError(Exception):
    """Reports something that has to be changed on this machine first; the text says what."""


def main(arguments: list[str]) -> int:
    """Runs a command of the command line and returns its exit code."""
    # The file itself parses from Python 3.7 on, so that this line is reached.
    if sys.version_info < (3, 11):  # noqa: UP036
        print(
            f"error: the course needs Python 3.11 or newer; this is {sys.version.split()[0]} "
            f"({sys.executable}).\n"
            "Install one (python.org, conda, uv) and run: python3.11 course.py ...",
            file=sys.stderr,
        )
        return 2
    here = "--here" in arguments[:1]
    arguments = arguments[1:] if here else arguments
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(__doc__)
        return 0
    command, options = arguments[0], arguments[1:]
    if command not in COMMANDS:
        print(f"error: no command {command!r}; there are {', '.join(COMMANDS)}", file=sys.stderr)
        return 2
    signal.signal(signal.SIGTERM, stop)
    try:
        python = find_python(here)
    except SetupError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nstopped; the same command resumes from here", file=sys.stderr)
        return 130
    try:
        return hand_over(python, command, options)
    except KeyboardInterrupt:
        return 130


def stop(number: int, frame: object) -> None:
    """Stops at a signal as at Ctrl-C: what was started (venv, pip) is ended, too."""
    raise KeyboardInterrupt


def hand_over(python: str, command: str, options: list[str]) -> int:
    """Runs a command with the Python of the environment and returns its exit code."""
    environment = dict(os.environ, PYTHONUTF8="1")
    paths = [str(ROOT), environment.get("PYTHONPATH", "")]
    environment["PYTHONPATH"] = os.pathsep.join(p for p in paths if p)
    # So that the kernel "python3", torchrun and pytest are those of this environment.
    bin_folder = str(Path(python).parent)
    environment["PATH"] = bin_folder + os.pathsep + environment.get("PATH", "")
    if sys.platform == "darwin":  # what torch lacks on an Apple GPU is computed on the CPU
        environment.setdefault("PYTORCH_ENABLE_MPS_FALLBACK", "1")
    for name in ("ALPACA_CACHE", "ALPACA_MODELS", "ALPACA_RUNS"):  # notebooks run elsewhere
        if environment.get(name):
            environment[name] = os.path.abspath(os.path.expanduser(environment[name]))

    # A waiting thread of OpenMP (GCC's) spins 300,000 times before it sleeps. With another busy
    # program that makes training several times slower; 10,000 cost 2 % on an idle machine.
    environment.setdefault("GOMP_SPINCOUNT", "10000")
    # torch asks Linux for pages of 2 MB: of 4 KB, the first use of a gigabyte is 262,144 faults.
    environment.setdefault("THP_MEM_ALLOC_ENABLE", "1")

    def call(*words: str) -> int:
        return wait_for(subprocess.Popen([python, *words], cwd=str(ROOT), env=environment))

    wants_help = any(word in ("-h", "--help") for word in options)
    if command in ("run", "lab") and not wants_help:
        code = call("-m", "alpaca_lib.models")
        if code:
            return code
    if command == "run":
        return call("-m", "alpaca_lib.course.runner", *options)
    if command in MODULES:
        return call("-m", f"alpaca_lib.course.{MODULES[command]}", *options)
    if command in EXERCISES:
        return call("-m", "alpaca_lib.course.exercises", command, *options)
    if command == "lab":
        return call("-m", "jupyter", "lab", "--notebook-dir", str(ROOT), *options)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        environment.update(ALPACA_RUNS=folder, ALPACA_HEADLESS="1")
        # Workers, kernels and launched ranks have more threads than there are cores.
        environment["GOMP_SPINCOUNT"] = os.environ.get("GOMP_SPINCOUNT", "1000")
        if "--browser" in options:  # one server, one browser
            if not names_tests(options):
                options = [*options, "tests/browser"]
        elif not names_tests(options):  # before the user's own, so that -n 0 there counts
            options = [*options, "tests", "notebooks"]
            workers = min(os.cpu_count() or 1, MOST_WORKERS)
            users = environment.get("PYTEST_ADDOPTS", "")
            environment["PYTEST_ADDOPTS"] = f"-n {workers if workers > 1 else 0} {users}"
        return call("-m", "pytest", *NBVAL, *NOT_NBVAL, *options)


def names_tests(options: list[str]) -> bool:
    """Returns whether pytest's options name tests: a word that is no option, and none's value."""
    before = ["", *options]
    return any(
        not word.startswith("-") and last not in VALUED
        for last, word in zip(before, options, strict=False)
    )


def wait_for(process: subprocess.Popen[bytes]) -> int:
    """Waits for a process and returns its exit code; 128 + N if signal N ended it.

    SIGTERM and SIGHUP are passed on, so that whoever ends this process ends all of them; so is
    SIGINT, unless a terminal has sent it to both.
    """

    def pass_on(number: int, frame: object) -> None:
        if process.poll() is None and not (number == signal.SIGINT and sys.stdin.isatty()):
            process.send_signal(number)

    names = ("SIGINT", "SIGTERM", "SIGHUP") if os.name == "posix" else ()
    before = {getattr(signal, n): signal.signal(getattr(signal, n), pass_on) for n in names}
    try:
        code = process.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return code if code >= 0 else 128 - code


def find_python(here: bool) -> str:
    """Returns the path of a Python that has every package; installs them if needed."""
    wanted = fingerprint()
    inside = venv_python()
    if not here and inside.exists() and read(STAMP) == wanted:
        return str(inside)
    missing = missing_here()
    if not missing:
        return sys.executable
    if here or "COLAB_RELEASE_TAG" in os.environ:
        print(f"installing into {sys.prefix}: {', '.join(missing)}", flush=True)
        add(missing)
        return sys.executable
    check_system()
    make_venv(inside)
    install(str(inside), VENV / "install.log", ["-r", "requirements.txt"])
    STAMP.write_text(wanted, encoding="utf-8")
    return str(inside)


def check_system() -> None:
    """Raises SetupError for a system that torch, bitsandbytes or llama.cpp have no packages for."""
    elsewhere = "Or use Colab (see README.md) or another machine"
    if sys.platform == "darwin":
        if platform.machine() != "arm64":
            raise SetupError(
                "torch has no packages for this Python, which is built for Intel Macs. On Apple "
                f"silicon install Python for arm64 (python.org, uv, Homebrew). {elsewhere}"
            )
        version = platform.mac_ver()[0]
        if re.match(r"1[123]\b", version):
            raise SetupError(
                f"torch and bitsandbytes need macOS 14 or newer; this is {version}. Update it. "
                f"{elsewhere}"
            )
    if IS_WINDOWS and sysconfig.get_platform() != "win-amd64":
        raise SetupError(
            f"torch and llama.cpp have no packages for {sysconfig.get_platform()}; install the "
            f"64-bit Python for x86-64 (python.org). {elsewhere}"
        )


def fingerprint() -> str:
    """Returns a checksum that changes with the Python and the packages to install."""
    digest = hashlib.sha256(sys.version.encode())
    for name in ("requirements.txt", "constraints.txt", "pyproject.toml"):
        digest.update((ROOT / name).read_bytes())
    return digest.hexdigest() + "\n"


def venv_python() -> Path:
    """Returns the path of the Python in .venv."""
    return VENV / INSIDE


def read(path: Path) -> str:
    """Returns the text of a file, empty if it does not exist."""
    try:
        return path.read_text(encoding="utf-8")
    except OSError:
        return ""


def missing_here() -> list[str]:
    """Returns the lines of requirements.txt that the packages of this Python do not meet."""
    from importlib import metadata

    missing = []
    for line in (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines():
        wanted = line.partition("#")[0].strip()
        if not wanted or wanted.startswith("-"):
            continue
        name, bounds = re.findall(r"^([\w.-]+)(.*)", wanted)[0]
        try:
            if not fits(metadata.version(name), bounds):
                missing.append(wanted)
        except metadata.PackageNotFoundError:
            missing.append(wanted)
    return missing


def fits(version: str, bounds: str) -> bool:
    """Returns whether a version meets bounds like ">=5.17,<6"."""
    have = numbers(version)
    for bound in bounds.split(","):
        sign, number = re.findall(r"^\s*(==|>=|<|)(.*)", bound)[0]
        want = numbers(number)
        padded = have + (0,) * (len(want) - len(have))
        if sign == "==" and padded[: len(want)] != want:
            return False
        if sign == ">=" and padded < want:
            return False
        if sign == "<" and padded >= want:
            return False
    return True


def numbers(version: str) -> tuple[int, ...]:
    """Returns the numbers of a version, without its local part: 2.13.0+cpu -> (2, 13, 0)."""
    return tuple(int(n) for n in re.findall(r"\d+", version.partition("+")[0]))


def make_venv(inside: Path) -> None:
    """Creates .venv, or keeps one that an interrupted call left incomplete."""
    if not os.access(str(ROOT), os.W_OK):
        raise SetupError(
            f"{ROOT} cannot be written, so .venv cannot be created there. Copy the project to a "
            f"folder of yours; or create an environment elsewhere ({sys.executable} -m venv DIR), "
            f"run DIR/{INSIDE} -m pip install -r {ROOT / 'requirements.txt'}, and start with "
            f"DIR/{INSIDE} course.py run --out FOLDER"
        )
    free = shutil.disk_usage(ROOT).free / 1e9
    if free < NEEDED_GB:
        raise SetupError(
            f"{ROOT} has {free:.1f} GB free; the packages and models need about {NEEDED_GB} GB. "
            "Free some, or move the project to another disk"
        )
    if inside.exists() and subprocess.call([str(inside), "-m", "pip", "--version"], **QUIET) == 0:
        return
    print("creating .venv ...", flush=True)
    done = subprocess.run(
        [sys.executable, "-m", "venv", "--clear", str(VENV)], capture_output=True, text=True
    )
    if done.returncode:
        output = (done.stdout + done.stderr).strip().splitlines()
        if re.search("Permission denied|Read-only|No space left", "".join(output)):
            raise SetupError(f"{VENV} could not be created: {output[-1]}")
        raise SetupError(
            "Python's venv module could not create .venv. On Debian and Ubuntu: "
            f"apt install python3-venv. Its output: {output[-1] if output else 'nothing'}"
        )


def add(missing: list[str]) -> None:
    """Installs missing packages into this Python; what of KEPT fits keeps its version."""
    from importlib import metadata

    lacking = {re.split("[=<>]", line)[0] for line in missing}
    lines = []
    for name in KEPT:
        try:
            if name not in lacking:
                lines.append(f"{name}=={metadata.version(name)}")
        except metadata.PackageNotFoundError:
            continue
    with tempfile.TemporaryDirectory() as folder:
        kept = Path(folder) / "kept.txt"
        kept.write_text("\n".join(lines), encoding="utf-8")
        install(sys.executable, ROOT / "course-install.log", [*missing, "-c", str(kept)])


def install(python: str, log: Path, wanted: list[str]) -> None:
    """Installs what pip's arguments name, then alpaca_lib in place, and prints the progress."""
    print("installing the packages of requirements.txt (2 to 10 minutes) ...", flush=True)
    steps = [wanted, ["--no-deps", "-e", "."]]
    with open(log, "w", encoding="utf-8") as stream:
        for step in steps:
            command = [python, "-m", "pip", "install", "--retries", "2", "--progress-bar", "off"]
            command += ["--disable-pip-version-check", *step]
            process = subprocess.Popen(
                command,
                cwd=str(ROOT),
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
            )
            follow(process, stream)
            if process.returncode:
                raise SetupError(explain(read(log), log))


def follow(process: subprocess.Popen[str], stream: TextIO) -> None:
    """Copies pip's output to the log and prints its newest step every 20 seconds."""
    newest = ""
    ended = threading.Event()

    def report() -> None:
        start = time.monotonic()
        while not ended.wait(20):
            print(f"  {time.monotonic() - start:3.0f} s: {newest[:70]}", flush=True)

    thread = threading.Thread(target=report, daemon=True)
    thread.start()
    try:
        for line in process.stdout or ():
            stream.write(line)
            stream.flush()
            if re.match(r"\s*(Collecting|Downloading|Installing|Using|Building)", line):
                newest = line.strip()
        process.wait()
    except BaseException:
        process.terminate()
        process.wait()
        raise
    finally:
        ended.set()
        thread.join()


def explain(text: str, log: Path) -> str:
    """Returns why pip failed, from its output, and the fix."""
    errors = [line for line in text.splitlines() if line.startswith("ERROR")]
    last = errors[-1] if errors else (text.strip().splitlines() or ["nothing"])[-1]
    if "No space left" in text or "Errno 28" in text:
        cause = f"the disk is full; the packages need about {NEEDED_GB} GB"
    elif re.search(r"connection|name resolution|timed out|\(from versions: none\)", text, re.I):
        cause = (
            "the packages cannot be reached. Check the network; a proxy or a mirror is set with "
            "pip's own settings"
        )
    elif "requested (constraint)" in text:
        cause = (
            "the packages cannot be reached in the versions of constraints.txt. Check the network "
            "or mirror; for a Python that has no such version, change it in constraints.txt"
        )
    elif "Long Path" in text:
        cause = (
            "a file's path would be longer than Windows allows: move the project to a short one "
            r"like C:\alpaca, or turn on long paths as pip's hint says"
        )
    elif "externally-managed" in text:
        cause = "this Python belongs to the system; leave out --here, so that .venv is created"
    else:
        cause = "pip could not install the packages"
    return (
        f"{cause}. Then run the same command again.\n"
        f"  pip's last line: {last[:300]}\n  all of it: {log}"
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
