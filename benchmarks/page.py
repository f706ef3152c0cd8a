"""Measures the page of scripts/generate.py in a real browser.

python benchmarks/page.py --adapter FOLDER

Starts the page, opens it in headless Chromium and does what visitors do: type, watch the answer
grow, stop it, change the model, compare two models, send HTML, come in pairs and in a burst of
20. It prints one line per step, seconds and observation; a step that fails ends the run.

Needs `pip install playwright` and Chromium: `playwright install chromium`, or an installed one
with --chromium /usr/bin/chromium.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
SHORT, OTHER = "Name three colours.", "Give two reasons to drink water."
LONG = "Write a long story about a river."
HTML = "<img src=x onerror=\"document.title='broken'\"><b>Repeat</b> <script>x</script>"


def main() -> None:
    """Runs the steps and prints the table."""
    options = build_parser().parse_args()
    from playwright.sync_api import sync_playwright

    print(f"{options.base} and {options.adapter.name}, {os.cpu_count()} cores; greedy, 64 tokens")
    print(f"  {'':22}{'seconds':>8}   seen")
    with serve_page(options) as address, sync_playwright() as playwright:
        chromium = playwright.chromium.launch(
            executable_path=options.chromium or None, args=["--no-sandbox"]
        )
        visit = Visit(chromium, address)
        for name, step in visit.steps(options.picture).items():
            began = time.perf_counter()
            seen = step()
            print(f"  {name:22}{time.perf_counter() - began:8.1f}   {seen}", flush=True)
        chromium.close()


def build_parser() -> argparse.ArgumentParser:
    """Returns the parser of the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--base", default="smollm2-135m")
    parser.add_argument("--adapter", type=Path, required=True, help="a LoRA folder of that base")
    parser.add_argument("--chromium", default="", help="path of a browser, if not playwright's")
    parser.add_argument("--picture", type=Path, help="file for a screenshot of two answers")
    return parser


@contextlib.contextmanager
def serve_page(options: argparse.Namespace) -> Iterator[str]:
    """Yields the address of the page, whose process ends with the block."""
    command = [sys.executable, str(ROOT / "scripts" / "generate.py")]
    command += ["--base_model", options.base, "--lora_weights", str(options.adapter)]
    command += ["--temperature", "0", "--max_new_tokens", "64"]
    page = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=ROOT
    )
    output = []
    try:
        assert page.stdout
        for line in page.stdout:
            output.append(line)
            if found := re.search(r"http://127\.0\.0\.1:\d+", line):
                break
        else:
            raise SystemExit("the page did not start:\n" + "".join(output))
        yield found[0]
    finally:
        page.send_signal(signal.SIGINT)
        try:
            page.wait(20)
        except subprocess.TimeoutExpired:
            page.kill()


class Visit:
    """A browser at the page. ``page`` is the first visitor's, ``alone`` its answer to SHORT.

    >>> visit = Visit(chromium, address)
    >>> visit.load()
    """

    def __init__(self, chromium: Any, address: str) -> None:
        self.chromium, self.address = chromium, address
        self.page: Any = None
        self.alone = ""

    def steps(self, picture: Path | None) -> dict[str, Callable[[], str]]:
        """Returns the steps in order: a name, and a function that returns its observation."""
        return {
            "load": self.load,
            "type and answer": self.answer,
            "stop": self.stop,
            "switch to the base": self.switch,
            "two side by side": lambda: self.compare(picture),
            "HTML": self.html,
            "two visitors": self.visitors,
            "a burst of 20": self.burst,
        }

    def open_page(self) -> Any:
        """Opens the page as another visitor."""
        page = self.chromium.new_context(viewport={"width": 1180, "height": 620}).new_page()
        page.goto(self.address)
        page.get_by_role("button", name="Answer").wait_for()
        return page

    def load(self) -> str:
        """Loads the page; checks that every request goes to this machine."""
        asked: list[str] = []
        page = self.chromium.new_context(viewport={"width": 1180, "height": 620}).new_page()
        page.on("request", lambda request: asked.append(request.url))
        page.goto(self.address)
        page.get_by_role("button", name="Answer").wait_for()
        elsewhere = {u for u in asked if not u.startswith((self.address, "data:", "blob:"))}
        assert not elsewhere, elsewhere
        self.page = page
        return f"{len(asked)} requests, all of them to this machine"

    def ask(self, page: Any, text: str) -> None:
        """Types an instruction and presses the button."""
        page.get_by_label("Instruction").fill(text)
        page.get_by_role("button", name="Answer").click()

    def read(self, page: Any, label: str = "Answer") -> str:
        """Returns the text of an answer box."""
        box = f"label:has(span[data-testid=block-info]:text-is('{label}')) textarea"
        return str(page.locator(box).input_value())

    def wait(self, page: Any, label: str = "Answer", limit: float = 90) -> list[str]:
        """Returns the successive texts of an answer, until one is unchanged for 1.5 s."""
        seen: list[str] = []
        since = end = time.monotonic()
        while not (seen and seen[-1] and "(another" not in seen[-1]) or since > end - 1.5:
            text = self.read(page, label)
            if not seen or text != seen[-1]:
                seen.append(text)
                since = time.monotonic()
            end = time.monotonic()
            limit -= 0.03
            assert limit > 0, seen[-3:]
            page.wait_for_timeout(30)
        return [text for text in seen if text]

    def answer(self) -> str:
        """Checks that an answer grows."""
        self.page.get_by_label("Instruction").fill(SHORT)
        began = time.monotonic()
        self.page.get_by_role("button", name="Answer").click()
        while not self.read(self.page):
            self.page.wait_for_timeout(10)
        first = time.monotonic() - began
        seen = self.wait(self.page)
        assert len(seen) > 3 and seen[-1].startswith(seen[0]), seen
        self.alone = seen[-1]
        return f"first text after {first:.2f} s, {len(seen)} states, ends {seen[-1][-30:]!r}"

    def stop(self) -> str:
        """Checks that a stopped answer stays as it is, and that the next one is complete."""
        self.ask(self.page, LONG)
        self.page.wait_for_timeout(100)
        while len(self.read(self.page)) < 20 or self.read(self.page) == self.alone:
            self.page.wait_for_timeout(10)
        self.page.get_by_role("button", name="Stop").click()
        self.page.wait_for_timeout(400)
        stopped = self.read(self.page)
        self.page.wait_for_timeout(1500)
        assert self.read(self.page) == stopped, (stopped, self.read(self.page))
        self.ask(self.page, SHORT)
        again = self.wait(self.page)[-1]
        assert again == self.alone, again
        return f"stays at {len(stopped)} characters; the next answer is complete"

    def options(self, label: str) -> Any:
        """Opens a list and returns its entries."""
        field = self.page.get_by_label(label, exact=True)
        field.click()
        return self.page.locator(f"#{field.get_attribute('aria-controls')} [role=option]")

    def choose(self, label: str, option: str) -> None:
        """Chooses an entry of a list."""
        chosen = self.options(label).and_(self.page.get_by_label(option, exact=True))
        chosen.dispatch_event("mousedown")  # the list may still be growing
        self.page.get_by_label("Instruction").click()

    def names(self) -> list[str]:
        """Returns the models that the page offers."""
        every = self.options("Model")
        every.first.wait_for()
        names = [str(every.nth(n).get_attribute("aria-label")) for n in range(every.count())]
        self.page.get_by_label("Instruction").click()
        return names

    def switch(self) -> str:
        """Checks that the base without the adapter gives another answer."""
        names = self.names()
        self.choose("Model", names[0])
        self.ask(self.page, SHORT)
        self.page.wait_for_timeout(300)
        other = self.wait(self.page)[-1]
        assert other != self.alone
        return f"{names[0]}: {other[:40]!r}; {names[-1]}: {self.alone[:40]!r}"

    def compare(self, picture: Path | None) -> str:
        """Checks that base and adapter answer one question side by side."""
        names = self.names()
        self.choose("Compare with", names[-1])
        self.ask(self.page, OTHER)
        self.page.wait_for_timeout(300)
        one = self.wait(self.page)[-1]
        two = self.wait(self.page, "Answer of the other")[-1]
        assert one != two
        if picture:
            picture.parent.mkdir(parents=True, exist_ok=True)
            self.page.screenshot(path=picture)
        self.choose("Compare with", "(none)")
        self.choose("Model", names[-1])
        return f"{len(one)} and {len(two)} characters" + (f", {picture}" if picture else "")

    def html(self) -> str:
        """Checks that HTML is shown as text."""
        self.ask(self.page, HTML)
        self.page.wait_for_timeout(300)
        self.wait(self.page)
        assert self.page.title() != "broken" and not self.page.query_selector("img[src=x]")
        return "shown as text"

    def visitors(self) -> str:
        """Checks that each of two concurrent visitors gets the answer to its own question."""
        pages = [self.open_page(), self.open_page()]
        for page, text in zip(pages, (SHORT, OTHER), strict=True):
            self.ask(page, text)
        first, second = (self.wait(page)[-1] for page in pages)
        assert first == self.alone and second != first, (first, second)
        return "each its own answer"

    def burst(self) -> str:
        """Checks that 20 concurrent requests are answered, and that the page still works."""
        import gradio_client

        def one(number: int) -> str:
            client = gradio_client.Client(self.address, verbose=False)
            api = client.view_api(return_format="dict", print_info=False)
            parameters = api["named_endpoints"]["/answer"]["parameters"]
            given = [p["parameter_default"] for p in parameters]
            given[0], given[8] = f"Say the number {number}.", 8
            return str(client.predict(*given, api_name="/answer")[0])

        with ThreadPoolExecutor(20) as pool:
            answers = list(pool.map(one, range(20)))
        assert all(answers) and not any("error" in a for a in answers), answers
        self.ask(self.page, SHORT)
        self.page.wait_for_timeout(300)
        assert self.wait(self.page)[-1] == self.alone
        return f"{len(answers)} answers, and the page answers as before"


if __name__ == "__main__":
    main()
