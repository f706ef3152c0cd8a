"""Waits before a request is tried again: exponential backoff and the server's own hints."""

from __future__ import annotations

import email.utils
import random
import time
from collections.abc import Mapping

FIRST_WAIT = 1.0  # seconds: the mean wait before the second attempt; each next one doubles it
LONGEST_WAIT = 30.0
LONGEST_HINT = 300.0  # seconds; a longer Retry-After is ignored


def compute_wait(attempt: int, hint: float | None = None) -> float:
    """Returns the seconds to wait after failed attempt number ``attempt`` (1 is the first).

    A uniform draw from 0 to a bound that doubles ("full jitter"), plus the server's hint.
    """
    return random.uniform(0.0, min(FIRST_WAIT * 2.0**attempt, LONGEST_WAIT)) + (hint or 0.0)


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Returns the seconds that a server's headers ask to wait; None if they ask for none."""
    for name, unit in (("retry-after-ms", 1000.0), ("retry-after", 1.0)):
        value = headers.get(name)
        if value is None:
            continue
        try:
            seconds = float(value) / unit
        except ValueError:
            parsed = email.utils.parsedate_tz(value)
            if parsed is None:
                continue
            try:
                seconds = email.utils.mktime_tz(parsed) - time.time()
            except (ValueError, OverflowError):
                continue
        if 0 <= seconds <= LONGEST_HINT:
            return seconds
    return None
