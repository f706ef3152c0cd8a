"""Sends the requests of a run through the Batch API: half the price, answered within a day.

Requests go up in files, answers come back in files, in any order. Each file is in the
journal before its batch is created, so that a run which is killed finds its batches again
and submits none twice.
"""

from __future__ import annotations

import asyncio
import json
import tempfile
import threading
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import IO, Any, TypeVar

from alpaca_lib.errors import ReplyError, SettingsError, TeacherError
from alpaca_lib.generation.backoff import compute_wait
from alpaca_lib.generation.client import refuse_error
from alpaca_lib.generation.failures import REFUSED_PARAMETER, REQUIRED
from alpaca_lib.generation.messages import (
    MALFORMED,
    RawReply,
    parse_completion,
    shorten,
)
from alpaca_lib.generation.run_state import RunState
from alpaca_lib.optional import require

MOST_REQUESTS, MOST_BYTES = 50_000, 200_000_000  # of one file
POLL = 30.0  # seconds between two looks at a batch
ROUNDS = 3  # batches in which a request may fail before the run stops
SPARE = 1.3  # first round: requests per request needed if all tasks are kept, as a round is slow
ENDPOINT = "/v1/chat/completions"
T = TypeVar("T")


class _Stopped(Exception):
    """Unwinds to send_all when the run is asked to stop."""


async def send_all(run: RunState, stop: threading.Event) -> None:
    """Sends requests in batches until the run has enough, reaches a limit or has to stop.

    Raises SettingsError for a teacher without a Batch API, TeacherError if it fails for good.
    """
    teacher = run.teacher
    if teacher.kind != "openai":
        raise SettingsError(f'way "batch": not with teacher {teacher.kind!r}, only with "openai"')
    async with teacher.open_client(run.limits) as client:
        batches = Batches(run, client, stop)
        try:
            while not run.filter_arrived():
                batches.check_stop()
                if not run.journal.open_batches():
                    await batches.submit()
                if not run.journal.open_batches():
                    run.outcome.ended = "budget"
                    return
                if not await batches.collect():
                    await batches.sleep(POLL)
        except _Stopped:
            run.outcome.ended = "interrupted"


class Batches:
    """The batches of a run; the journal keeps their state by the id of the input file.

    failed: the number of batches in which each request failed.
    reported: the last status of each batch that was printed.

    >>> await batches.submit()
    >>> while not await batches.collect(): await batches.sleep(POLL)
    """

    def __init__(self, run: RunState, client: Any, stop: threading.Event) -> None:
        self.run, self.client, self.stop = run, client, stop
        self.openai = require("openai")
        self.failed: Counter[int] = Counter()
        self.reported: dict[str, str] = {}

    async def submit(self) -> None:
        """Uploads the requests that are needed next, and creates a batch per file."""
        run, first = self.run, self.run.outcome.requests
        count = run.requests_needed() if first else round(run.requests_needed() * SPARE)
        numbers = [
            number
            for number in range(first, min(first + count, run.most_requests))
            if number not in run.journal and run.prompter.is_ready(number, first)
        ]
        for part, data in self._files(numbers):
            self.check_stop()
            name = f"{run.folder.name or 'requests'}-{part[0]}.jsonl"
            upload = partial(self.client.files.create, file=(name, data), purpose="batch")
            uploaded = await self._retry(upload)
            run.journal.note_batch(uploaded.id, requests=part, state="uploaded")
            await self._create(uploaded.id)

    async def _create(self, file: str) -> None:
        attempts = 0

        async def create() -> Any:
            nonlocal attempts
            attempts += 1
            # The answer to an earlier attempt may be lost although its batch was created.
            if attempts > 1 and (found := await self._find(file)):
                return found
            return await self.client.batches.create(
                input_file_id=file, endpoint=ENDPOINT, completion_window="24h"
            )

        batch, journal = await self._retry(create), self.run.journal
        journal.note_batch(file, id=batch.id, state="made")
        self.run.teacher.say(
            f"batch {batch.id}: {len(journal.batches[file]['requests'])} requests handed in; this "
            "may be interrupted, and started again later to collect the answers"
        )

    async def _find(self, file: str) -> Any:
        """Returns the account's batch of an input file, or None."""
        try:
            page = await self.client.batches.list(limit=100)
        except (AttributeError, TypeError):  # the client's own, for JSON that is no object
            raise ReplyError("no list of batches") from None
        if not isinstance(getattr(page, "data", None), list):  # no list is not an empty one
            raise ReplyError("no list of batches")
        async for batch in page:
            if getattr(batch, "input_file_id", None) == file:
                return batch
        return None

    def _files(self, numbers: list[int]) -> Iterator[tuple[list[int], bytes]]:
        """Yields (requests, file) for the requests that the budget allows, in allowed sizes."""
        ledger = self.run.ledger
        part: list[int] = []
        data = bytearray()
        for number in numbers:
            request = self.run.request(number)
            if not ledger.fits(*request.most_tokens):
                break
            ledger.hold(number, *request.most_tokens)
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
        """Looks at each open batch once; returns whether the answers of one were collected."""
        finished = False
        for file, state in self.run.journal.open_batches().items():
            if "id" not in state:  # killed after the upload: the batch may exist
                if batch := await self._retry(partial(self._find, file), may_be_none=True):
                    self.run.journal.note_batch(file, id=batch.id, state="made")
                else:
                    await self._create(file)
                continue
            batch = await self._retry(partial(self.client.batches.retrieve, state["id"]))
            self._report(batch)
            if getattr(batch, "status", "") in ("completed", "expired", "cancelled", "failed"):
                await self._collect_one(file, batch)
                finished = True
        return finished

    async def _collect_one(self, file: str, batch: Any) -> None:
        run, numbers = self.run, self.run.journal.batches[file]["requests"]
        if batch.status == "failed":
            run.journal.note_batch(file, state="done", status=batch.status)
            errors = getattr(getattr(batch, "errors", None), "data", None) or []
            found = [getattr(e, "message", "") or getattr(e, "code", "") for e in errors[:3]]
            reasons = "; ".join(str(reason or "") for reason in found)
            why = shorten(run.teacher.redact(reasons), 500) or "no reason given"
            raise TeacherError(f"{run.teacher.address}: batch {batch.id} was refused: {why}")
        answered: set[int] = set()
        most = len(numbers) * run.limits.max_reply_bytes
        files = [getattr(batch, f"{kind}_file_id", None) for kind in ("output", "error")]
        for name in files:
            if name and isinstance(name, str):
                with tempfile.TemporaryFile() as stream:
                    await self._retry(partial(self._download, name, stream, most), may_be_none=True)
                    self._read(stream, frozenset(numbers), answered)
        for number in numbers:
            if number not in run.journal and number not in answered:
                if batch.status == "completed":  # perhaps paid for, without an answer
                    self._hold(number)
                    run.ledger.forfeit(number, "no line in its batch")
                self._fail(number, {"message": "no line in its batch"})
        run.journal.note_batch(file, state="done", status=batch.status)

    async def _download(self, name: str, stream: IO[bytes], most: int) -> None:
        stream.seek(0)
        stream.truncate()
        try:
            async with self.client.files.with_streaming_response.content(name) as response:
                async for data in response.iter_bytes():
                    stream.write(data)
                    if stream.tell() > most:
                        raise ReplyError(
                            f"the file {name} is larger than {most} bytes; a larger "
                            "max_reply_bytes allows it"
                        )
        except require("httpx2").TransportError as error:
            raise self.openai.APIConnectionError(request=None) from error
        end = stream.tell()
        stream.seek(0)
        if end and not any(b'"custom_id"' in line for line in stream):
            stream.seek(0)
            refuse_error(stream.read(100_000), self.run.teacher.redact)
            raise ReplyError(f"the file {name} has no answer in it")

    def _read(self, stream: IO[bytes], numbers: frozenset[int], answered: set[int]) -> None:
        """Puts the answers of an output or error file into the journal.

        numbers: the requests of the batch; an answer to another one was not requested.
        """
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
            except MALFORMED:
                continue  # not an answer to anything; its request is sent again
            if number not in numbers or number in run.journal:
                continue
            answered.add(number)
            if error is None and status == 200:
                self._hold(number)
                try:
                    reply = parse_completion(body, run.teacher.redact.redact_data)
                    usd = run.ledger.cost(number, reply, run.request(number))
                    reply = replace(reply, usd=usd)
                    run.journal.append(number, reply)
                    run.ledger.charge(number, reply.usd)
                    continue
                except ReplyError as broken:
                    error = {"message": str(broken)}
                    run.ledger.forfeit(number, str(broken))
            self._fail(number, error if isinstance(error, dict) else {"message": error})

    def _hold(self, number: int) -> None:
        """Reserves a request's dollars again if an earlier process submitted its batch."""
        self.run.ledger.hold(number, *self.run.request(number).most_tokens)

    def _fail(self, number: int, error: dict[str, Any]) -> None:
        """Counts a request that failed, to be sent again; one that was filtered is a reply."""
        run, code = self.run, str(error.get("code") or "")
        words = run.teacher.redact(str(error.get("message") or "no reason given"))
        message = shorten(words, 300)
        run.ledger.release(number)
        if code in ("content_filter", "content_policy_violation"):
            run.journal.append(number, RawReply("", "content_filter", 0, 0, refusal=message))
            return
        self.failed[number] += 1
        parameter = str(error.get("param") or "")
        if code in REFUSED_PARAMETER and parameter not in (*REQUIRED, "service_tier"):
            body = run.request(number).body
            if run.teacher.can_leave_out(parameter, body):
                run.teacher.leave_out(parameter, message)
        if self.failed[number] >= ROUNDS:
            raise TeacherError(
                f"{run.teacher.address}: request {number} failed in {ROUNDS} batches: {message}"
            )

    def _report(self, batch: Any) -> None:
        text = f"batch {batch.id}: {getattr(batch, 'status', 'no status')}"
        if counts := getattr(batch, "request_counts", None):
            done, total, failed = (
                getattr(counts, name, "?") for name in ("completed", "total", "failed")
            )
            text += f", {done} of {total} requests done, {failed} failed"
        if self.reported.get(batch.id) != text:
            self.reported[batch.id] = text
            self.run.teacher.say(text)

    async def _retry(self, call: Callable[[], Awaitable[T]], may_be_none: bool = False) -> T:
        """Returns what a call returns; a failure that may pass is tried again after a wait."""
        teacher = self.run.teacher
        attempt = 0
        while True:
            try:
                found = await call()
                if isinstance(found, str):  # the client returns a web page as its text
                    raise ReplyError("a page, not an answer")
                is_complete = found is None and may_be_none
                if not is_complete and not isinstance(getattr(found, "id", None), str):
                    raise ReplyError("an answer without an id")  # the client checks no field
                return found
            except self.openai.NotFoundError:
                raise TeacherError(
                    f"{teacher.address}: has no Batch API, or no longer this file or batch; "
                    'way="online" works without it'
                ) from None
            except (self.openai.OpenAIError, TimeoutError, ReplyError) as error:
                failure = teacher.explain(error)
                attempt += 1
                passing = failure.kind in ("rate", "busy", "late", "lost", "garbled")
                if not passing or attempt >= teacher.tries:
                    raise TeacherError(teacher.redact(failure.text)[:500]) from None
                wait = compute_wait(attempt, failure.wait)
            await self.sleep(wait)
            self.check_stop()

    def check_stop(self) -> None:
        """Ends send_all if the run was asked to stop."""
        if self.stop.is_set():
            raise _Stopped

    async def sleep(self, seconds: float) -> None:
        """Waits for a time, or until the run is asked to stop."""
        end = asyncio.get_running_loop().time() + seconds
        while not self.stop.is_set() and (left := end - asyncio.get_running_loop().time()) > 0:
            await asyncio.sleep(min(left, 0.2))
