"""A chat in the terminal: questions line by line, answers as they grow, commands with a slash.

It reads any iterable of lines, a pipe too. Ctrl-C stops an answer and keeps what was written of
it; Ctrl-D, or the end of the pipe, ends the chat. Nothing is left out of a prompt silently: a
conversation that does not fit is refused, and ``/drop`` drops its oldest questions.
"""

from __future__ import annotations

import contextlib
import difflib
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path

from alpaca_lib.errors import AlpacaError, DataError, UsageError
from alpaca_lib.files import JsonLines, read_bytes
from alpaca_lib.inference import turns
from alpaca_lib.inference.decoding import ContextError, TextStream
from alpaca_lib.records import Conversation

HELP = """\
/system TEXT   set the system message of the next answers; without TEXT: none
/retry         answer the last question again
/undo          take the last question and its answer back
/drop N        drop the N oldest questions and their answers
/clear         begin a new conversation; the system message stays
/save F.jsonl  append the conversation to a file, as a row that alpaca train reads
/help          this list
A message that begins with a slash is written with two. Ctrl-C stops an answer, Ctrl-D ends."""
PROMPT = "> "


class TerminalChat:
    """A conversation with one model; ``run`` reads the user's lines.

    ``stream`` yields the growing answer to a conversation.
    """

    def __init__(self, stream: Callable[[Conversation], TextStream], system: str = "") -> None:
        self.stream = stream
        self.conversation = replace(turns.NOTHING, system=system)
        self.commands: dict[str, Callable[[str], None]] = {
            "/system": self._set_system,
            "/retry": self._retry,
            "/undo": self._undo,
            "/drop": self._drop,
            "/clear": self._clear,
            "/save": self._save,
            "/help": self._help,
        }

    def run(self, lines: Iterable[str]) -> None:
        """Answers each line that is no command; an error is one line, and not the end."""
        for line in map(str.strip, lines):
            if not line:
                continue
            try:
                self._take(line)
            except ContextError as error:
                _note(f"error: {error}{_offer(error)}")
            except AlpacaError as error:
                _note(f"error: {error}")

    def _take(self, line: str) -> None:
        word, _, rest = line.partition(" ")
        if not line.startswith("/") or line.startswith("//"):
            text = line[1:] if line.startswith("//") else line
            self._answer(turns.ask(self.conversation, text))
            return
        if word not in self.commands:
            near = difflib.get_close_matches(word, self.commands, n=1)
            hint = f"did you mean {near[0]}?" if near else "/help lists them"
            raise UsageError(f"no command {word}; {hint} (a message with a slash begins with //)")
        self.commands[word](rest.strip())

    def _answer(self, asked: Conversation) -> None:
        """Prints the answer to a conversation, which then is the chat's.

        Without an answer (an error, Ctrl-C before the first word, a model that ends at once) the
        chat's stays as it was.
        """
        shown = ""
        try:
            with contextlib.closing(self.stream(asked)) as pieces:
                for text in pieces:
                    print(text[len(shown) :], end="", flush=True)
                    shown = text
        except KeyboardInterrupt:
            print(flush=True)
            _note("(stopped)" if shown else "(stopped before it began; the question is taken back)")
            return
        finally:
            if shown:
                self.conversation = turns.answered(asked, shown)
        print(flush=True)
        if not shown:
            _note("(the model ended its answer at once; the question is taken back)")

    def _set_system(self, text: str) -> None:
        self.conversation = replace(self.conversation, system=text)
        _note("system message set" if text else "no system message")

    def _retry(self, _: str) -> None:
        if not self.conversation.turns:
            raise UsageError("/retry: no question has been asked yet")
        self._answer(self.conversation.question())

    def _undo(self, _: str) -> None:
        self.conversation, text = turns.take_back(self.conversation)
        _note(f"taken back: {text}" if text else "nothing to take back")

    def _drop(self, count: str) -> None:
        most = len(self.conversation.turns) // 2
        if not count.isdecimal() or not 1 <= int(count) <= most:
            raise UsageError(f"/drop {count}: a number from 1 to {most}, the questions there are")
        self.conversation = turns.without_oldest(self.conversation, int(count))
        _note(f"dropped the {count} oldest; questions left: {most - int(count)}")

    def _clear(self, _: str) -> None:
        self.conversation = replace(turns.NOTHING, system=self.conversation.system)
        _note("a new conversation")

    def _save(self, name: str) -> None:
        file = Path(name).expanduser()
        if file.suffix != ".jsonl":
            raise UsageError(f"/save {name}: name a file .jsonl; each conversation is a line of it")
        if not self.conversation.is_answered:
            raise UsageError("/save: there is no answer yet")
        if file.is_file() and (held := read_bytes(file)) and not held.endswith(b"\n"):
            raise DataError(f"{file}: its last line has no line end; mend it or name another file")
        with JsonLines(file) as rows:
            rows.append(self.conversation.to_dict())
        _note(f"saved {len(self.conversation.turns)} turns to {file}")

    def _help(self, _: str) -> None:
        _note(HELP)


def read_terminal() -> Iterator[str]:
    """Yields the lines that are typed, until Ctrl-D; Ctrl-C discards a line."""
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401, line editing and history in input()
    while True:
        try:
            yield input(PROMPT)
        except KeyboardInterrupt:
            _note("\n(Ctrl-D ends)")
        except EOFError:
            print(flush=True)
            return


def _offer(error: ContextError) -> str:
    return f"; /drop {error.oldest} drops them, then ask again" if error.oldest else ""


def _note(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
