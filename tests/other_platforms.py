"""A pytest plugin that hides from the project and its tests what Windows or macOS lacks.

    TESTS_AS_ON=win32 python -m pytest -p tests.other_platforms -m "not slow" tests
    TESTS_AS_ON=darwin ...

The packages that are installed keep the full os and signal modules, since they are those of
Linux. What it cannot show: paths with backslashes and drives, open files that cannot be renamed,
other encodings, and the packages' own behaviour there.
"""

from __future__ import annotations

import builtins
import importlib
import io
import os
import signal
import sys
import types

PROJECT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
# Loaded before anything is hidden, and all that they load.
PACKAGES = (
    *("accelerate", "aiohttp", "bitsandbytes", "datasets", "filelock", "gguf", "gradio", "httpx"),
    *("importlinter", "IPython", "ipykernel", "ipywidgets", "jupyter_client", "matplotlib.pyplot"),
    *("multiprocessing.popen_spawn_posix", "nbval", "openai", "papermill", "peft", "psutil"),
    *("rapidfuzz", "torch", "torch.distributed.run", "transformers", "uvicorn", "xllamacpp"),
    *("anyio", "asyncio", "tempfile", "getpass", "random", "shutil", "uuid", "zipfile", "tarfile"),
)
HIDDEN = {
    "win32": {
        "modules": ("fcntl", "grp", "pty", "pwd", "readline", "resource", "syslog", "termios"),
        "os": (
            *("fork", "forkpty", "sysconf", "memfd_create", "posix_fallocate", "mkfifo", "mknod"),
            *("getuid", "geteuid", "getgid", "getegid", "getgroups", "killpg", "setsid", "getsid"),
            *("getpgid", "getpgrp", "setpgid", "uname", "statvfs", "fstatvfs", "getloadavg"),
            *(
                "sched_getaffinity",
                "sched_setaffinity",
                "nice",
                "wait",
                "wait3",
                "wait4",
                "WNOHANG",
            ),
            *("pread", "pwrite", "chown", "fchown", "lchown", "chroot", "sync", "fdatasync"),
            *("register_at_fork", "posix_spawn", "sendfile", "openpty", "ttyname", "getpriority"),
        ),
        "signal": (
            *("SIGHUP", "SIGKILL", "SIGQUIT", "SIGUSR1", "SIGUSR2", "SIGALRM", "SIGCHLD"),
            *("SIGPIPE", "SIGSTOP", "SIGCONT", "SIGXFSZ", "SIGXCPU", "SIGTSTP", "alarm"),
            *("setitimer", "pthread_kill", "pthread_sigmask", "sigwait", "pause", "siginterrupt"),
        ),
    },
    "darwin": {
        "modules": (),
        "os": ("memfd_create", "posix_fallocate", "sched_getaffinity", "fdatasync"),
        "signal": (),
    },
}


def pytest_sessionstart(session):
    """Hides it before the tests are collected, and after pytest has made its own folder."""
    session.config._tmp_path_factory.getbasetemp()
    hide(os.environ["TESTS_AS_ON"])


def hide(system: str) -> None:
    """Hides what a system (win32, darwin) lacks: modules, names in os and signal, /proc."""
    for name in PACKAGES:
        importlib.import_module(name)
    hidden = HIDDEN[system]
    for module, names in ((os, hidden["os"]), (signal, hidden["signal"])):
        _keep_for_packages(module)
        for name in names:
            module.__dict__.pop(name, None)
    for name in hidden["modules"]:
        sys.modules[name] = None  # type: ignore[assignment]
    _hide_proc()


def _keep_for_packages(module: types.ModuleType) -> None:
    """Gives every module that is loaded, and is not of the project, a copy of a module."""
    copy = types.ModuleType(module.__name__)
    copy.__dict__.update(module.__dict__)
    for name, user in list(sys.modules.items()):
        file = str(getattr(user, "__file__", None) or "")
        is_ours = file.startswith(PROJECT) and "site-packages" not in file
        if user is None or is_ours or name in ("__main__", "pathlib"):
            continue
        for key, value in list(getattr(user, "__dict__", {}).items()):
            if value is module:
                user.__dict__[key] = copy


def _hide_proc() -> None:
    """Makes /proc unreadable for the project: psutil keeps it."""
    full_open, full_stat = builtins.open, os.stat

    def is_hidden(path: object) -> bool:
        if not isinstance(path, str | os.PathLike) or not os.fspath(path).startswith("/proc"):
            return False
        frame, users = sys._getframe(2), []
        while frame is not None and len(users) < 12:
            users.append(str(frame.f_globals.get("__name__")).split(".")[0])
            frame = frame.f_back  # type: ignore[assignment]
        return not {"psutil", "subprocess", "torch"} & set(users)

    def open_visible(file, *arguments, **options):  # type: ignore[no-untyped-def]
        if is_hidden(file):
            raise FileNotFoundError(2, "No such file or directory", file)
        return full_open(file, *arguments, **options)

    def stat_visible(path, *arguments, **options):  # type: ignore[no-untyped-def]
        if is_hidden(path):
            raise FileNotFoundError(2, "No such file or directory", path)
        return full_stat(path, *arguments, **options)

    builtins.open = io.open = open_visible
    os.stat = stat_visible
