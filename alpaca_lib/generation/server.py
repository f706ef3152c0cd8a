"""A server that answers for a teacher: its address, its key, and which parameters it takes."""

from __future__ import annotations

import datetime
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from alpaca_lib.errors import ReplyError, TeacherError
from alpaca_lib.generation.client import open_client
from alpaca_lib.generation.failures import Failure, classify_failure
from alpaca_lib.generation.messages import MALFORMED
from alpaca_lib.generation.presets import ANY_SERVER, LENGTHS, Preset
from alpaca_lib.generation.settings import Limits
from alpaca_lib.optional import require
from alpaca_lib.server_address import Redactor

IDLE_TIMEOUT = 90.0  # seconds without a byte; the time of a reply of 3000 tokens, or more
MOST_SHOWN = 20  # models that an error lists


@dataclass
class Server:
    """One model and how it is reached. The key is in the environment and is never shown.

    headers, query: of OPENAI_BASE_URL, sent with every request; redact: removes the key, and the
    secrets in these, from a text. preset: what is known about the server. key_name: the
    environment variable that the key is from.
    """

    kind: str  # local, replay, or openai: any other server
    model: str
    address: str
    key: str = field(repr=False)
    timeout: float = 600.0  # seconds per attempt, reading the reply included
    tries: int = 10  # attempts per request
    refused: set[str] = field(default_factory=set)  # parameters that the server rejects
    say: Callable[[str], None] = field(default=print, repr=False)
    headers: dict[str, str] = field(default_factory=dict, repr=False)
    query: dict[str, str] = field(default_factory=dict, repr=False)
    redact: Redactor = field(default_factory=lambda: Redactor(()), repr=False)
    preset: Preset = ANY_SERVER
    key_name: str = "OPENAI_API_KEY"
    streams: bool = False  # whether the server answers streaming requests alone
    is_free: bool = False  # whether its replies cost nothing

    def without_refused(self, body: dict[str, Any]) -> dict[str, Any]:
        """Returns the body as this server takes it.

        What it has rejected so far is left out, a reply's limit has the name that it knows, and
        it streams if it has to.
        """
        left = {n: v for n, v in body.items() if n not in self.refused and n not in LENGTHS}
        limit = next((body[name] for name in LENGTHS if name in body), None)
        names = [self.preset.max_tokens, *LENGTHS]
        name = next((name for name in names if name not in self.refused), None)
        if limit is not None and name:
            left[name] = limit
        if self.streams:
            left["stream"] = True
        if self.streams and "stream_options" not in self.refused:
            left["stream_options"] = {"include_usage": True}
        return left

    def can_leave_out(self, parameter: str, body: dict[str, Any]) -> bool:
        """Returns whether a request can be sent without a parameter that it was sent with.

        Without a limit under either name a reply could cost anything.
        """
        if parameter == "stream":
            return "stream" not in body
        is_last_limit = parameter in LENGTHS and bool(self.refused & (set(LENGTHS) - {parameter}))
        return parameter in body and not is_last_limit

    def leave_out(self, parameter: str, words: str = "") -> None:
        """Remembers a parameter that this server rejects, and says so the first time."""
        says = f" (it says: {words})" if words else ""
        if parameter == "stream":
            if not self.streams:
                self.streams = True
                self.say(f"{self.address} answers {self.model} in a stream alone{says}: streaming")
        elif parameter not in self.refused:
            self.refused.add(parameter)
            self.say(
                f"{self.address} does not take `{parameter}` for {self.model}{says}: "
                "left out from now on"
            )

    def explain(self, error: Exception, body: dict[str, Any] | None = None) -> Failure:
        """Returns the Failure behind an exception of one attempt, without secrets.

        body: the request's. Re-raises an exception that is no server's.
        """
        return classify_failure(
            error,
            self.address,
            self.model,
            self.redact,
            sent=body or (),
            key_name=self.key_name,
            start=self.preset.start,
        )

    def open_client(self, limits: Limits) -> Any:
        """Returns an openai client for this server, to be closed by the caller."""
        return open_client(
            self.address,
            self.key,
            timeout=self.idle_timeout(limits),
            limits=limits,
            headers=self.headers,
            query=self.query,
            redact=self.redact,
        )

    def idle_timeout(self, limits: Limits) -> float:
        """Returns the seconds without a byte after which the first attempt of a request ends."""
        if limits.idle_timeout is not None:
            return limits.idle_timeout
        is_slow = self.kind != "openai" or self.preset.is_local or limits.way == "flex"
        return self.timeout if is_slow else min(IDLE_TIMEOUT, self.timeout)

    async def list_models(self) -> list[str]:
        """Returns the names of the server's models that are not shut down.

        Raises TeacherError, with the fix, if it does not answer or has no such list.
        """
        httpx, openai = require("httpx2"), require("openai")
        try:
            async with self.open_client(Limits(connect_timeout=5.0, idle_timeout=15.0)) as client:
                response = await client.get("/models", cast_to=httpx.Response)
            return read_models(response.json())
        except (openai.NotFoundError, *MALFORMED):
            raise TeacherError(f"{self.address}: has no list of models") from None
        except Exception as error:
            raise TeacherError(self.redact(self.explain(error).text)[:500]) from None


def read_models(body: Any) -> list[str]:
    """Returns the names in the answer to GET /v1/models whose shutdown_date is not reached.

    Raises one of MALFORMED if it is no list of models.
    """
    rows = body if isinstance(body, list) else body.get("data") or body.get("models") or []
    today = datetime.date.today().isoformat()
    names = [str(row.get("id") or row["name"]) for row in rows if not _is_shut_down(row, today)]
    if not isinstance(rows, list):
        raise ReplyError("no list of models")
    return names


def _is_shut_down(row: Any, today: str) -> bool:
    date = row.get("shutdown_date")
    return isinstance(date, str) and date[:10] <= today


def name_models(names: list[str]) -> str:
    """Returns the first names of a list of models as text, and how many there are more."""
    more = f" and {len(names) - MOST_SHOWN} more" if len(names) > MOST_SHOWN else ""
    return ", ".join(names[:MOST_SHOWN]) + more
