"""How the tests run: which are left out, and how pytest-xdist's workers share them and the cores.

course.py test starts the workers.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys

import pytest

WORKERS = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "0"))  # 0: one process, no xdist
if WORKERS:  # torch and numpy read it when a test module imports them
    os.environ["OMP_NUM_THREADS"] = str(max((os.cpu_count() or 1) // WORKERS, 1))

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # a shell started pytest with &
    signal.signal(signal.SIGINT, signal.default_int_handler)


def find_group(nodeid: str) -> str:
    """Returns what one worker runs in order: a file, whose fixtures may train; all notebooks."""
    file = nodeid.split("::", 1)[0]
    return "notebooks" if file.endswith(".ipynb") else file


def pytest_addoption(parser):
    """Adds --browser, which `course.py test --browser` passes on."""
    about = "run the tests marked browser, and only these"
    parser.addoption("--browser", action="store_true", help=about)


def pytest_configure(config):
    """Ends at SIGTERM as at Ctrl-C where there are workers, so that they end, too.

    Raises the limit of open files where it is low: macOS has 256, and some tests open as many
    connections.
    """
    with contextlib.suppress(ImportError, OSError, ValueError):
        import resource

        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        if soft < 4096:
            most = hard if hard != resource.RLIM_INFINITY else 4096
            resource.setrlimit(resource.RLIMIT_NOFILE, (min(most, 4096), hard))
    if config.getoption("numprocesses", None):
        signal.signal(signal.SIGTERM, signal.default_int_handler)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """Deals groups, in the order of the collection, to whichever worker is free."""
    from xdist.scheduler import LoadScopeScheduling

    class GroupScheduling(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return find_group(nodeid)

    config.option.loadscopereorder = False
    return GroupScheduling(config, log)


@pytest.hookimpl(tryfirst=True)  # before pytest selects by -m
def pytest_collection_modifyitems(config, items):
    """Marks notebooks as slow, skips what this system lacks, chooses the browser's tests.

    With workers, what takes longest comes first: the notebooks, then the files with slow tests.
    """
    system = os.environ.get("TESTS_AS_ON", sys.platform)  # tests/other_platforms.py
    for item in items:
        if _is_notebook(item):
            item.add_marker("slow")
        if item.get_closest_marker("linux") and system != "linux":
            item.add_marker(pytest.mark.skip(reason="needs Linux"))
        if item.get_closest_marker("posix") and system == "win32":
            item.add_marker(pytest.mark.skip(reason="needs a POSIX system"))
    in_browser = [item for item in items if item.get_closest_marker("browser")]
    if config.getoption("--browser"):
        config.hook.pytest_deselected(items=[item for item in items if item not in in_browser])
        items[:] = in_browser
    else:
        for item in in_browser:
            item.add_marker(pytest.mark.skip(reason="needs --browser"))
    if WORKERS:
        slow = {find_group(item.nodeid) for item in items if item.get_closest_marker("slow")}
        place = dict.fromkeys(slow, 1) | {"notebooks": 0}
        items.sort(key=lambda item: place.get(find_group(item.nodeid), 2))


@pytest.hookimpl(hookwrapper=True, tryfirst=True)
def pytest_runtest_setup(item):
    """Starts a notebook's kernel with as many threads as the machine has, as a reader's."""
    limit = os.environ.pop("OMP_NUM_THREADS", None) if _is_notebook(item) else None
    yield
    if limit is not None:
        os.environ["OMP_NUM_THREADS"] = limit


def _is_notebook(item: pytest.Item) -> bool:
    return find_group(item.nodeid) == "notebooks"
