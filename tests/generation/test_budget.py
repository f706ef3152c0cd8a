"""Prices, the budget that is never passed, and what a run will take."""

from __future__ import annotations

import datetime
import random
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest

from alpaca_lib.errors import BudgetSpent, DataError
from alpaca_lib.generation.budget import (
    FREE,
    PRICES,
    WAYS,
    Price,
    Sampled,
    estimate,
    load_prices,
)
from alpaca_lib.generation.journal import Journal
from alpaca_lib.generation.ledger import Ledger
from alpaca_lib.generation.messages import RawReply

GOOD = """
dated: 2031-02-03
models:
  plain: {input: 2, output: 8}
  cheap: {input: 0.15, cached: 0.075, output: 0.60, ways: {batch: 0.5, flex: 0.25}}
  only-batch: {input: 1, output: 1, ways: {batch: 0.5}, note: for a test}
  nothing: {input: 0, output: 0}
"""


@pytest.fixture
def write(tmp_path):
    """The function that writes a prices file and gives its path."""

    def write(text):
        path = tmp_path / "my-prices.yaml"
        path.write_text(text, encoding="utf-8")
        return path

    return write


def reply(prompt_tokens, completion_tokens, cached_tokens=0) -> RawReply:
    """A reply with these counts."""
    text = "x" if completion_tokens > 0 else ""
    return RawReply(text, "stop", prompt_tokens, completion_tokens, cached_tokens)


def settle(ledger, number, reply) -> None:
    """Charges a request with what its reply cost."""
    ledger.charge(number, ledger.cost(number, reply))


# --- prices -------------------------------------------------------------------------


def test_prices_as_they_are_written(write):
    """Online: the file's own numbers; cached is as input where it is left out."""
    prices = load_prices(write(GOOD))
    assert set(prices) == {"plain", "cheap", "only-batch", "nothing"}
    assert prices["plain"] == Price("plain", 2, 8, 2, "2031-02-03")
    assert prices["cheap"] == Price("cheap", 0.15, 0.60, 0.075, "2031-02-03")
    assert prices["only-batch"].note == "for a test"


def test_a_million_tokens_cost_the_price(write):
    """The unit is a million tokens, and cached ones are part of the prompt."""
    price = load_prices(write(GOOD))["cheap"]
    assert price.cost(10**6, 0) == pytest.approx(0.15)
    assert price.cost(0, 10**6) == pytest.approx(0.60)
    assert price.cost(10**6, 0, 10**6) == pytest.approx(0.075)
    assert price.cost(1000, 100, 400) == pytest.approx((600 * 0.15 + 400 * 0.075 + 60) / 1e6)


@pytest.mark.parametrize("way, part, names", [
    ("batch", 0.5, {"cheap", "only-batch"}),
    ("flex", 0.25, {"cheap"}),
])  # fmt: skip
def test_ways_cost_a_part(write, way, part, names):
    """A model that is not offered that way is absent; the others cost their part."""
    prices = load_prices(write(GOOD), way)
    assert set(prices) == names
    found = prices["cheap"]
    expected = [0.15 * part, 0.60 * part, 0.075 * part]
    assert [found.input, found.output, found.cached] == pytest.approx(expected)


def test_an_unknown_way_is_named(write):
    """Another way is a ValueError that lists the three."""
    with pytest.raises(ValueError, match=r"'overnight'.*online, flex, batch"):
        load_prices(write(GOOD), "overnight")


@pytest.mark.parametrize("way", WAYS)
def test_the_courses_own_file_loads(way):
    """data/prices.yaml can be read for every way, costs more than nothing, and is dated."""
    prices = load_prices(way=way)
    assert len(prices) >= 5 and prices == load_prices(PRICES, way)
    for name, price in prices.items():
        assert price.model == name and 0 < price.cached <= price.input <= price.output
        datetime.date.fromisoformat(price.dated)


def test_gone_dates_are_in_the_note(write):
    """A past date says is, a coming one will be; a note of its own stays."""
    today = datetime.date.today()
    days = {name: today + datetime.timedelta(n) for name, n in
            {"past": -1, "today": 0, "coming": 1}.items()}  # fmt: skip
    rows = [
        f"  {name}: {{input: 1, output: 1, gone: {day}, note: Hm}}" for name, day in days.items()
    ]
    rows.append(f"  bare: {{input: 1, output: 1, gone: {days['past']}}}")
    prices = load_prices(write("dated: x\nmodels:\n" + "\n".join(rows)))
    assert prices["past"].note == f"Hm; is gone from {days['past']}"
    assert prices["today"].note == f"Hm; is gone from {today}"
    assert prices["coming"].note == f"Hm; will be gone from {days['coming']}"
    assert prices["bare"].note == f"is gone from {days['past']}"


NO_FILES = {
    "empty": "",
    "broken": "models: {a: {input: 1",
    "tabs": "dated: x\nmodels:\n\ta: 1",
    "text": "just a text",
    "a list": "[1, 2]",
    "no date": "models: {}",
    "no models": "dated: 2026-01-01",
    "models null": "dated: 2026-01-01\nmodels:",
    "models a list": "dated: 2026-01-01\nmodels: [a, b]",
    "no such day": "dated: 2026-02-31\nmodels: {}",
}


@pytest.mark.parametrize("text", NO_FILES.values(), ids=NO_FILES)
def test_no_prices_file(write, text):
    """What is no such table is a DataError with the file and what it needs."""
    path = write(text)
    with pytest.raises(DataError, match="`dated` and `models`") as caught:
        load_prices(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("make", ["missing", "folder", "binary"])
def test_unreadable_file(tmp_path, make):
    """Not there, a folder, or not text: a DataError with the path."""
    path = tmp_path / "prices.yaml"
    if make == "folder":
        path.mkdir()
    elif make == "binary":
        path.write_bytes(b"\xff\xfe\x00\x80" * 20)
    with pytest.raises(DataError) as caught:
        load_prices(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    "row, way",
    [
        ("{input: -1, output: 1}", "online"),
        ("{input: 1, output: -0.5}", "online"),
        ("{input: 1, output: 1, cached: -1}", "online"),
        ("{input: 1, output: 1, cached: null}", "online"),
        ("{input: cheap, output: 1}", "online"),
        ("{input: $2.00, output: 1}", "online"),
        ("{input: [1], output: 1}", "online"),
        ("{input: .nan, output: 1}", "online"),
        ("{input: 1, output: .inf}", "online"),
        ("{input: 1}", "online"),
        ("{output: 1}", "online"),
        ("{}", "online"),
        ("", "online"),
        ("3.5", "online"),
        ("free", "online"),
        ("[1, 2]", "online"),
        ("{input: 1, output: 1, ways: {batch: -0.5}}", "batch"),
        ("{input: 1, output: 1, ways: {batch: half}}", "batch"),
        ("{input: 1, output: 1, ways: {batch: .nan}}", "batch"),
        ("{input: 1, output: 1, ways: [batch]}", "batch"),
        ("{input: 1, output: 1, ways: batch}", "batch"),
        pytest.param("{input: yes, output: 1}", "online"),
    ],
)
def test_bad_prices_are_named(write, row, way):
    """A price that is none is a DataError with the file and the model, never a price."""
    path = write(f"dated: 2026-01-01\nmodels:\n  fine: {{input: 1, output: 1}}\n  bad-one: {row}\n")
    with pytest.raises(DataError, match="bad-one") as caught:
        load_prices(path, way)
    assert str(path) in str(caught.value)


def test_a_part_in_quotes(write):
    """Prices in quotes are read as numbers, or refused; so is a way's part."""
    path = write('dated: x\nmodels: {m: {input: "2", output: "4", ways: {batch: "0.5"}}}')
    assert load_prices(path)["m"].input == 2
    try:
        found = load_prices(path, "batch")["m"]
    except DataError:
        return
    assert (found.input, found.output) == (1, 2)


def test_a_way_that_is_not_offered_is_not_free(write):
    """batch: false: no such way, or an error, but no price of nothing."""
    path = write("dated: x\nmodels: {m: {input: 2, output: 4, ways: {batch: false}}}")
    try:
        found = load_prices(path, "batch")
    except DataError:
        return
    assert "m" not in found


# --- the budget ---------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(12))
def test_the_limit_holds_whatever_comes(seed):
    """Many on their way, in any order, with any outcome: the dollars never pass max_usd.

    The true costs are added up here, as fractions; a refusal is checked to be needed.
    """
    draw = random.Random(seed)
    cents = [draw.randrange(1, 2000) for _ in range(2)]
    cached = draw.randrange(cents[0] + 1)
    price = Price("m", cents[0] / 100, cents[1] / 100, cached / 100, "")

    def true_cost(prompt, completion, from_cache=0):
        paid = (prompt - from_cache) * cents[0] + from_cache * cached + completion * cents[1]
        return Fraction(paid, 100 * 10**6)

    most = draw.choice([0.001, 0.05, 1.0, 7.3])
    ledger, flying = Ledger(price, most), []
    spent = lost = Fraction(0)
    refused = 0
    for number in range(3000):
        step = draw.random()
        if step < 0.5 and len(flying) < 200:
            ask = draw.randrange(1, 5000), draw.randrange(4000)
            held = sum((true_cost(*sizes) for sizes, _ in flying), Fraction(0))
            left = Fraction(most) - spent - lost - held
            try:
                ledger.reserve(number, *ask)
                flying.append((ask, number))
                assert true_cost(*ask) <= left + Fraction(1, 10**9)
            except BudgetSpent:
                refused += 1
                assert true_cost(*ask) > left - Fraction(1, 10**9)
        elif flying:
            (prompt, completion), one = flying.pop(draw.randrange(len(flying)))
            end = draw.random()
            if end < 0.6:
                sent, got = draw.randint(1, prompt), draw.randint(0, completion)
                cache = draw.randint(0, sent)
                settle(ledger, one, reply(sent, got, cache))
                spent += true_cost(sent, got, cache)
            elif end < 0.8:
                ledger.release(one)
            else:
                ledger.forfeit(one, "lost")
                lost += true_cost(prompt, completion)
        assert ledger.spent == pytest.approx(float(spent), abs=1e-9)
        assert ledger.forfeited == pytest.approx(float(lost), abs=1e-9)
        assert ledger.spent + ledger.forfeited <= most + 1e-9
        assert ledger.reserved >= 0
    for _, one in flying:
        ledger.release(one)
    assert ledger.reserved == pytest.approx(0, abs=1e-9)
    assert refused or most > 1


def test_the_limit_holds_where_cached_tokens_are_dearer():
    """A prices file may say so (writing to a cache can cost more); the limit holds all the same."""
    ledger = Ledger(Price("m", 1.0, 1.0, 3.0, ""), 0.0105)
    for _ in range(100):
        try:
            ledger.reserve(0, 1000, 0)
        except BudgetSpent:
            break
        settle(ledger, 0, reply(1000, 0, 1000))
    assert ledger.spent <= 0.0105


def test_the_whole_budget_can_be_used():
    """Ten requests of exactly a tenth fit, one after another; the eleventh does not."""
    ledger = Ledger(Price("m", 1.0, 0.0, 1.0, ""), 10.0)
    for _ in range(10):
        assert ledger.fits(10**6, 0)
        ledger.reserve(0, 10**6, 0)
        settle(ledger, 0, reply(10**6, 0))
    assert not ledger.fits(1, 0)
    assert ledger.spent == 10


def test_what_is_on_its_way_counts():
    """Ten on their way that fill the budget leave no room; one that costs less makes some."""
    ledger = Ledger(Price("m", 0.0, 1.0, 0.0, ""), 10.0)
    for number in range(10):
        ledger.reserve(number, 5, 10**6)
    assert ledger.reserved == 10 and ledger.spent == 0
    with pytest.raises(BudgetSpent):
        ledger.reserve(10, 0, 1)
    settle(ledger, 9, reply(5, 250_000))
    assert ledger.spent == pytest.approx(0.25) and ledger.reserved == pytest.approx(9)
    ledger.reserve(11, 0, 750_000)
    with pytest.raises(BudgetSpent):
        ledger.reserve(12, 0, 1000)


def test_a_refused_request_reserves_nothing():
    """Whether it fits or is refused: asking changes nothing."""
    ledger = Ledger(Price("m", 1.0, 1.0, 1.0, ""), 1.0)
    assert not ledger.fits(10**6, 1)
    with pytest.raises(BudgetSpent):
        ledger.reserve(0, 10**6, 1)
    assert (ledger.spent, ledger.reserved, ledger.forfeited) == (0, 0, 0)


def test_the_refusal_has_the_numbers():
    """The limit, what is spent and what is perhaps spent, and how to go on."""
    ledger = Ledger(Price("m", 1.0, 1.0, 1.0, ""), 2.5)
    ledger.reserve(0, 10**6, 0)
    settle(ledger, 0, reply(500_000, 0))
    ledger.reserve(1, 250_000, 0)
    ledger.forfeit(1, "lost")
    with pytest.raises(BudgetSpent) as caught:
        ledger.reserve(2, 10**7, 0)
    for part in ("$2.50", "$0.5000 spent", "$0.2500 perhaps", "larger max_usd"):
        assert part in str(caught.value)


def test_the_refusal_names_a_small_limit():
    """A limit below a cent is not called nothing."""
    with pytest.raises(BudgetSpent, match=r"\$0\.004"):
        Ledger(Price("m", 1.0, 1.0, 1.0, ""), 0.004).reserve(0, 10**6, 0)


def test_nothing_may_be_spent():
    """max_usd 0 lets through only what is free."""
    with pytest.raises(BudgetSpent):
        Ledger(Price("m", 1.0, 1.0, 1.0, ""), 0).reserve(0, 1, 1)
    free = Ledger(FREE, 0)
    free.reserve(0, 10**9, 10**9)
    assert free.reserved == 0


def test_a_limit_needs_a_price():
    """Without a price no limit can be kept: an error that names the file, before any request."""
    with pytest.raises(DataError, match=r"max_usd.*prices\.yaml"):
        Ledger(None, 1.0)


@pytest.mark.parametrize("most", [-1, -0.001, float("nan")])
def test_a_limit_is_a_number_of_dollars(most):
    """Less than nothing, or no number, is no limit."""
    with pytest.raises(ValueError, match="max_usd"):
        Ledger(FREE, most)


@pytest.mark.parametrize("price", [None, FREE])
def test_without_price_or_limit_everything_fits(price):
    """No price, or one of nothing: it adds up to nothing and never ends."""
    ledger = Ledger(price)
    for _ in range(3):
        assert ledger.fits(10**12, 10**12)
        ledger.reserve(0, 10**12, 10**12)
        settle(ledger, 0, reply(10**12, 10**12))
        ledger.reserve(1, 10**12, 10**12)
        ledger.forfeit(1, "lost")
    assert (ledger.spent, ledger.reserved, ledger.forfeited) == (0, 0, 0)
    assert ledger.cost(0, reply(5, 5)) == 0


def test_without_a_limit_it_still_adds_up():
    """max_usd None: nothing is refused, and what is spent is known."""
    ledger = Ledger(Price("m", 2.0, 4.0, 1.0, ""))
    ledger.reserve(0, 10**9, 10**9)
    settle(ledger, 0, reply(10**6, 10**6, 500_000))
    assert ledger.spent == pytest.approx(0.5 * 2 + 0.5 * 1 + 4)
    assert ledger.reserved == 0


def test_every_change_is_in_the_journal(tmp_path):
    """A resumed ledger counts replies, lost attempts and what was sent without an answer."""
    journal = Journal(tmp_path, {})
    ledger = Ledger(Price("m", 1.0, 1.0, 1.0, ""), 10.0)
    ledger.resume(journal)
    for number in range(4):
        ledger.reserve(number, 10**6, 10**6)
    paid = replace(reply(500_000, 250_000), usd=0.75)
    journal.append(0, paid)
    ledger.charge(0, ledger.cost(0, paid))
    ledger.release(1)
    ledger.forfeit(2, "no answer")
    assert (ledger.spent, ledger.reserved, ledger.forfeited) == (0.75, 2, 2)
    assert journal.pending == {3: 2.0}
    journal.close()

    again = Journal(tmp_path, {})
    ledger = Ledger(Price("m", 9.0, 9.0, 9.0, ""), 10.0)
    ledger.resume(again)
    assert (ledger.spent, ledger.reserved, ledger.forfeited) == (0.75, 0, 4)
    assert again.pending == {}
    again.close()


@pytest.mark.parametrize("price", [Price("m", 1.0, 1.0, 1.0, ""), None, FREE])
def test_without_a_limit_what_is_sent_is_noted_too(tmp_path, price):
    """A kill with requests on their way is counted, unless the model is free."""
    journal = Journal(tmp_path, {})
    ledger = Ledger(price)
    ledger.resume(journal)
    for number in range(3):
        ledger.reserve(number, 10**6, 0)
    ledger.forfeit(0, "no answer")
    usd = 0.0 if price is None else 1.0
    assert journal.pending == ({} if price is FREE else {1: usd, 2: usd})
    journal.close()
    again = Journal(tmp_path, {})
    ledger = Ledger(price)
    ledger.resume(again)
    again.close()
    assert ledger.in_flight_at_stop == (0 if price is FREE else 2)
    assert ledger.forfeited == (0 if price is FREE else 3 * usd)


def test_a_request_is_reserved_once():
    """Reserving or holding an open request again changes nothing; a closed one counts again."""
    ledger = Ledger(Price("m", 1.0, 1.0, 1.0, ""), 3.0)
    for _ in range(2):
        ledger.reserve(7, 10**6, 0)
        ledger.hold(7, 10**6, 0)
    assert ledger.reserved == 1
    ledger.forfeit(7, "no answer")
    ledger.reserve(7, 10**6, 0)
    assert (ledger.reserved, ledger.forfeited) == (1, 1)


def test_a_reply_without_counts_costs_all_that_was_reserved():
    """The server does not say what it counted, so the most counts."""
    ledger = Ledger(Price("m", 1.0, 2.0, 1.0, ""), 10.0)
    ledger.reserve(0, 10**6, 10**6)
    assert ledger.cost(0, reply(0, 0)) == ledger.cost(0, reply(5, -1)) == 3.0


def test_cached_tokens_are_cheaper():
    """The same reply costs less, the more of its prompt came from the cache."""
    ledger = Ledger(Price("m", 1.0, 2.0, 0.1, ""))
    costs = [ledger.cost(0, reply(1000, 10, cached)) for cached in (0, 500, 1000)]
    assert costs == pytest.approx([0.00102, 0.00057, 0.00012])


# --- the estimate -------------------------------------------------------------------

DOLLAR = Price("m", 1.0, 2.0, 0.5, "")


@pytest.mark.parametrize("count", [1, 2, 50])
def test_equal_replies_leave_no_doubt(count):
    """4 kept for 100 and 50 tokens: 100 tasks are 25 requests, 2500 and 1250 tokens, $0.005."""
    found = estimate(100, [Sampled(4, 100, 50)] * count, DOLLAR)
    assert found.requests == pytest.approx((25, 25, 25))
    assert found.prompt_tokens == pytest.approx((2500, 2500, 2500))
    assert found.completion_tokens == pytest.approx((1250, 1250, 1250))
    assert found.usd == pytest.approx((0.005, 0.005, 0.005))


def test_a_falling_keep_rate_takes_more():
    """Falling to a half at the end: on average between 1 and 3/4 of the sample's are kept."""
    found = estimate(1000, [Sampled(5, 100, 50)] * 10, DOLLAR, falls_to=0.5)
    # The end is even between 0.5 and 1, so 5 % of the runs are above 0.975 and below 0.525.
    expected = [200 / ((1 + end) / 2) for end in (0.975, 0.75, 0.525)]
    assert found.requests == pytest.approx(expected, rel=0.02)
    assert found.usd == pytest.approx([n * 200 / 1e6 for n in expected], rel=0.02)


def test_the_estimate_is_the_same_each_time():
    """One seed, one estimate; another seed, about the same one."""
    draw = random.Random(0)
    sample = [Sampled(draw.randrange(1, 9), 100, draw.randrange(900)) for _ in range(15)]
    first = estimate(500, sample, DOLLAR, seed=1)
    assert first == estimate(500, sample, DOLLAR, seed=1)
    other = estimate(500, sample, DOLLAR, seed=2)
    assert other != first and other.usd == pytest.approx(first.usd, rel=0.05)


def test_the_estimate_grows_with_what_is_wanted():
    """Ten times the tasks, ten times everything; low, middle and high are in order."""
    sample = [Sampled(n % 5, 100 + n, 50 * n) for n in range(1, 20)]
    one, ten = (estimate(wanted, sample, DOLLAR, falls_to=0.6) for wanted in (100, 1000))
    for name in ("requests", "prompt_tokens", "completion_tokens", "usd"):
        assert getattr(ten, name) == pytest.approx([10 * x for x in getattr(one, name)])
        low, middle, high = getattr(one, name)
        assert low < middle < high


def test_the_interval_contains_the_truth():
    """Samples of 30 replies from a known distribution: about 90 of 100 intervals hold the truth."""
    draw = np.random.default_rng(0)
    # A reply: 0 to 20 tasks, 30 tokens each and 40 more; a third are cut to nothing.
    mean_kept = 2 / 3 * 20 * 0.6
    mean_reply = 40 + 30 * mean_kept
    wanted, runs = 5000, 40
    requests = wanted / mean_kept
    truth = {
        "requests": requests,
        "prompt_tokens": requests * 300,
        "completion_tokens": requests * mean_reply,
        "usd": requests * (300 * DOLLAR.input + mean_reply * DOLLAR.output) / 1e6,
    }
    hits, below, above = dict.fromkeys(truth, 0), 0, 0
    for _ in range(runs):
        kept = draw.binomial(20, 0.6, 30) * (draw.random(30) < 2 / 3)
        sample = [Sampled(int(k), int(draw.integers(200, 401)), int(40 + 30 * k)) for k in kept]
        found = estimate(wanted, sample, DOLLAR)
        for name, value in truth.items():
            low, _, high = getattr(found, name)
            hits[name] += low <= value <= high
        below += requests < found.requests[0]
        above += requests > found.requests[2]
    assert all(0.76 * runs <= count <= 0.98 * runs for count in hits.values()), hits
    assert below <= 0.15 * runs and above <= 0.15 * runs


@pytest.mark.parametrize("sample", [[], [Sampled(0, 100, 50)] * 5])
def test_nothing_can_be_learned_from_nothing(sample):
    """No replies, or none with a kept task: a ValueError, no division by zero."""
    with pytest.raises(ValueError, match="at least one task"):
        estimate(10, sample, DOLLAR)


@pytest.mark.parametrize("falls_to", [0, -1, 1.01, float("nan")])
def test_the_fall_is_a_share(falls_to):
    """falls_to is above 0 and at most 1."""
    with pytest.raises(ValueError, match="falls_to"):
        estimate(10, [Sampled(1, 1, 1)], DOLLAR, falls_to=falls_to)


def test_one_good_reply_in_many_is_enough():
    """Resamples without a kept task are no division by zero."""
    found = estimate(10, [Sampled(0, 10, 10)] * 5 + [Sampled(6, 10, 10)], DOLLAR)
    assert all(0 < n < float("inf") for n in (*found.requests, *found.usd))
    assert found.requests[0] < 10 <= found.requests[2]
