"""python benchmarks/generation.py [--only rate ...]: asking a teacher, measured.

Against a loopback server (benchmarks/loopback.py, a process of its own) with set latency,
limits and faults:

  rate        a limit of requests a minute, held over every second: what arrives, what is refused
  throughput  52,000 tasks, 64 requests in flight at 1 s: wall time against the ideal, and memory
  cpu         processor time a request of asking alone, beside the openai client by itself
  faults      a fifth of all requests fails, in eight ways: is anything lost or paid twice?
  kills       a run that is killed again and again (--kills), and its result
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import random
import resource
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

import openai

from alpaca_lib.generation.ledger import Ledger
from alpaca_lib.generation.prompting import Prompter
from alpaca_lib.generation.rate_limit import RateLimit
from alpaca_lib.generation.self_instruct import Limits, Outcome, Settings, generate
from alpaca_lib.generation.teacher import Sampling, open_teacher
from alpaca_lib.launch.launcher import free_port
from alpaca_lib.prompts import load_header
from alpaca_lib.records import load_examples

ROOT = Path(__file__).resolve().parents[1]
PARTS = ("rate", "throughput", "cpu", "faults", "kills")
TASKS = 12  # in a reply of the loopback server


def main() -> None:
    """Runs the parts that were asked for, and prints a table of each."""
    options = parser().parse_args()
    os.environ |= {"OPENAI_API_KEY": "loopback", "NO_PROXY": "127.0.0.1"}
    for part in options.only or PARTS:
        globals()[f"show_{part}"](options)
        print(flush=True)


def show_rate(options: argparse.Namespace) -> None:
    """What arrives under a limit, with ours and with the client alone."""
    limit, seconds = 1200, options.seconds
    count = int(limit / 60 * seconds)
    print(f"{limit} requests a minute allowed, 0.5 s latency, {count} requests, 64 in flight")
    print(f"{'':28}{'of the limit':>14}{'refused':>10}{'refused after minute 1':>24}")
    for name in ("alpaca_lib", "alpaca_lib, limit unknown", "openai client, 64 at once"):
        told = name != "alpaca_lib, limit unknown"
        with loopback("--rpm", str(limit), "--latency", "0.5", *(["--tell"] if told else [])) as s:
            start, gave_up = time.perf_counter(), ""
            try:
                if name.startswith("alpaca_lib"):
                    asyncio.run(ask_ours(s, count, 64, limit if told else None))
                else:
                    asyncio.run(ask_plainly(s, count, 64))
            except openai.RateLimitError:
                gave_up = f"  gave up after {time.perf_counter() - start:.0f} s"
            took = time.perf_counter() - start
            stats = s.stats()
        refused = [refusals for _, refusals in stats["minutes"].values()]
        rate = (stats["answered"] - 1) / (took - 0.5) * 60 / limit
        share = "-" if gave_up else f"{rate:.1%}"  # of a run that was whole
        print(f"{name:28}{share:>14}{sum(refused):>10}{sum(refused[1:]):>24}{gave_up}")


def show_throughput(options: argparse.Namespace) -> None:
    """A whole run of 52,000 tasks."""
    wanted, latency, flight = options.tasks, 1.0, 64
    need = -(-wanted // TASKS)
    memory: dict[int, float] = {}

    def watch(progress: Any) -> None:
        if progress.requests in (need // 10, need // 2, need - 1):
            memory[progress.requests] = rss_mb()

    with loopback("--latency", str(latency)) as server, tempfile.TemporaryDirectory() as folder:
        before, start, cpu = rss_mb(), time.perf_counter(), time.process_time()
        marks: list[float] = []
        outcome = run(
            server, folder, wanted, flight,
            lambda p: (watch(p), marks.append(time.perf_counter())),
        )  # fmt: skip
        took, cpu = time.perf_counter() - start, time.process_time() - cpu
        stats = server.stats()
    ideal = -(-outcome.requests // flight) * latency
    asked = marks[-1] - start
    print(f"{len(outcome.kept):,} tasks kept of {outcome.requests:,} replies, {flight} in flight")
    print(f"asked and judged in {asked:.1f} s, the ideal is {ideal:.1f} s: {asked / ideal:.3f} x")
    print(f"regen.json with each task's ten nearest: {took - asked:.1f} s more")
    print(f"processor time {1000 * cpu / outcome.requests:.1f} ms a reply, judging included")
    print(f"answered twice: {stats['answered_twice']}")
    text = ", ".join(f"{mb:.0f} MB after {n:,}" for n, mb in memory.items())
    print(f"memory: {before:.0f} MB at first, {text} replies")


def show_cpu(options: argparse.Namespace) -> None:
    """Processor time a request, ours and the client's own."""
    print("processor time a request, 64 in flight, median of 3 runs of 3,000")
    with loopback("--latency", "0.1") as server:
        times: dict[str, list[float]] = {}
        for _ in range(3):
            for name, ask in (
                ("alpaca_lib (limits, budget, retries)", ask_ours),
                ("openai client, chat.completions.create", ask_plainly),
            ):
                asyncio.run(ask(server, 64, 64))
                cpu = time.process_time()
                asyncio.run(ask(server, 3000, 64))
                times.setdefault(name, []).append((time.process_time() - cpu) / 3000)
    ours = median(times["alpaca_lib (limits, budget, retries)"])
    for name, values in times.items():
        print(f"{name:42}{1000 * median(values):>8.2f} ms{median(values) / ours:>8.2f} x")


def show_faults(options: argparse.Namespace) -> None:
    """Runs with faults, and one without."""
    wanted, reference = 1200, b""
    print(f"{wanted} tasks; of all requests a fifth fails: see benchmarks/loopback.py")
    print(f"{'':12}{'seconds':>9}{'faults':>8}{'paid twice':>12}{'same result':>13}")
    for name, share, seed in (("none", 0.0, 0), *((f"20 %, {n}", 0.2, n) for n in range(1, 6))):
        with (
            loopback(
                *("--latency", "0.05", "--faults", str(share), "--hang", "3", "--seed", str(seed))
            ) as server,
            tempfile.TemporaryDirectory() as folder,
        ):
            start = time.perf_counter()
            run(server, folder, wanted, 16, timeout=1.0)
            took = time.perf_counter() - start
            result = (Path(folder) / "regen.json").read_bytes()
            stats = server.stats()
        reference = reference or result
        count = sum(stats["faults"].values())
        # An empty reply has been paid for: it is kept as it is, and another request makes up.
        same = "yes" if result == reference else f"{stats['faults']['empty']} were empty"
        print(f"{name:12}{took:>9.1f}{count:>8}{stats['answered_twice']:>12}{same:>13}")


def show_kills(options: argparse.Namespace) -> None:
    """SIGKILL at random moments, until a run ends, again and again."""
    killed = runs = same = twice = in_flight = 0
    draw = random.Random(1)
    reference = b""
    with loopback("--latency", "0.02") as server, tempfile.TemporaryDirectory() as top:
        run(server, f"{top}/whole", 360, 4)
        reference = (Path(top) / "whole" / "regen.json").read_bytes()
        before = server.stats()["answered"]
        while killed < options.kills:
            folder = f"{top}/{runs}"
            while not ended(server, folder, draw.uniform(0.02, 0.5)):
                killed += 1
            runs += 1
            same += (Path(folder) / "regen.json").read_bytes() == reference
        stats = server.stats()
        twice = stats["answered"] - before - runs * -(-360 // TASKS)
        in_flight = killed * 4
    print(f"{killed} SIGKILLs in {runs} runs of 360 tasks, 4 requests in flight")
    print(f"runs with the same regen.json as one that was not killed: {same} of {runs}")
    print(f"answers that were on their way when a run was killed, and asked for again: {twice} ")
    print(f"(at most {in_flight} could be)")


def ended(server: Server, folder: str, seconds: float) -> bool:
    """Whether a run in a process of its own ends before it is killed."""
    child = os.fork()
    if child == 0:
        try:
            run(server, folder, 360, 4)
            os._exit(0)
        except BaseException:
            os._exit(1)
    timer = threading.Timer(seconds, lambda: os.kill(child, signal.SIGKILL))
    timer.start()
    _, status = os.waitpid(child, 0)
    timer.cancel()
    timer.join()
    if os.WIFSIGNALED(status):
        return False
    if os.WEXITSTATUS(status):
        raise RuntimeError(f"the run in {folder} failed")
    return True


# --- what they share ----------------------------------------------------------------


def seeds_and_header() -> tuple[list[Any], str]:
    """The course's own."""
    data = ROOT / "data"
    return load_examples(data / "seed_tasks.jsonl"), load_header(data / "prompts/generate_en.txt")


def run(
    server: Server, folder: str, wanted: int, flight: int, progress: Any = None,
    timeout: float = 60.0,
) -> Outcome:  # fmt: skip
    """One run of generate() against the server."""
    os.environ["OPENAI_BASE_URL"] = server.address
    seeds, header = seeds_and_header()
    settings = Settings(tasks_wanted=wanted, tasks_per_request=TASKS, safety=False)
    with open_teacher("openai", "loopback", timeout=timeout) as teacher:
        return generate(
            teacher, seeds, header, settings, Path(folder),
            Limits(concurrency=flight), progress=progress or (lambda p: None),
        )  # fmt: skip


async def ask_ours(
    server: Server, count: int, flight: int, per_minute: float | None = None
) -> None:
    """So many requests through Teacher.connect()."""
    os.environ["OPENAI_BASE_URL"] = server.address
    seeds, header = seeds_and_header()
    prompt = Prompter(seeds, header, Settings()).prompt(0).text
    with open_teacher("openai", "loopback") as teacher:
        requests = iter(range(count))
        async with teacher.connect(RateLimit(flight, per_minute), Ledger()) as line:

            async def worker() -> None:
                for number in requests:
                    request = teacher.request(
                        prompt, first_number=4, tasks=TASKS, seed=number, sampling=Sampling()
                    )
                    await line.ask(request, number)

            await asyncio.gather(*(worker() for _ in range(flight)))


async def ask_plainly(server: Server, count: int, flight: int) -> None:
    """The same by the openai client alone, with its own retries."""
    seeds, header = seeds_and_header()
    prompt = Prompter(seeds, header, Settings()).prompt(0).text
    requests = iter(range(count))
    async with openai.AsyncOpenAI(base_url=server.address, max_retries=20) as client:

        async def worker() -> None:
            for number in requests:
                await client.chat.completions.create(
                    model="loopback",
                    messages=[{"role": "user", "content": prompt}],
                    max_completion_tokens=3072,
                    seed=number,
                )

        await asyncio.gather(*(worker() for _ in range(flight)))


class Server:
    """The loopback server's address, and what it says it did."""

    def __init__(self, port: int) -> None:
        self.root = f"http://127.0.0.1:{port}"
        self.address = f"{self.root}/v1"

    def stats(self) -> dict[str, Any]:
        """Its counts."""
        with urllib.request.urlopen(f"{self.root}/stats", timeout=10) as answer:
            return json.load(answer)


@contextlib.contextmanager
def loopback(*arguments: str) -> Iterator[Server]:
    """A running server in a process of its own."""
    port = free_port()
    command = [sys.executable, str(ROOT / "benchmarks" / "loopback.py"), str(port), *arguments]
    process = subprocess.Popen([*command, "--tasks", str(TASKS)])
    server = Server(port)
    try:
        for _ in range(200):
            with contextlib.suppress(OSError):
                server.stats()
                break
            time.sleep(0.05)
        yield server
    finally:
        process.terminate()
        process.wait()


def rss_mb() -> float:
    """This process's memory now."""
    with contextlib.suppress(OSError):
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / 1e6
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("--only", nargs="+", choices=PARTS, help="these parts alone")
    made.add_argument("--seconds", type=float, default=150.0, help="length of the rate test (150)")
    made.add_argument("--tasks", type=int, default=52_000, help="tasks of the whole run (52000)")
    made.add_argument("--kills", type=int, default=200, help="SIGKILLs (200)")
    return made


if __name__ == "__main__":
    main()
