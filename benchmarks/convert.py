"""Measures `alpaca convert` on a generated ShareGPT file, next to the JSON parser on its bytes.

python benchmarks/convert.py [--megabytes 1000] [--folder DIR] [--runs 1]

One table: MB/s and peak memory (RSS, summed over the processes) of

  json.loads            Python's own parser, line by line, in one process: the limit of one core
  json.loads, N cores   the same in one process per core, each on its part of the file
  alpaca convert        the command as a process: ShareGPT -> messages, every row checked

The rate is also given as a ratio to the parser's in the same run, and as processor time per MB
over all processes, since other work on the machine slows all three.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parents[1]
CORES = os.cpu_count() or 1


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--megabytes", type=int, default=1000, help="size of the file (1000)")
    parser.add_argument("--folder", type=Path, help="where the files are written (a new one)")
    parser.add_argument("--runs", type=int, default=1, help="runs; medians are shown (1)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        path = Path(folder) / "sharegpt.jsonl"
        rows = write_sharegpt(path, options.megabytes * 10**6)
        size = path.stat().st_size
        print(f"{size / 1e6:,.0f} MB, {rows:,} conversations, {CORES} cores, {options.runs} runs\n")
        found: dict[str, list[tuple[float, float, float]]] = {}
        for _ in range(options.runs):
            for name, work in {
                "json.loads": lambda: parse_parts(path, 1),
                f"json.loads, {CORES} cores": lambda: parse_parts(path, CORES),
                "alpaca convert": lambda: convert(path),
            }.items():
                found.setdefault(name, []).append(measure(work))
        print(f"{'':24}{'MB/s':>8}{'of the parser':>16}{'ms of core per MB':>20}{'peak MB':>10}")
        parser_rate = 0.0
        for name, runs in found.items():
            seconds, cores, peaks = (list(column) for column in zip(*runs, strict=True))
            rate = size / 1e6 / statistics.median(seconds)
            parser_rate = parser_rate or rate
            cost = statistics.median(cores) * 1e9 / size
            row = f"{rate:8.0f}{rate / parser_rate:15.2f}x{cost:20.1f}{max(peaks) / 1e6:10.0f}"
            print(f"{name:24}{row}")


def write_sharegpt(path: Path, size: int) -> int:
    """Writes a ShareGPT file of at least ``size`` bytes, and returns its conversations."""
    draw, rows, written = random.Random(0), 0, 0
    letters = "abcdefghijklmnopqrstuvwxyz"
    words = ["".join(draw.choices(letters, k=draw.randint(2, 9))) for _ in range(5000)]

    def text(least: int, most: int) -> str:
        parts = draw.choices(words, k=draw.randint(least, most))
        parts[draw.randrange(len(parts))] = draw.choice(
            ['"so"', "\n\n", "\u4f60\u597d", "caf\u00e9", "\\n"]
        )
        return " ".join(parts)

    lines = []
    for number in range(2000):  # then again, under other ids
        turns = []
        for _ in range(draw.randint(1, 4)):
            turns.append({"from": "human", "value": text(5, 60)})
            turns.append({"from": "gpt", "value": text(50, 350)})
        escaped = number % 2 == 0  # half of such files have \u4f60, half have the character
        lines.append(json.dumps({"id": "ID", "conversations": turns}, ensure_ascii=escaped))
    with open(path, "w", encoding="utf-8") as stream:
        while written < size:
            line = lines[rows % len(lines)].replace('"ID"', f'"{rows:x}_0"', 1) + "\n"
            written += len(line)
            rows += 1
            stream.write(line)
    return rows


def parse_parts(path: Path, processes: int) -> list[subprocess.Popen[bytes]]:
    """Starts processes that parse a part of the file each, line by line."""
    code = (
        "import json, sys\n"
        "path, part, parts = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])\n"
        "with open(path, 'rb') as stream:\n"
        "    size = stream.seek(0, 2)\n"
        "    stream.seek(size * part // parts)\n"
        "    if part: stream.readline()\n"
        "    while stream.tell() <= size * (part + 1) // parts:\n"
        "        lines = stream.readlines(1 << 20)\n"
        "        if not lines: break\n"
        "        for line in lines: json.loads(line)\n"
    )
    return [
        subprocess.Popen([sys.executable, "-c", code, str(path), str(part), str(processes)])
        for part in range(processes)
    ]


def convert(path: Path) -> list[subprocess.Popen[bytes]]:
    """Starts the command, which writes next to the file."""
    words = ["convert", str(path), "--out", str(path.with_name("out.jsonl"))]
    return [
        subprocess.Popen(
            [sys.executable, "-m", "alpaca_lib", *words],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=subprocess.DEVNULL,
        )
    ]


def measure(start: Callable[[], list[subprocess.Popen[bytes]]]) -> tuple[float, float, float]:
    """Returns (seconds, processor seconds, peak RSS in bytes) of processes and children."""
    begin, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    started = start()
    peak, done = 0.0, threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.05):
            total = 0
            for process in started:
                try:
                    root = psutil.Process(process.pid)
                    family = [root, *root.children(recursive=True)]
                    total += sum(one.memory_info().rss for one in family)
                except psutil.Error:
                    continue
            peak = max(peak, total)

    watcher = threading.Thread(target=watch)
    watcher.start()
    codes = [process.wait() for process in started]
    seconds = time.perf_counter() - begin
    done.set()
    watcher.join()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cores = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    if any(codes):
        raise SystemExit(f"a process failed: {codes}")
    return seconds, cores, peak


if __name__ == "__main__":
    main()
