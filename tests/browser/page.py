"""A lesson in JupyterLab, as a person has it in a browser: open, run, look, move."""

from __future__ import annotations

import ast
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import PIL.Image

from tests.browser.expected import KERNEL, Call

OPEN_SECONDS = 180.0
CELL_SECONDS = 1200.0  # for one cell, as in course.py's own tests
ANSWER_SECONDS = 300.0  # for the kernel to evaluate
FOLLOW_SECONDS = 60.0  # for a widget to follow a move
SIZE = {"width": 1280, "height": 900}
NARROW = {"width": 900, "height": 900}
PAGE_HEIGHT = 2400  # of the pieces of a screenshot

READY = """path => {
  const panel = window.jupyterapp?.shell?.currentWidget;
  return Boolean(panel?.context?.path === path && panel.sessionContext?.isReady
    && panel.sessionContext.session?.kernel?.status === 'idle' && panel.content?.model);
}"""
RUN = """() => {
  window.courseState = 'running';
  window.jupyterapp.commands.execute('notebook:run-all-cells').then(
    done => { window.courseState = done === false ? 'failed' : 'done'; },
    error => { window.courseState = `failed: ${error}`; });
}"""
PROGRESS = """() => {
  const cells = window.jupyterapp.shell.currentWidget.content.widgets;
  const code = cells.filter(cell => cell.model.type === 'code');
  const running = code.find(cell => cell.model.executionState === 'running');
  return {
    state: window.courseState, total: code.length, cell: running ? running.model.id : '',
    done: code.filter(cell => cell.model.executionCount !== null).length,
  };
}"""
CELLS = """() => window.jupyterapp.shell.currentWidget.content.widgets.map(cell => {
  cell.node.setAttribute('data-course-cell', cell.model.id);
  return {
    id: cell.model.id, kind: cell.model.type, source: cell.model.sharedModel.getSource(),
    outputs: cell.model.type === 'code' ? cell.model.outputs.toJSON() : [],
  };
})"""
EVALUATE = """async ([code, expression]) => {
  const kernel = window.jupyterapp.shell.currentWidget.sessionContext.session.kernel;
  const future = kernel.requestExecute({
    code, silent: true, store_history: false, allow_stdin: false,
    user_expressions: {value: expression},
  });
  return (await future.done).content;
}"""
# What a reader sees as too wide: a scroll bar, text that is cut off, a box beyond the edge.
OVERFLOW = """root => {
  const area = root.closest('.jp-OutputArea-child') ?? root;
  const edge = area.getBoundingClientRect().right + 1;
  const found = [];
  for (const one of [area, ...area.querySelectorAll('*')]) {
    const box = one.getBoundingClientRect();
    const style = getComputedStyle(one);
    if (!box.width || !box.height || style.visibility === 'hidden') continue;
    const name = `${one.tagName.toLowerCase()}.${[...one.classList].join('.')}`;
    if (box.right > edge) found.push(`${name} ends ${Math.round(box.right - edge + 1)} px outside`);
    const cut = one.scrollWidth - one.clientWidth;
    const inline = style.display.startsWith('inline') && one.clientWidth === 0;
    const control = ['SELECT', 'INPUT', 'OPTION', 'BUTTON'].includes(one.tagName);
    if (cut > 1 && !inline && !control && style.overflowX !== 'visible'
        && style.textOverflow !== 'ellipsis')
      found.push(`${name} is ${cut} px wider than its place`);
  }
  return found;
}"""
BROKEN_IMAGES = """async () => {
  const images = [...document.querySelectorAll('.jp-Notebook img')];
  const broken = [];
  for (const one of images) {
    one.loading = 'eager';
    try { await one.decode(); } catch { broken.push(one.getAttribute('src').slice(0, 200)); }
  }
  return broken;
}"""
FORMULAS = """() => [...document.querySelectorAll('.jp-OutputArea td')].filter(
  cell => cell.querySelector('mjx-container')).map(cell => cell.innerText)"""
SCROLLER = ".jp-NotebookPanel:not(.lm-mod-hidden) .jp-WindowedPanel-outer"


class LessonPage:
    """One lesson in a page of a browser.

    >>> lesson = LessonPage(page, lab, "01_self_instruct", print)
    >>> lesson.open()
    >>> lesson.run()
    """

    def __init__(self, page: Any, lab: Any, name: str, say: Callable[[str], None]) -> None:
        self.page = page
        self.name = name
        self.lab = lab
        self.say = say
        self.path = f"notebooks/{name}.ipynb"
        self.state = "not run"
        self.seconds = 0.0  # that the cells took
        self.patience = FOLLOW_SECONDS
        self.complaints: list[str] = []  # errors of the console and of scripts
        self._running = ""  # the cell that runs
        page.set_viewport_size(SIZE)
        page.set_default_timeout(ANSWER_SECONDS * 1000)
        page.on("console", self._hear)
        page.on("pageerror", lambda error: self._complain(f"script: {error}"))

    def open(self) -> None:
        """Opens the lesson and waits for its kernel."""
        self.page.goto(self.lab.address(self.path))
        self.page.wait_for_function(READY, arg=self.path, timeout=OPEN_SECONDS * 1000)
        assert self._execute(KERNEL, "None")["status"] == "ok"

    def run(self) -> None:
        """Runs all cells and waits until they are done or one has failed."""
        start = changed = time.monotonic()
        before, shown = None, 0.0
        self.page.evaluate(RUN)
        while True:
            now = self.page.evaluate(PROGRESS)
            self.state, self._running = now["state"], now["cell"]
            elapsed = time.monotonic() - start
            ended = self.state != "running"
            if ended or elapsed - shown > 20:
                shown = elapsed
                place = f", in {now['cell']}" if now["cell"] else ""
                self.say(f"{self.name}: {now['done']} of {now['total']}, {elapsed:.0f} s{place}")
            if (now["done"], now["cell"]) != before:
                before, changed = (now["done"], now["cell"]), time.monotonic()
            if not ended and time.monotonic() - changed > CELL_SECONDS:
                self.state = f"no progress in {now['cell']} for {CELL_SECONDS:.0f} s"
                ended = True
            if ended:
                self.seconds = elapsed
                return
            self.page.wait_for_timeout(1000)

    def cells(self) -> list[dict[str, Any]]:
        """Returns id, kind, source and outputs of each cell."""
        return self.page.evaluate(CELLS)

    def errors(self) -> list[str]:
        """Returns the cell's id and the traceback of each error output."""
        return [
            f"{cell['id']}: {output['ename']}: {output['evalue']}\n"
            + "\n".join(output["traceback"])
            for cell in self.cells()
            for output in cell["outputs"]
            if output["output_type"] == "error"
        ]

    def calls(self) -> list[Call]:
        """Returns the calls that showed widgets, in the order in which they were made."""
        calls = self.evaluate("[(one['name'], one['cell']) for one in _course_calls]")
        found = [Call(number, name, cell) for number, (name, cell) in enumerate(calls)]
        return [
            call  # browse shows nothing where there is nothing to browse
            for call in found
            if call.name != "browse" or self.evaluate(f"len({call.given('items')})")
        ]

    def evaluate(self, expression: str) -> Any:
        """Returns the value of an expression in the lesson's kernel, by way of JSON."""
        value = self._execute("", f"__import__('json').dumps({expression})")
        if value["status"] != "ok":
            raise AssertionError(
                f"{expression}: {value.get('ename')}: {value.get('evalue')}\n"
                + "\n".join(value.get("traceback", []))
            )
        return json.loads(ast.literal_eval(value["data"]["text/plain"]))

    def _execute(self, code: str, expression: str) -> dict[str, Any]:
        """Runs code, which leaves no trace in the notebook; returns what an expression gave."""
        reply = self.page.evaluate(EVALUATE, [code, expression])
        return reply.get("user_expressions", {}).get("value", reply)

    def output(self, cell_id: str, number: int) -> Any:
        """Returns the locator of a cell's output, scrolled to; the first is number 0."""
        outputs = f'[data-course-cell="{cell_id}"] .jp-Cell-outputArea > .jp-OutputArea-child'
        found = self.page.locator(outputs).nth(number)
        found.scroll_into_view_if_needed()
        return found

    def wait(
        self, read: Callable[[], Any], expected: Any, what: str, seconds: float | None = None
    ) -> None:
        """Waits until ``read()`` returns what is expected; fails with both values."""
        deadline = time.monotonic() + (seconds or self.patience)
        found = read()
        while found != expected:
            if time.monotonic() > deadline:
                raise AssertionError(f"{what}\n  shown:    {found!r}\n  expected: {expected!r}")
            self.page.wait_for_timeout(200)
            found = read()

    def wait_until_still(self, read: Callable[[], Any], seconds: float = 3.0) -> None:
        """Waits until ``read()`` returns the same for some seconds."""
        before, since = read(), time.monotonic()
        while time.monotonic() - since < seconds:
            self.page.wait_for_timeout(200)
            now = read()
            if now != before:
                before, since = now, time.monotonic()

    def overflows(self, output: Any) -> list[str]:
        """Returns what is too wide in an output, in a wide and in a narrow window."""
        found = []
        for size in (NARROW, SIZE):
            self.page.set_viewport_size(size)
            self.page.wait_for_timeout(500)
            found += [f"{size['width']} px: {text}" for text in output.evaluate(OVERFLOW)]
        return found

    def broken_images(self) -> list[str]:
        """Returns the addresses of the images that are not shown."""
        return self.page.evaluate(BROKEN_IMAGES)

    def formulas_in_tables(self) -> list[str]:
        """Returns the cells of the outputs' tables in which MathJax has found a formula."""
        return self.page.evaluate(FORMULAS)

    def save_screenshot(self, file: Path) -> None:
        """Saves the full notebook as one picture, put together from pieces."""
        self.page.set_viewport_size({**SIZE, "height": PAGE_HEIGHT})
        scroller = self.page.locator(SCROLLER)
        pieces, top = [], 0
        while True:
            scroller.evaluate("(one, top) => { one.scrollTop = top; }", top)
            self.page.wait_for_timeout(700)
            at, height, full = scroller.evaluate(
                "one => [one.scrollTop, one.clientHeight, one.scrollHeight]"
            )
            piece = file.with_suffix(f".{len(pieces)}.png")
            scroller.screenshot(path=piece)
            pieces.append((round(at), piece))
            if at + height >= full - 1 or len(pieces) >= 40:
                break
            top = at + height
        self.page.set_viewport_size(SIZE)
        with PIL.Image.open(pieces[0][1]) as first:
            width = first.width
        picture = PIL.Image.new("RGB", (width, pieces[-1][0] + round(height)), "white")
        for at, piece in pieces:
            with PIL.Image.open(piece) as one:
                picture.paste(one, (0, at))
            piece.unlink()
        picture.save(file)

    def close(self) -> None:
        """Ends the lesson's kernel and closes the page."""
        try:
            self.page.evaluate(
                "() => window.jupyterapp.shell.currentWidget.sessionContext.shutdown()"
            )
        finally:
            self.page.close()

    def _hear(self, message: Any) -> None:
        if message.type == "error":
            place = message.location.get("url", "")
            self._complain(f"console: {message.text} ({place})")

    def _complain(self, text: str) -> None:
        self.complaints.append(f"{self._running or self.state}: {text}")
