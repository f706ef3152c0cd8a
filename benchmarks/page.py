"""python benchmarks/page.py --adapter FOLDER: the page of scripts/generate.py in a real browser.

Starts the page, opens it in headless Chromium and does what visitors do: type, watch the answer
grow, stop it, change the model, ask two at once, send HTML, come in pairs and in a burst of 20.
One line a step: seconds, and what was seen. A step that does not do what it should ends the run.

Needs `pip install playwright` and Chromium (a system's own: --chromium /usr/bin/chromium; else
`playwright install chromium`).
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
    options = parser().parse_args()
    from playwright.sync_api import sync_playwright

    print(f"{options.base} and {options.adapter.name}, {os.cpu_count()} cores; greedy, 64 tokens")
    print(f"  {'':22}{'seconds':>8}   seen")
    with served(options) as address, sync_playwright() as playwright:
        chromium = playwright.chromium.launch(
            executable_path=options.chromium or None, args=["--no-sandbox"]
        )
        visit = Visit(chromium, address)
        for name, step in visit.steps(options.picture).items():
            began = time.perf_counter()
            seen = step()
            print(f"  {name:22}{time.perf_counter() - began:8.1f}   {seen}", flush=True)
        chromium.close()


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("--base", default="smollm2-135m")
    made.add_argument("--adapter", type=Path, required=True, help="a LoRA folder of that base")
    made.add_argument("--chromium", default="", help="a browser's path, if not playwright's own")
    made.add_argument("--picture", type=Path, help="where the page with two answers is kept")
    return made


@contextlib.contextmanager
def served(options: argparse.Namespace) -> Iterator[str]:
    """The address of the page, in a process of its own that ends with the block."""
    command = [sys.executable, str(ROOT / "scripts" / "generate.py")]
    command += ["--base_model", options.base, "--lora_weights", str(options.adapter)]
    command += ["--temperature", "0", "--max_new_tokens", "64"]
    page = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=ROOT
    )
    said = []
    try:
        assert page.stdout
        for line in page.stdout:
            said.append(line)
            if found := re.search(r"http://127\.0\.0\.1:\d+", line):
                break
        else:
            raise SystemExit("the page did not start:\n" + "".join(said))
        yield found[0]
    finally:
        page.send_signal(signal.SIGINT)
        try:
            page.wait(20)
        except subprocess.TimeoutExpired:
            page.kill()


class Visit:
    """A browser at the page."""

    def __init__(self, chromium: Any, address: str) -> None:
        self.chromium, self.address = chromium, address
        self.page: Any = None
        self.alone = ""

    def steps(self, picture: Path | None) -> dict[str, Callable[[], str]]:
        """What is done, in order."""
        return {
            "load": self.load,
            "type and answer": self.answer,
            "stop": self.stop,
            "switch to the base": self.switch,
            "two side by side": lambda: self.beside(picture),
            "HTML": self.html,
            "two visitors": self.visitors,
            "a burst of 20": self.burst,
        }

    def opened(self) -> Any:
        page = self.chromium.new_context(viewport={"width": 1180, "height": 620}).new_page()
        page.goto(self.address)
        page.get_by_role("button", name="Answer").wait_for()
        return page

    def load(self) -> str:
        """The page is there, and nothing of it came from elsewhere."""
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
        page.get_by_label("Instruction").fill(text)
        page.get_by_role("button", name="Answer").click()

    def shown(self, page: Any, label: str = "Answer") -> str:
        box = f"label:has(span[data-testid=block-info]:text-is('{label}')) textarea"
        return str(page.locator(box).input_value())

    def finished(self, page: Any, label: str = "Answer", limit: float = 90) -> list[str]:
        """The texts that were seen, until one stands still for a second and a half."""
        seen: list[str] = []
        since = end = time.monotonic()
        while not (seen and seen[-1] and "(another" not in seen[-1]) or since > end - 1.5:
            text = self.shown(page, label)
            if not seen or text != seen[-1]:
                seen.append(text)
                since = time.monotonic()
            end = time.monotonic()
            limit -= 0.03
            assert limit > 0, seen[-3:]
            page.wait_for_timeout(30)
        return [text for text in seen if text]

    def answer(self) -> str:
        """An answer that grows."""
        self.page.get_by_label("Instruction").fill(SHORT)
        began = time.monotonic()
        self.page.get_by_role("button", name="Answer").click()
        while not self.shown(self.page):
            self.page.wait_for_timeout(10)
        first = time.monotonic() - began
        seen = self.finished(self.page)
        assert len(seen) > 3 and seen[-1].startswith(seen[0]), seen
        self.alone = seen[-1]
        return f"first words after {first:.2f} s, {len(seen)} states, ends {seen[-1][-30:]!r}"

    def stop(self) -> str:
        """A long answer that stays where it was stopped; the next one comes."""
        self.ask(self.page, LONG)
        self.page.wait_for_timeout(100)
        while len(self.shown(self.page)) < 20 or self.shown(self.page) == self.alone:
            self.page.wait_for_timeout(10)
        self.page.get_by_role("button", name="Stop").click()
        self.page.wait_for_timeout(400)
        stopped = self.shown(self.page)
        self.page.wait_for_timeout(1500)
        assert self.shown(self.page) == stopped, (stopped, self.shown(self.page))
        self.ask(self.page, SHORT)
        again = self.finished(self.page)[-1]
        assert again == self.alone, again
        return f"stays at {len(stopped)} characters; the next answer is whole"

    def options(self, label: str) -> Any:
        """The entries of a list, opened."""
        field = self.page.get_by_label(label, exact=True)
        field.click()
        return self.page.locator(f"#{field.get_attribute('aria-controls')} [role=option]")

    def choose(self, label: str, option: str) -> None:
        chosen = self.options(label).and_(self.page.get_by_label(option, exact=True))
        chosen.dispatch_event("mousedown")  # the list may still be growing
        self.page.get_by_label("Instruction").click()

    def names(self) -> list[str]:
        every = self.options("Model")
        every.first.wait_for()
        names = [str(every.nth(n).get_attribute("aria-label")) for n in range(every.count())]
        self.page.get_by_label("Instruction").click()
        return names

    def switch(self) -> str:
        """The base without the adapter answers otherwise."""
        names = self.names()
        self.choose("Model", names[0])
        self.ask(self.page, SHORT)
        self.page.wait_for_timeout(300)
        other = self.finished(self.page)[-1]
        assert other != self.alone
        return f"{names[0]}: {other[:40]!r}; {names[-1]}: {self.alone[:40]!r}"

    def beside(self, picture: Path | None) -> str:
        """Both, of one question."""
        names = self.names()
        self.choose("Beside it, to compare", names[-1])
        self.ask(self.page, OTHER)
        self.page.wait_for_timeout(300)
        one = self.finished(self.page)[-1]
        two = self.finished(self.page, "Answer of the other")[-1]
        assert one != two
        if picture:
            picture.parent.mkdir(parents=True, exist_ok=True)
            self.page.screenshot(path=picture)
        self.choose("Beside it, to compare", "(none)")
        self.choose("Model", names[-1])
        return f"{len(one)} and {len(two)} characters" + (f", {picture}" if picture else "")

    def html(self) -> str:
        """What is typed stays text."""
        self.ask(self.page, HTML)
        self.page.wait_for_timeout(300)
        self.finished(self.page)
        assert self.page.title() != "broken" and not self.page.query_selector("img[src=x]")
        return "shown as text"

    def visitors(self) -> str:
        """Two at once: each has its own answer, and neither the other's."""
        pages = [self.opened(), self.opened()]
        for page, text in zip(pages, (SHORT, OTHER), strict=True):
            self.ask(page, text)
        first, second = (self.finished(page)[-1] for page in pages)
        assert first == self.alone and second != first, (first, second)
        return "each its own answer"

    def burst(self) -> str:
        """Twenty requests at once; all are answered, and the page still works."""
        import gradio_client

        def one(number: int) -> str:
            client = gradio_client.Client(self.address, verbose=False)
            names = client.view_api(return_format="dict", print_info=False)["named_endpoints"][
                "/answer"
            ]
            given = [p["parameter_default"] for p in names["parameters"]]
            given[0], given[8] = f"Say the number {number}.", 8
            return str(client.predict(*given, api_name="/answer")[0])

        with ThreadPoolExecutor(20) as pool:
            answers = list(pool.map(one, range(20)))
        assert all(answers) and not any("error" in a for a in answers), answers
        self.ask(self.page, SHORT)
        self.page.wait_for_timeout(300)
        assert self.finished(self.page)[-1] == self.alone
        return f"{len(answers)} answers, and the page answers as before"


if __name__ == "__main__":
    main()
