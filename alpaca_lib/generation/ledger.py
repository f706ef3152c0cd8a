"""The ledger of a run: dollars reserved, spent and forfeited, never above the limit.

A request is sent only if the most expensive reply it can get fits into what is left. So

    spent + reserved + forfeited <= max_usd

holds at every moment, with any number of concurrent requests and whatever their replies cost.
"""

from __future__ import annotations

from alpaca_lib.errors import BudgetSpent, DataError, SettingsError
from alpaca_lib.generation.budget import FREE, Price
from alpaca_lib.generation.journal import Journal
from alpaca_lib.generation.messages import RawReply, Request, least_tokens


class Ledger:
    """Dollars of one run; nothing else changes them. A request is known by its number.

    price: dollars per token; None: unknown, so no limit can be kept.
    max_usd: the limit; None: there is none.
    spent: dollars of replies.
    reserved: dollars that concurrent requests can cost at most.
    forfeited: dollars of attempts without a reply that may have been paid for.
    in_flight_at_stop: requests that were sent and not answered when an earlier process ended.

    >>> ledger.reserve(7, *request.most_tokens)     # or BudgetSpent
    >>> ledger.charge(7, ledger.cost(7, reply))     # or release(7), or forfeit(7, "no answer")
    """

    def __init__(self, price: Price | None = FREE, max_usd: float | None = None) -> None:
        if max_usd is not None and not max_usd >= 0:
            raise SettingsError(f"max_usd {max_usd}: a number of dollars, 0 or more")
        if max_usd is not None and price is None:
            raise DataError(
                "max_usd needs the model's price: add it to a copy of data/prices.yaml and pass "
                "that file, or set no max_usd"
            )
        self.price, self.max_usd = price, max_usd
        self.spent = self.reserved = self.forfeited = 0.0
        self.in_flight_at_stop = 0
        self._open: dict[int, float] = {}  # dollars reserved, by request
        self._journal: Journal | None = None

    def resume(self, journal: Journal) -> None:
        """Counts what earlier processes paid for, and notes every change in their journal.

        Requests that were sent and not answered may have been paid for: they are forfeited.
        """
        self.in_flight_at_stop = len(journal.pending)
        for number, usd in list(journal.pending.items()):
            journal.note_lost(number, "the run ended before its reply", usd)
        self.spent, self.forfeited = journal.spent_usd, journal.lost_usd
        self._journal = journal

    def most(self, prompt: float, reply: float) -> float:
        """Returns the dollars that a request with that many tokens can cost, cached or not."""
        if self.price is None:
            return 0.0
        return max(self.price.cost(prompt, reply), self.price.cost(prompt, reply, prompt))

    def fits(self, prompt: float, reply: float) -> bool:
        """Returns whether a request of at most that many tokens stays within the limit."""
        if self.max_usd is None:
            return True
        committed = self.spent + self.reserved + self.forfeited
        return committed + self.most(prompt, reply) <= self.max_usd

    def reserve(self, number: int, prompt: float, reply: float) -> None:
        """Reserves the most that a request can cost, before it is sent; once until it is closed.

        The journal notes it too, unless the model is free: if the process ends before the reply,
        it counts as forfeited. Raises BudgetSpent if it does not fit.
        """
        if number in self._open:
            return
        if not self.fits(prompt, reply):
            raise BudgetSpent(
                f"the budget of ${_dollars(self.max_usd)} is used up: ${self.spent:.4f} spent, "
                f"${self.forfeited:.4f} perhaps spent on attempts without an answer, and the "
                "next request could exceed it. What was generated is kept; a larger max_usd "
                "continues it"
            )
        self.hold(number, prompt, reply)
        if self._journal is not None and self.price is not FREE:
            self._journal.note_sent(number, self._open[number])

    def hold(self, number: int, prompt: float, reply: float) -> None:
        """Reserves in memory only, without a check: the journal has the request's batch."""
        if number not in self._open:
            self._open[number] = self.most(prompt, reply)
            self.reserved += self._open[number]

    def cost(self, number: int, reply: RawReply, request: Request | None = None) -> float:
        """Returns the dollars of a reply to a request.

        A count below what its text must take cannot be true: then each byte counts as a token,
        which is never too few. A reply without counts costs all that is reserved for it.
        """
        if self.price is None:
            return 0.0
        prompt, completion = reply.prompt_tokens, reply.completion_tokens
        most_prompt, most_reply = request.most_tokens if request else (0, 0)
        if completion < (least := least_tokens(reply.text)):
            size = len(reply.text.encode("utf-8", "replace"))
            completion = max(least, min(size, most_reply or size))
        if reply.prompt_tokens <= 0 or reply.completion_tokens < 0:
            return self._open.get(number, self.most(most_prompt, completion))
        if request and prompt < least_tokens(request.prompt):
            prompt = most_prompt
        return self.price.cost(prompt, completion, min(max(reply.cached_tokens, 0), prompt))

    def charge(self, number: int, usd: float) -> None:
        """Replaces what is reserved for a request by what its reply cost."""
        self.close(number)
        self.spent += usd

    def release(self, number: int) -> None:
        """Frees what is reserved for a request that cost nothing."""
        self.close(number)
        if self._journal is not None:
            self._journal.note_unsent(number)

    def forfeit(self, number: int, why: str) -> None:
        """Counts what is reserved as lost: the attempt may have been paid for, without a reply."""
        usd = self.close(number)
        if self._journal is not None:
            self._journal.note_lost(number, why, usd)
        self.forfeited += usd

    def close(self, number: int) -> float:
        """Ends a reservation in memory and returns its dollars; the journal keeps it as sent."""
        usd = self._open.pop(number, 0.0)
        self.reserved = max(self.reserved - usd, 0.0) if self._open else 0.0
        return usd


def _dollars(amount: float | None) -> str:
    return f"{amount:.2f}" if amount and amount >= 0.01 else f"{amount:g}"
