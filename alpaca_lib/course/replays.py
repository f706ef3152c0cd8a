"""Runs generation on the replies that were written for this course, undisturbed or killed.

The replies are served on 127.0.0.1 by the teacher "replay", so a run has every part of a real one:
HTTP, the journal, parser, filter and novelty check. Nothing is paid for.
"""

from __future__ import annotations

import contextlib
import re
import shutil
import subprocess
import sys
from pathlib import Path

from alpaca_lib.course.notebooks import REPO
from alpaca_lib.errors import RunError
from alpaca_lib.files import read_json_lines
from alpaca_lib.generation.messages import parse_completion
from alpaca_lib.generation.parsing import parse_reply
from alpaca_lib.generation.replay_teacher import load_replies
from alpaca_lib.generation.teacher import REPLIES
from alpaca_lib.records import Example

FIRST = 4  # number of the task with which each reply begins
TASKS = 520  # as many as the pipeline keeps of the replies


def recorded_replies() -> list[tuple[str, str | None]]:
    """Returns (text, finish_reason) of each reply; its first task has the number FIRST."""
    replies = [parse_completion(reply) for reply in load_replies(REPLIES)]
    return [(reply.text, reply.finish_reason) for reply in replies]


def recorded_tasks() -> list[Example]:
    """Returns the tasks that the parser finds in them, before the novelty check."""
    parsed = [parse_reply(text, ended, FIRST) for text, ended in recorded_replies()]
    return [task for reply in parsed for task in reply.tasks]


def run_replayed(folder: Path, kill_at: int = 0) -> None:
    """Runs scripts/generate_instruction.py with the teacher "replay" into a folder.

    kill_at: kills the process with SIGKILL as soon as it reports that reply; the folder is
    emptied first. Raises RunError with the script's last line if it fails.
    """
    command = [
        sys.executable,
        str(REPO / "scripts" / "generate_instruction.py"),
        "generate_instruction_following_data",
        *("--teacher", "replay"),
        *("--num_instructions_to_generate", str(TASKS)),
        *("--output_dir", str(folder)),
    ]
    if kill_at:
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(folder)
        _run_until(command, re.compile(rf"request {kill_at}\b"))
        return
    done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8")
    if done.returncode:
        lines = (done.stderr.strip() or "it said nothing").splitlines()
        raise RunError(f"generate_instruction.py failed: {lines[-1]}")


def _run_until(command: list[str], line: re.Pattern[str]) -> None:
    """Starts a process and kills it when it prints a line that begins with a pattern."""
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, encoding="utf-8"
    )
    assert process.stdout
    with process.stdout as stream:
        if any(line.match(printed) for printed in stream):
            process.kill()
    process.wait()


def answered_requests(folder: Path) -> list[int]:
    """Returns the number of the request of each reply in a run's journal, in order of arrival."""
    lines = [line.row or {} for line in read_json_lines(folder / "journal.jsonl")]
    return [int(row["request"]) for row in lines if "reply" in row]
