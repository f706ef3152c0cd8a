"""The address in OPENAI_BASE_URL, and the secrets that no file and no output may show."""

from __future__ import annotations

import base64
import html
import json
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from urllib.parse import parse_qsl, quote, quote_plus, unquote, urlsplit, urlunsplit

from alpaca_lib.errors import SettingsError

DEFAULT = "https://api.openai.com/v1"
SECRET_NAMES = re.compile(r"key|token|secret|sig|pass|auth|code|cred", re.IGNORECASE)


@dataclass(frozen=True)
class Address:
    """Where a server is. ``url`` has no secret in it and may be shown.

    headers, query: what OPENAI_BASE_URL holds besides, sent with every request.
    secrets: a password in it, and query values whose name is that of a secret.
    """

    url: str
    headers: dict[str, str] = field(default_factory=dict, repr=False)
    query: dict[str, str] = field(default_factory=dict, repr=False)
    secrets: tuple[str, ...] = field(default=(), repr=False)


def parse_address(text: str) -> Address:
    """Returns the Address in OPENAI_BASE_URL; a user:password@ in it is sent as basic auth.

    Raises SettingsError, which does not repeat the text, if it is no address.
    """
    try:
        parts = urlsplit(text)
        host, port = parts.hostname or "", parts.port
    except ValueError:
        host = ""
    printable = text.isascii() and text.isprintable() and " " not in text
    if not host or not printable or parts.scheme not in ("http", "https"):
        raise SettingsError(
            "OPENAI_BASE_URL is no address of a server: it begins with http:// or https:// and "
            f"usually ends in /v1, as {DEFAULT} does"
        )
    netloc = (f"[{host}]" if ":" in host else host) + (f":{port}" if port is not None else "")
    url = urlunsplit((parts.scheme, netloc, parts.path.rstrip("/"), "", ""))
    query = dict(parse_qsl(parts.query, keep_blank_values=True))
    secrets = [value for name, value in query.items() if SECRET_NAMES.search(name)]
    headers = {}
    if parts.username or parts.password:
        pair = f"{unquote(parts.username or '')}:{unquote(parts.password or '')}"
        encoded = base64.b64encode(pair.encode()).decode()
        headers = {"Authorization": f"Basic {encoded}"}
        secrets += [pair, unquote(parts.password or ""), parts.password or "", encoded]
    return Address(url, headers, query, tuple(secrets))


def server_address(default: str = DEFAULT) -> Address:
    """Returns the Address in OPENAI_BASE_URL, or the default (OpenAI's own) if it is not set."""
    return parse_address(os.environ.get("OPENAI_BASE_URL", "").strip() or default)


class Redactor:
    """Replaces secrets in texts, however a server wrote them: escaped, quoted or as they are.

    >>> Redactor(["sk-4711"])("bad key sk-4711")
    'bad key (the key)'
    """

    def __init__(self, secrets: Iterable[str]) -> None:
        secrets = {secret for secret in secrets if len(secret) > 3}
        self._all = _pattern(secrets)
        self._unusual = _pattern(s for s in secrets if _is_unusual(s))

    def __call__(self, text: str) -> str:
        """Returns a message for the user without any of the secrets."""
        return self._all.sub("(the key)", text)

    def redact_data(self, text: str) -> str:
        """Returns a reply's text without the secrets that are no ordinary word.

        Servers without keys are given words such as EMPTY or ollama, which replies may contain.
        """
        return self._unusual.sub("(the key)", text)


def _is_unusual(secret: str) -> bool:
    if secret.isalpha():
        return len(secret) >= 16
    return not secret.isalnum() or len(secret) >= 6


def _pattern(secrets: Iterable[str]) -> re.Pattern[str]:
    forms: set[str] = set()
    for secret in secrets:
        escaped = json.dumps(secret)[1:-1]
        forms |= {secret, escaped, escaped.replace("/", r"\/"), repr(secret)[1:-1]}
        forms |= {quote(secret), quote(secret, safe=""), quote_plus(secret), html.escape(secret)}
    if not forms:
        return re.compile(r"(?!)")  # matches nothing
    longest_first = sorted(forms, key=len, reverse=True)
    return re.compile("|".join(re.escape(form) for form in longest_first), re.IGNORECASE)
