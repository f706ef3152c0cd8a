"""The server and the browser of the lessons' tests, and the lessons that have run in them."""

from __future__ import annotations

import psutil
import pytest

from alpaca_lib.course import runner
from alpaca_lib.course.notebooks import LESSONS
from tests.browser.lab import (
    Lab,
    MissingBrowserError,
    copy_lessons,
    end,
    launch_chromium,
    remember,
    require_playwright,
)
from tests.browser.page import LessonPage


@pytest.fixture(scope="session")
def say(request):
    """A function that writes a line to the terminal, also while output is captured."""
    capture = request.config.pluginmanager.get_plugin("capturemanager")

    def write(text):
        with capture.global_and_fixture_disabled():
            print(f"\n{text}", end="", flush=True)

    return write


@pytest.fixture(scope="session")
def pictures(tmp_path_factory, say):
    """The folder of the screenshots."""
    folder = tmp_path_factory.mktemp("screenshots")
    yield folder
    say(f"screenshots: {folder}")


@pytest.fixture(scope="session")
def lab(tmp_path_factory):
    """JupyterLab on the lessons with the parameters of the quick profile."""
    folder = tmp_path_factory.mktemp("lab")
    copy_lessons(folder, runner.resolve_parameters(list(LESSONS), "quick", []))
    server = Lab(folder)
    try:
        server.start()
        yield server
    finally:
        server.stop()


@pytest.fixture(scope="session")
def chromium():
    """A headless Chromium; it and playwright's driver end with the tests."""
    try:
        require_playwright()
    except MissingBrowserError as error:
        pytest.fail(str(error), pytrace=False)
    from playwright.sync_api import sync_playwright

    before = remember([psutil.Process()])
    with sync_playwright() as playwright:
        try:
            browser = launch_chromium(playwright)
        except MissingBrowserError as error:
            pytest.fail(str(error), pytrace=False)
        started = remember([psutil.Process()]) - before
        try:
            yield browser
        finally:
            browser.close()
    end(started)


@pytest.fixture(scope="session")
def open_page(chromium, lab, say):
    """A function that opens a notebook of the server; nothing is fetched from elsewhere."""
    own = f"http://127.0.0.1:{lab.port}/"

    def route(asked):
        if asked.request.url.startswith((own, "data:", "blob:")):
            asked.continue_()
        else:
            asked.abort()

    def start(name):
        page = chromium.new_page()
        page.route("**/*", route)
        lesson = LessonPage(page, lab, name, say)
        lesson.open()
        return lesson

    return start
