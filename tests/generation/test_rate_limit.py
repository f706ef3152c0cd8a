"""RateLimit and Bucket in simulated time: how much passes, in which order, and never too much."""

from __future__ import annotations

import asyncio
import functools
import itertools
import math
import random

import pytest

from alpaca_lib.generation.rate_limit import Bucket, RateLimit

LIMITS = [60, 500, 1200, 10_000]  # a minute
MINUTES = 10
RUBBISH = ["", "abc", "nan", "inf", "-inf", "1e999", "-5", "0", "10 per minute", "500, 500"]


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop that does not sleep: its time jumps to the next timer.

    Every round takes 0.1 microseconds, so that no wait is too short to pass; ``late()``
    seconds are added to each jump, as on a busy machine. Waiting for nothing, or without
    end, is an AssertionError.
    """

    def __init__(self, late=lambda: 0.0) -> None:
        super().__init__()
        self.now, self.rounds, select = 0.0, 0, self._selector.select

        def jump(timeout):
            self.rounds += 1
            assert timeout is not None, "deadlock: everything waits, and no timer is set"
            assert self.rounds < 3_000_000 and self.now < 1e6, "this never ends"
            self.now += 1e-7 + (timeout + late() if timeout > 0 else 0.0)
            return select(0)

        self._selector.select = jump

    def time(self) -> float:
        """The simulated time in seconds."""
        return self.now


class Clock:
    """A clock that stands still until it is set."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def simulate(work, late=lambda: 0.0):
    """The result of ``await work(clock)`` in simulated time."""
    with asyncio.Runner(loop_factory=lambda: VirtualLoop(late)) as runner:
        return runner.run(work(runner.get_loop().time))


async def flood(rate_limit, clock, seconds, estimate=lambda: 1.0, used=None, lasts=lambda: 0.0):
    """Sends as fast as the rate_limit allows; [time let through, tokens truly used]."""
    sent, tasks = [], set()

    async def one(guess, true) -> None:
        await asyncio.sleep(lasts())
        rate_limit.release(guess, true)

    end = clock() + seconds
    while True:
        guess = estimate()
        await rate_limit.acquire(guess)
        if clock() >= end:
            break
        true = used(guess) if used else guess
        sent.append((clock(), true))
        task = asyncio.create_task(one(guess, true))
        tasks.add(task)
        task.add_done_callback(tasks.discard)
    await asyncio.gather(*tasks)
    return sent


def most_in_a_minute(times) -> int:
    """The most of these times that lie within 60 seconds."""
    most = first = 0
    for last, time in enumerate(times):
        while times[first] <= time - 60:
            first += 1
        most = max(most, last - first + 1)
    return most


# --- the bucket ---------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(5))
def test_bucket_fills_like_a_plain_simulation(seed):
    """Random takes at random times: the level is that of one filled millisecond by millisecond."""
    draw, clock = random.Random(seed), Clock()
    rate, size = draw.uniform(0.5, 200), draw.uniform(1, 50)
    bucket, level = Bucket(rate, size, clock), 1.0
    for _ in range(300):
        ticks = draw.randrange(400)
        clock.now += ticks / 1000
        for _ in range(ticks):
            level = min(level + rate / 1000, size)
        if draw.random() < 0.2:
            rate = draw.uniform(0.5, 200)
            bucket.set_rate(rate)
        amount = draw.uniform(0, 2 * size)
        bucket.take(amount)
        level -= amount
        assert bucket.level == pytest.approx(level, abs=1e-6)
        assert bucket.level <= size


def test_bucket_begins_with_one_and_never_overflows():
    """One request may go at once; after a year there is no more than the size."""
    clock = Clock()
    bucket = Bucket(10, 5, clock)
    assert bucket.wait(1) == 0 and bucket.wait(2) == pytest.approx(0.1)
    clock.now += 365 * 86400
    assert bucket.wait(5) == 0
    bucket.take(5)
    assert bucket.wait(1) == pytest.approx(0.1)


def test_bucket_smaller_than_one():
    """A bucket that cannot hold one is full with what it can hold."""
    bucket = Bucket(0.001, 0.5, Clock())
    assert bucket.level == 0.5 and bucket.wait(1) == 0


def test_debt_is_paid_by_waiting():
    """Taking more than there is delays the next by exactly what is missing."""
    clock = Clock()
    bucket = Bucket(2, 10, clock)
    bucket.take(101)  # one was there
    assert bucket.wait(4) == pytest.approx((100 + 4) / 2)
    clock.now += 50
    assert bucket.wait(4) == pytest.approx(2)
    assert bucket.wait(0) == pytest.approx(0, abs=1e-9)


def test_what_is_given_back_can_be_taken():
    """A negative amount shortens the wait by just as much; time alone does not overfill."""
    clock = Clock()
    bucket = Bucket(2, 10, clock)
    bucket.take(101)
    bucket.take(-60)
    assert bucket.wait(10) == pytest.approx((40 + 10) / 2)
    clock.now += 1000
    bucket.take(0)
    assert bucket.level == 10
    bucket.take(-60)
    clock.now += 1000
    assert bucket.wait(70) == 0 and bucket.level == 70


@pytest.mark.parametrize("seed", range(5))
def test_wait_is_exact(seed):
    """After wait() it is there, or the bucket is full; a little sooner it is not."""
    draw, clock = random.Random(seed), Clock()
    bucket = Bucket(draw.uniform(0.1, 100), draw.uniform(1, 20), clock)
    for _ in range(100):
        amount = draw.uniform(0, 40)
        wait = bucket.wait(amount)
        if wait > 1e-6:
            clock.now += wait * 0.99
            assert bucket.wait(amount) > 0
            clock.now += wait * 0.01 + 1e-9
        assert bucket.wait(amount) < 1e-9
        assert bucket.level >= min(amount, bucket.size) - 1e-6
        bucket.take(amount)


def test_bucket_that_does_not_fill():
    """Rate 0: what is there may go, more never."""
    bucket = Bucket(0, 5, Clock())
    assert bucket.wait(6) == math.inf


# --- how much passes ----------------------------------------------------------------


@functools.cache
def times_of_a_flood(limit: int, minutes: int = MINUTES, late: float = 0.0) -> list[float]:
    """When requests were let through that came as fast as they could."""
    draw = random.Random(limit)

    async def work(clock):
        sent = await flood(RateLimit(10**6, limit, clock=clock), clock, 60 * minutes)
        return [time for time, _ in sent]

    return simulate(work, (lambda: draw.uniform(0, late)) if late else lambda: 0.0)


@pytest.mark.parametrize("limit", LIMITS)
def test_requests_a_minute_are_used_and_kept(limit):
    """In ten minutes: within 1 % under the limit, and never over it."""
    count = len(times_of_a_flood(limit))
    assert 0.99 * limit * MINUTES <= count <= limit * MINUTES


@pytest.mark.parametrize("limit", LIMITS)
def test_no_minute_has_more_than_the_limit(limit):
    """Any 60 seconds hold at most the limit and one, from the first second on."""
    assert most_in_a_minute(times_of_a_flood(limit)) <= limit + 1


@pytest.mark.parametrize("limit, late", [(60, 0.4), (500, 0.1), (1200, 0.05), (10_000, 0.05)])
def test_late_wake_ups_are_made_up_for(limit, late):
    """A machine that wakes up too late by up to so many seconds loses less than 5 %."""
    times = times_of_a_flood(limit, 3, late)
    assert 0.95 * limit * 3 <= len(times) <= limit * 3 + 1
    assert most_in_a_minute(times) <= limit + 2 + limit / 600


@pytest.mark.parametrize("limit", LIMITS[:3])
def test_after_a_rest_there_is_only_a_small_burst(limit):
    """Idle time is not saved up: any 60 seconds hold the limit and a tenth of a second's more."""
    draw = random.Random(limit)

    async def work(clock):
        rate_limit, times = RateLimit(10**6, limit, clock=clock), []
        while clock() < 600:
            for _ in range(draw.randrange(1, limit)):
                await rate_limit.acquire(1)
                times.append(clock())
                rate_limit.release(1, 1)
            await asyncio.sleep(draw.choice([0, 1, 5, 30, 70]))
        return times

    assert most_in_a_minute(simulate(work)) <= limit + 2 + limit / 600


TRUTHS = {
    "right": lambda draw, guess: guess,
    "2.5 times too low": lambda draw, guess: 2.5 * guess,
    "a little off": lambda draw, guess: guess * draw.uniform(0.9, 1.1),
    "twice too high": lambda draw, guess: guess / 2,
    "three times too high": lambda draw, guess: guess / 3,
    "half or one and a half": lambda draw, guess: guess * draw.choice([0.5, 1.5]),
    "very uneven": lambda draw, guess: guess * draw.expovariate(1),
}
WRONG = ("twice too high", "three times too high", "half or one and a half", "very uneven")


@pytest.mark.parametrize("name", [pytest.param(name) if name in WRONG else name for name in TRUTHS])
@pytest.mark.parametrize("limit", [60_000, 600_000])
def test_tokens_a_minute_are_used_and_kept(limit, name):
    """Estimates that are wrong either way are corrected: 95 to 100.5 % of the limit is used."""
    draw = random.Random(1)

    async def work(clock):
        return await flood(
            *(RateLimit(10**6, None, limit, clock), clock, 60 * MINUTES),
            estimate=lambda: draw.choice([1000, 1500, 2000]),
            used=lambda guess: TRUTHS[name](draw, guess),
            lasts=lambda: draw.uniform(1, 4),
        )

    used = sum(true for _, true in simulate(work))
    assert 0.95 * limit * MINUTES <= used <= 1.005 * limit * MINUTES


def test_tokens_of_a_reply_without_count_stay_taken():
    """used None: the estimate counts; used 0: it is given back whole."""

    async def work(clock, used):
        rate_limit = RateLimit(1, None, 60_000, clock)
        for _ in range(50):
            await rate_limit.acquire(3000)
            rate_limit.release(3000, used)
        return clock()

    per_request = 3000 / (60_000 / 60)
    assert simulate(lambda clock: work(clock, None)) == pytest.approx(49 * per_request, rel=0.01)
    assert simulate(lambda clock: work(clock, 0.0)) < 1


@pytest.mark.parametrize("requests, tokens, expected", [(600, 60_000, 120), (60, 10**6, 60)])
def test_the_narrower_limit_counts(requests, tokens, expected):
    """With both limits and 500 tokens a request, the one that is reached first holds."""

    async def work(clock):
        rate_limit = RateLimit(100, requests, tokens, clock)
        return await flood(rate_limit, clock, 600, estimate=lambda: 500.0)

    assert 0.95 * expected * 10 <= len(simulate(work)) <= expected * 10


def test_without_limits_nothing_waits():
    """No limit given, none learned: all go at once."""

    async def work(clock):
        rate_limit = RateLimit(1000)
        for _ in range(1000):
            await rate_limit.acquire(10**9)
        return clock()

    assert simulate(work) < 0.01


@pytest.mark.parametrize("tokens", [10**5, 10**6])
def test_a_request_larger_than_the_bucket_passes(tokens):
    """Many times what a minute allows in one request: it passes, the next wait for the debt."""

    async def work(clock):
        rate_limit, times = RateLimit(5, 1000, 60_000, clock), []
        for _ in range(4):
            await rate_limit.acquire(tokens)
            times.append(clock())
            rate_limit.release(tokens, tokens)
        return times

    times = simulate(work)
    assert times[0] < 1
    gaps = [after - before for before, after in itertools.pairwise(times)]
    assert gaps == [pytest.approx(tokens / 1000, rel=0.01)] * 3


# --- in flight, in order ------------------------------------------------------------


@pytest.mark.parametrize("concurrency", [1, 5, 40])
def test_concurrency_is_used_and_never_passed(concurrency):
    """Many tasks at once: never more than allowed inside, and mostly as many."""
    draw = random.Random(concurrency)

    async def work(clock):
        rate_limit, inside, most, busy = RateLimit(concurrency, clock=clock), 0, 0, 0.0

        async def one() -> None:
            nonlocal inside, most, busy
            await rate_limit.acquire(100)
            inside += 1
            most = max(most, inside)
            assert inside == rate_limit.in_flight
            seconds = draw.uniform(0.5, 3)
            busy += seconds
            await asyncio.sleep(seconds)
            inside -= 1
            rate_limit.release(100, 100)

        await asyncio.gather(*(one() for _ in range(20 * concurrency)))
        return most, busy / clock(), rate_limit.in_flight

    most, mean, left = simulate(work)
    assert most == concurrency and left == 0
    assert mean > 0.85 * concurrency


def test_first_come_first_served():
    """Small requests do not overtake large ones, whatever they wait for."""
    draw = random.Random(3)

    async def work(clock):
        rate_limit, order = RateLimit(3, 600, 60_000, clock), []

        async def one(number) -> None:
            size = draw.choice([1, 500, 20_000])
            await rate_limit.acquire(size)
            order.append(number)
            await asyncio.sleep(draw.uniform(0, 2))
            rate_limit.release(size, size / 2)

        tasks = []
        for number in range(100):
            tasks.append(asyncio.create_task(one(number)))
            await asyncio.sleep(draw.choice([0, 0, 0.5]))
        await asyncio.gather(*tasks)
        return order

    assert simulate(work) == list(range(100))


@pytest.mark.parametrize("why", ["tokens", "pause", "concurrency"])
def test_one_who_gives_up_holds_nobody_up(why):
    """Cancelled while waiting, at the head or behind: the others pass, and nothing is taken."""

    async def work(clock):
        rate_limit = RateLimit(1 if why == "concurrency" else 9, None, 60_000, clock)
        await rate_limit.acquire(20_000 if why == "tokens" else 100)
        if why == "pause":
            rate_limit.slow_down(20)
        tasks = [asyncio.create_task(rate_limit.acquire(100)) for _ in range(4)]
        await asyncio.sleep(0.5)
        assert not any(task.done() for task in tasks)
        for task in (tasks[0], tasks[2]):
            task.cancel()
        await asyncio.sleep(0.1)
        assert rate_limit.in_flight == 1
        rate_limit.release(100, 100)
        await tasks[1]
        if why == "concurrency":
            rate_limit.release(100, 100)
        await tasks[3]
        return clock(), rate_limit.in_flight

    seconds, in_flight = simulate(work)
    assert in_flight == (1 if why == "concurrency" else 2)
    assert seconds < 25


# --- refusals -----------------------------------------------------------------------


def test_a_refusal_lowers_the_share_which_recovers():
    """0.7 after a refusal, 2 % of the whole more each second, 1 after 15 seconds."""
    clock = Clock()
    rate_limit = RateLimit(10, 600, clock=clock)
    assert rate_limit.share == 1
    rate_limit.slow_down(None)
    assert rate_limit.share == pytest.approx(0.7)
    clock.now += 5
    assert rate_limit.share == pytest.approx(0.8)
    clock.now += 10
    assert rate_limit.share == pytest.approx(1)
    clock.now += 1000
    assert rate_limit.share == 1


def test_refusals_at_once_are_one():
    """Ten within a second lower the share once; one a second later lowers it again."""
    clock = Clock()
    rate_limit = RateLimit(10, clock=clock)
    for _ in range(10):
        rate_limit.slow_down(None)
        clock.now += 0.09
    assert rate_limit.refusals == 10
    assert rate_limit.share == pytest.approx(0.7 + 0.9 * 0.02)
    clock.now += 0.2
    rate_limit.slow_down(None)
    assert rate_limit.share == pytest.approx((0.7 + 1.1 * 0.02) * 0.7)


def test_lasting_refusals_leave_a_little():
    """However often it is refused, something is still tried, and it recovers from there."""
    clock = Clock()
    rate_limit = RateLimit(10, clock=clock)
    for _ in range(100):
        rate_limit.slow_down(None)
        assert rate_limit.share >= 0.05
        clock.now += 1.0
    assert rate_limit.share <= 0.1
    clock.now += 60
    assert rate_limit.share == 1


@pytest.mark.parametrize("limit", [1200, 10_000])
def test_fewer_pass_after_a_refusal(limit):
    """In the 15 seconds of recovery 12.75 seconds' worth pass, then all again."""

    async def work(clock):
        rate_limit = RateLimit(10**6, limit, clock=clock)
        await flood(rate_limit, clock, 5)
        rate_limit.slow_down(None)
        return [len(await flood(rate_limit, clock, 15)), len(await flood(rate_limit, clock, 15))]

    during, after = simulate(work)
    # 0.7 rising to 1 within 15 seconds: 0.85 on average.
    assert during == pytest.approx(limit / 4 * 0.85, rel=0.02)
    assert after == pytest.approx(limit / 4, rel=0.02)


def test_fewer_are_in_flight_after_a_refusal():
    """The share counts for concurrency too, at least one, and comes back by itself."""

    async def work(clock):
        rate_limit, most = RateLimit(10, clock=clock), {}

        async def one() -> None:
            await rate_limit.acquire(1)
            second = int(clock())
            most[second] = max(most.get(second, 0), rate_limit.in_flight)
            await asyncio.sleep(0.2)
            rate_limit.release(1, 1)

        rate_limit.slow_down(None)
        await asyncio.gather(*(one() for _ in range(1500)))
        return most

    most = simulate(work)
    assert most[0] == 7
    assert most[20] == 10
    assert all(most[n] <= most[n + 1] for n in range(20))


def test_room_grows_while_nothing_ends():
    """A second request passes once the share has recovered, though the first is still there."""

    async def work(clock):
        rate_limit = RateLimit(2, clock=clock)
        rate_limit.slow_down(None)
        await rate_limit.acquire(1)
        assert clock() < 0.01
        await rate_limit.acquire(1)
        return clock()

    # 0.7 of two is one; from 0.75 on, after 2.5 seconds, it is rounded to two.
    assert 2.5 <= simulate(work) < 4


def test_one_request_goes_on_after_many_refusals():
    """With concurrency 1 and the least share there is still one."""

    async def work(clock):
        rate_limit = RateLimit(1, clock=clock)
        for _ in range(20):
            rate_limit.slow_down(None)
            await asyncio.sleep(1)
        await rate_limit.acquire(1)
        return clock()

    assert simulate(work) < 20.1


def test_retry_after_stops_everything():
    """Nothing passes while the server wants to be left alone; those waiting wait on."""

    async def work(clock):
        rate_limit = RateLimit(100, 600, 600_000, clock)
        sent = asyncio.create_task(flood(rate_limit, clock, 100, lasts=lambda: 1.0))
        await asyncio.sleep(10.0)
        rate_limit.slow_down(30.0)
        await asyncio.sleep(5.0)
        rate_limit.slow_down(2.0)  # a shorter pause ends no longer one
        rate_limit.slow_down(None)
        return [time for time, _ in await sent]

    times = simulate(work)
    assert sum(time < 10.001 for time in times) > 90
    assert not [time for time in times if 10.001 < time < 39.999]
    assert any(40 <= time < 40.5 for time in times)
    assert sum(40 <= time < 41 for time in times) < 12  # no flood at its end


def test_a_pause_without_limits():
    """Retry-After counts where no limits are known; a shorter one later ends it no sooner."""

    async def work(clock):
        rate_limit = RateLimit(10, clock=clock)
        for wait in (7.0, 2.0, None):
            rate_limit.slow_down(wait)
        await asyncio.gather(*(rate_limit.acquire(1) for _ in range(5)))
        return clock()

    assert 7 <= simulate(work) < 7.01


# --- what the server's headers say --------------------------------------------------


def headers_of(requests, tokens) -> dict[str, str]:
    """The headers that OpenAI sends, lower case as clients give them."""
    return {"x-ratelimit-limit-requests": requests, "x-ratelimit-limit-tokens": tokens}


def test_limits_are_learned():
    """Without given limits those of the headers hold from then on."""

    async def work(clock):
        rate_limit = RateLimit(10**6, clock=clock)
        for _ in range(50):
            await rate_limit.acquire(1)
            rate_limit.release(1, 1)
        assert clock() < 0.01
        rate_limit.learn(headers_of("1200", "600000"))
        return len(await flood(rate_limit, clock, 60))

    assert 0.95 * 1200 <= simulate(work) <= 1201


def test_learned_token_limits_count():
    """The token header alone: 60000 tokens a minute are 40 requests of 1500."""

    async def work(clock):
        rate_limit = RateLimit(10**6, clock=clock)
        rate_limit.learn(headers_of("", "60000"))
        return len(await flood(rate_limit, clock, 600, estimate=lambda: 1500.0))

    assert 0.95 * 400 <= simulate(work) <= 401


@pytest.mark.parametrize("given", [30, 3000])
def test_given_limits_win(given):
    """What the caller says holds, be the header's limit lower or higher; the rest is learned."""

    async def work(clock):
        rate_limit = RateLimit(10**6, requests_per_minute=given, clock=clock)
        rate_limit.learn(headers_of("300", "600000"))
        assert rate_limit.limits == {"requests": given, "tokens": 600_000}
        return len(await flood(rate_limit, clock, 120))

    assert 0.95 * 2 * given <= simulate(work) <= 2 * given + 1


@pytest.mark.parametrize("text", RUBBISH)
def test_rubbish_headers_are_no_limits(text):
    """What is no positive number sets nothing, and a good header after it counts."""
    rate_limit = RateLimit(10)
    rate_limit.learn(headers_of(text, text))
    assert rate_limit.limits == {"requests": None, "tokens": None} and not rate_limit.buckets
    rate_limit.learn(headers_of("500", text))
    assert rate_limit.limits == {"requests": 500, "tokens": None}
    rate_limit.learn({})
    assert rate_limit.limits == {"requests": 500, "tokens": None}


def test_a_limit_learned_under_way_gives_nothing_away():
    """Requests that left before their limit was known bring no tokens with them."""

    async def work(clock):
        rate_limit = RateLimit(100, clock=clock)
        for _ in range(50):
            await rate_limit.acquire(5000)
        rate_limit.learn(headers_of("", "60000"))
        for _ in range(50):
            rate_limit.release(5000, 500)
        return len(await flood(rate_limit, clock, 60, estimate=lambda: 1000.0))

    assert simulate(work) <= 62
