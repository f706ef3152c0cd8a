"""The same run through the Batch API: half the price, answered within a day.

Requests go up in files, answers come back in files, in any order. Each file is in the
journal before its batch is made, so that a run which is killed finds its batches again
and pays for none twice.
"""

from __future__ import annotations

import asyncio
import json
import random
import tempfile
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import IO, Any, TypeVar

from alpaca_lib.errors import ReplyError, TeacherError
from alpaca_lib.generation import teacher as teachers
from alpaca_lib.generation.async_runner import Stop
from alpaca_lib.generation.failures import DROPPABLE, failure_of
from alpaca_lib.generation.run_state import Run
from alpaca_lib.generation.teacher import RawReply, reply_from
from alpaca_lib.optional import require

MOST_REQUESTS, MOST_BYTES = 50_000, 200_000_000  # of one file
POLL = 30.0  # seconds between two looks at a batch
ROUNDS = 3  # batches in which a request may fail before the run stops
SPARE = 1.3  # times the requests that would do if every task were kept; a round may take a day
ENDPOINT = "/v1/chat/completions"
REFUSALS = ("unsupported_parameter", "unsupported_value", "unknown_parameter")
T = TypeVar("T")


class Stopped(Exception):
    """The run was asked to stop while a call was to be tried again."""


async def ask_all(run: Run, stop: Stop) -> None:
    """As Online.ask_all(), by batches."""
    if run.teacher.kind != "openai":
        raise ValueError(f'way "batch": not with teacher {run.teacher.kind!r}, only with "openai"')
    openai = require("openai")
    async with openai.AsyncOpenAI(
        base_url=run.teacher.address,
        api_key=run.teacher.key,
        max_retries=0,
        timeout=run.teacher.timeout,
    ) as client:
        batches = Batches(run, client, openai, stop)
        try:
            while not run.judge_ready({}):
                if stop.asked:
                    raise Stopped
                if not batches.open():
                    await batches.hand_in()
                if not batches.open():
                    run.outcome.ended = "budget"
                    return
                if not await batches.collect():
                    await _sleep(POLL, stop)
        except Stopped:
            run.outcome.ended = "interrupted"


class Batches:
    """The batches of a run, by the id of their input file."""

    def __init__(self, run: Run, client: Any, openai: Any, stop: Stop) -> None:
        self.run, self.client, self.openai, self.stop = run, client, openai, stop
        self.failed: Counter[int] = Counter()
        self.told: dict[str, str] = {}

    def open(self) -> dict[str, dict[str, Any]]:
        """The batches that are not collected yet."""
        return self.run.journal.open_batches()

    async def hand_in(self) -> None:
        """Uploads the requests that are needed next, and makes batches of them."""
        run, first = self.run, self.run.outcome.requests
        count = run.needed() if first else round(run.needed() * SPARE)
        numbers = [
            number
            for number in range(first, min(first + count, run.most_requests))
            if number not in run.journal and run.prompter.ready(number, first)
        ]
        for part, data in self._files(numbers):
            if self.stop.asked:
                raise Stopped
            name = f"{run.folder.name or 'requests'}-{part[0]}.jsonl"
            upload = partial(self.client.files.create, file=(name, data), purpose="batch")
            uploaded = await self._patiently(upload)
            run.journal.batch(uploaded.id, requests=part, state="uploaded")
            await self._make(uploaded.id)

    async def _make(self, file: str) -> None:
        tries = 0

        async def make() -> Any:
            nonlocal tries
            tries += 1
            # The answer to an earlier try may be lost, and its batch made all the same.
            if tries > 1 and (found := await self._made_of(file)):
                return found
            return await self.client.batches.create(
                input_file_id=file, endpoint=ENDPOINT, completion_window="24h"
            )

        made = await self._patiently(make)
        self.run.journal.batch(file, id=made.id, state="made")
        self.run.teacher.say(
            f"batch {made.id}: {len(self.run.journal.batches[file]['requests'])} requests handed "
            "in; this may be interrupted, and started again later to collect the answers"
        )

    async def _made_of(self, file: str) -> Any:
        """The account's batch of an input file, or None."""
        async for found in self.client.batches.list(limit=100):
            if found.input_file_id == file:
                return found
        return None

    def _files(self, numbers: list[int]) -> Iterator[tuple[list[int], bytes]]:
        """(requests, file) for as many requests as the budget allows, in files of legal size."""
        run = self.run
        part: list[int] = []
        data = bytearray()
        for number in numbers:
            request = run.request(number)
            if not run.budget.fits(*request.most_tokens):
                break
            run.budget.reserve(*request.most_tokens)
            line = {
                "custom_id": f"request-{number}",
                "method": "POST",
                "url": ENDPOINT,
                "body": request.body,
            }
            text = json.dumps(line).encode() + b"\n"
            if part and (len(part) == MOST_REQUESTS or len(data) + len(text) > MOST_BYTES):
                yield part, bytes(data)
                part, data = [], bytearray()
            part.append(number)
            data += text
        if part:
            yield part, bytes(data)

    async def collect(self) -> bool:
        """Looks at each open batch once; whether any was finished and its answers are kept."""
        finished = False
        for file, state in self.open().items():
            if "id" not in state:  # killed between upload and batch: was it made?
                found = await self._patiently(partial(self._made_of, file))
                if found:
                    self.run.journal.batch(file, id=found.id, state="made")
                else:
                    await self._make(file)
                continue
            found = await self._patiently(partial(self.client.batches.retrieve, state["id"]))
            self._tell(found)
            if found.status in ("completed", "expired", "cancelled", "failed"):
                await self._take(file, found)
                finished = True
        return finished

    async def _take(self, file: str, found: Any) -> None:
        run = self.run
        if found.status == "failed":
            run.journal.batch(file, state="done", status=found.status)
            errors = (found.errors.data if found.errors else None) or []
            said = "; ".join(str(error.message or error.code or "") for error in errors[:3])
            why = run.teacher.redact(said) or "no reason given"
            raise TeacherError(f"{run.teacher.address}: batch {found.id} was refused: {why}")
        seen: set[int] = set()
        for name in (found.output_file_id, found.error_file_id):
            if name:
                with tempfile.TemporaryFile() as stream:
                    await self._patiently(partial(self._download, name, stream))
                    self._read(stream, seen)
        for number in run.journal.batches[file]["requests"]:
            if number not in run.journal and number not in seen:
                if found.status == "completed":  # paid for, perhaps, and answered by nothing
                    self._lost(number, "no line in its batch")
                self._failed(number, {"message": "no line in its batch"})
        run.budget.reserved = 0.0
        run.journal.batch(file, state="done", status=found.status)

    async def _download(self, name: str, stream: IO[bytes]) -> None:
        httpx = require("httpx2")
        stream.seek(0)
        stream.truncate()
        try:
            async with self.client.files.with_streaming_response.content(name) as response:
                async for data in response.iter_bytes():
                    stream.write(data)
        except httpx.TransportError as error:
            raise self.openai.APIConnectionError(request=None) from error

    def _read(self, stream: IO[bytes], seen: set[int]) -> None:
        """Puts the answers of an output or error file into the journal."""
        run = self.run
        stream.seek(0)
        for text in stream:
            try:
                line = json.loads(text)
                number = int(str(line["custom_id"]).removeprefix("request-"))
                response = line.get("response") or {}
                body = response.get("body") or {}
                error = line.get("error") or body.get("error")
                status = response.get("status_code")
            except (ValueError, KeyError, AttributeError, TypeError, RecursionError):
                continue  # not an answer to anything; its request is asked again
            if number in run.journal:
                continue
            seen.add(number)
            if error is None and status == 200:
                try:
                    reply = reply_from(body)
                    most = run.budget.most(*run.request(number).most_tokens)
                    run.journal.append(number, replace(reply, usd=run.budget.settle(most, reply)))
                    continue
                except ReplyError as broken:
                    error = {"message": str(broken)}
                    self._lost(number, str(broken))
            self._failed(number, error if isinstance(error, dict) else {"message": error})

    def _lost(self, number: int, why: str) -> None:
        """An answer that has been paid for and is of no use."""
        budget = self.run.budget
        dollars = budget.most(*self.run.request(number).most_tokens)
        self.run.journal.lost(number, why, dollars)
        budget.forfeit(dollars)

    def _failed(self, number: int, error: dict[str, Any]) -> None:
        run, code = self.run, str(error.get("code") or "")
        said = run.teacher.redact(str(error.get("message") or "no reason given"))[:300]
        if code in ("content_filter", "content_policy_violation"):
            run.journal.append(number, RawReply("", "content_filter", 0, 0, refusal=said))
            return
        self.failed[number] += 1
        if code in REFUSALS and error.get("param") in DROPPABLE:
            run.teacher.drop(str(error["param"]))
        if self.failed[number] >= ROUNDS:
            raise TeacherError(
                f"{run.teacher.address}: request {number} failed in {ROUNDS} batches: {said}"
            )

    def _tell(self, found: Any) -> None:
        counts = found.request_counts
        said = f"batch {found.id}: {found.status}"
        if counts:
            said += f", {counts.completed} of {counts.total} requests done, {counts.failed} failed"
        if self.told.get(found.id) != said:
            self.told[found.id] = said
            self.run.teacher.say(said)

    async def _patiently(self, call: Callable[[], Awaitable[T]]) -> T:
        """What a call returns; what may pass is tried again, ever less often."""
        teacher = self.run.teacher
        attempt = 0
        while True:
            try:
                found = await call()
                if isinstance(found, str):  # the client's way with a web page
                    raise ReplyError("a page, not an answer")
                return found
            except self.openai.NotFoundError:
                raise TeacherError(
                    f"{teacher.address}: has no Batch API, or this file or batch no more; "
                    'way="online" asks without it'
                ) from None
            except (self.openai.OpenAIError, TimeoutError, ReplyError) as error:
                failure = failure_of(error, self.openai, teacher.address, teacher.model)
                attempt += 1
                passing = failure.kind in ("rate", "busy", "lost", "garbled")
                if not passing or attempt >= teacher.tries:
                    raise TeacherError(teacher.redact(failure.text)[:500]) from None
                backoff = min(2 * teachers.FIRST_WAIT * 2.0 ** (attempt - 1), teachers.LONGEST_WAIT)
                await _sleep(random.uniform(0, backoff) + (failure.wait or 0.0), self.stop)
                if self.stop.asked:
                    raise Stopped from None


async def _sleep(seconds: float, stop: Stop) -> None:
    """Waits, and looks now and then whether to stop."""
    end = asyncio.get_running_loop().time() + seconds
    while not stop.asked and (left := end - asyncio.get_running_loop().time()) > 0:
        await asyncio.sleep(min(left, 0.2))
