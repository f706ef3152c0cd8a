"""Serves an OpenAI-compatible API with a given latency, limits and faults, for benchmarks.

python benchmarks/loopback.py PORT --latency 1 --rpm 1200 prints nothing and serves until it
is ended. GET /stats returns its counts. An answer depends on the request's seed alone.
"""

from __future__ import annotations

import argparse
import asyncio
import functools
import itertools
import json
import random
import time

SYLLABLES = [a + b for a in "bdfgklmnprstvz" for b in ("a", "e", "i", "o", "u", "an", "el", "or")]
WORDS = [a + b for a in SYLLABLES for b in SYLLABLES]
# Zipf's law, as in a language: the word at rank r occurs about 1/r as often as the first.
ZIPF = list(itertools.accumulate(1 / (rank + 2.7) for rank in range(len(WORDS))))
FAULTS = ("429 with Retry-After", "429", "500", "hang", "reset", "cut", "garbage", "empty")


@functools.lru_cache(maxsize=256)
def reply_text(seed: int, tasks: int, first: int = 4) -> str:
    """Returns ``tasks`` tasks of random words, which depend on the seed alone."""
    draw = random.Random(seed)
    parts = []
    for number in range(first, first + tasks):
        instruction = " ".join(draw.choices(WORDS, cum_weights=ZIPF, k=12)).capitalize()
        output = " ".join(draw.choices(WORDS, cum_weights=ZIPF, k=44)).capitalize()
        heading = "" if number == first else f"{number}. Instruction:"
        parts.append(
            f"{heading} {instruction}.\n{number}. Input:\n<noinput>\n{number}. Output:\n{output}.\n"
        )
    return "###\n".join(parts)


class Meter:
    """A limit per minute that holds in every second: a token bucket of one second's amount.

    >>> meter = Meter(per_minute=1200)
    >>> meter.take(1)  # seconds to wait, 0.0: it passes
    """

    def __init__(self, per_minute: float) -> None:
        self.rate = per_minute / 60
        self.level = self.size = max(self.rate, 1.0)
        self.since = time.monotonic()

    def take(self, amount: float) -> float:
        """Takes an amount and returns 0, or takes nothing and returns the seconds to wait."""
        now = time.monotonic()
        self.level = min(self.level + (now - self.since) * self.rate, self.size)
        self.since = now
        if self.level >= min(amount, self.size):
            self.level -= amount
            return 0.0
        return (min(amount, self.size) - self.level) / self.rate


class Loopback:
    """The server's state: limits, the counts of answers and faults, and what draws the faults.

    >>> state = Loopback(parse_options(["8000", "--latency", "0.1"]))
    >>> server = await asyncio.start_server(state.serve, "127.0.0.1", 8000)
    """

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.requests = Meter(options.rpm) if options.rpm else None
        self.tokens = Meter(options.tpm) if options.tpm else None
        self.started = time.monotonic()
        self.draw = random.Random(options.seed)
        self.answered: dict[int, int] = {}  # seed -> answers
        self.minutes: dict[int, list[int]] = {}  # minute -> [answered, refused]
        self.faults: dict[str, int] = dict.fromkeys(FAULTS, 0)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serves one connection until it closes."""
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
                size = 0
                for line in head.split("\r\n"):
                    if line.lower().startswith("content-length:"):
                        size = int(line.split(":")[1])
                body = await reader.readexactly(size)
                if head.startswith("GET"):
                    self.send(writer, 200, self.stats())
                else:
                    await self.answer(json.loads(body), writer)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    async def answer(self, asked: dict, writer: asyncio.StreamWriter) -> None:
        """Sends one completion, a refusal or a fault."""
        minute = self.minutes.setdefault(int((time.monotonic() - self.started) // 60), [0, 0])
        seed, tasks = int(asked.get("seed") or 0), self.options.tasks
        text = reply_text(seed, tasks)
        prompt = len(asked["messages"][0]["content"]) // 4
        reply = len(text) // 4
        waits = [
            meter.take(amount)
            for meter, amount in ((self.requests, 1), (self.tokens, prompt + reply))
            if meter
        ]
        if any(waits):
            minute[1] += 1
            self.refuse(writer, max(waits), "Retry-After")
            return
        if self.draw.random() < self.options.faults:
            kind = self.draw.choice(FAULTS)
            self.faults[kind] += 1
            if await self.fault(kind, writer):
                return
            text = ""
        if self.options.latency:
            await asyncio.sleep(self.options.latency)
        minute[0] += 1
        self.answered[seed] = self.answered.get(seed, 0) + 1
        self.send(writer, 200, self.completion(text, prompt, reply))

    def completion(self, text: str, prompt: int, reply: int) -> dict:
        """Returns a chat completion as OpenAI sends it."""
        message = {"role": "assistant", "content": text}
        usage = {"prompt_tokens": prompt, "completion_tokens": reply}
        return {
            "id": "chatcmpl-1",
            "object": "chat.completion",
            "created": 1,
            "model": "loopback",
            "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
            "usage": usage | {"total_tokens": prompt + reply},
        }

    async def fault(self, kind: str, writer: asyncio.StreamWriter) -> bool:
        """Produces a fault; returns False if an empty answer has to follow."""
        if kind == "429 with Retry-After":
            self.refuse(writer, 0.05, "Retry-After")
        elif kind == "429":
            self.refuse(writer, 0.0, "")
        elif kind == "500":
            self.send(writer, 500, {"error": {"message": "oops", "code": None}})
        elif kind == "hang":
            await asyncio.sleep(self.options.hang)
            raise ConnectionError
        elif kind == "reset":
            writer.transport.abort()
            raise ConnectionError
        elif kind == "cut":
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 9000\r\n\r\n" + b'{"choices": [')
            await writer.drain()
            raise ConnectionError
        elif kind == "garbage":
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nnot JSON!")
        else:
            return False
        return True

    def refuse(self, writer: asyncio.StreamWriter, wait: float, header: str) -> None:
        """Sends a 429, with or without the time to wait."""
        error = {"error": {"message": "slow down", "code": "rate_limit_exceeded"}}
        self.send(writer, 429, error, f"{header}: {wait:.3f}\r\n" if header else "")

    def send(self, writer: asyncio.StreamWriter, status: int, body: dict, more: str = "") -> None:
        """Sends a JSON answer, with the limits in its headers."""
        data = json.dumps(body).encode()
        if self.options.rpm and self.options.announce:
            more += f"x-ratelimit-limit-requests: {self.options.rpm:g}\r\n"
        writer.write(
            f"HTTP/1.1 {status} X\r\nContent-Type: application/json\r\n{more}"
            f"Content-Length: {len(data)}\r\n\r\n".encode()
            + data
        )

    def stats(self) -> dict:
        """Returns the counts so far."""
        counts = self.answered.values()
        return {
            "answered": sum(counts),
            "answered_twice": sum(count - 1 for count in counts),
            "minutes": self.minutes,
            "faults": self.faults,
            "seconds": time.monotonic() - self.started,
        }


def parse_options(arguments: list[str] | None = None) -> argparse.Namespace:
    """Returns the options of a command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("port", type=int)
    parser.add_argument("--latency", type=float, default=0.0, help="seconds before each answer")
    parser.add_argument("--rpm", type=float, default=0.0, help="requests per minute; 0: no limit")
    parser.add_argument("--tpm", type=float, default=0.0, help="tokens per minute; 0: no limit")
    parser.add_argument("--announce", action="store_true", help="send the limit in the headers")
    parser.add_argument("--tasks", type=int, default=12, help="tasks per reply")
    parser.add_argument("--faults", type=float, default=0.0, help="share of requests that fail")
    parser.add_argument("--hang", type=float, default=5.0, help="seconds of a hang")
    parser.add_argument("--seed", type=int, default=0, help="draws the faults")
    return parser.parse_args(arguments)


async def main(given: argparse.Namespace) -> None:
    """Serves until the process is ended."""
    state = Loopback(given)
    server = await asyncio.start_server(state.serve, "127.0.0.1", given.port, backlog=512)
    async with server:
        await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main(parse_options()))
