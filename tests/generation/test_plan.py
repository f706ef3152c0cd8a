"""The plan of a run before it spends: requests, tokens, those of reasoning, and dollars."""

from __future__ import annotations

import re

import pytest

from alpaca_lib.generation.budget import PRIOR, REASONING_SHARE, Price, Sampled, estimate
from alpaca_lib.generation.budget import expect_reasoning as expect
from alpaca_lib.generation.journal import Journal, read_sample
from alpaca_lib.generation.messages import RawReply, parse_completion
from alpaca_lib.generation.plan import describe_plan
from alpaca_lib.generation.settings import Limits, Settings

ANSWERS = [Sampled(15, 900, 1000), Sampled(17, 900, 1200)]


def dollars(text: str) -> float:
    return float(re.search(r"cost: about \$([\d.]+)", text)[1])


# --- usage --------------------------------------------------------------------------


def reply_with(usage, **message) -> RawReply:
    choice = {"message": {"content": "abcd", **message}, "finish_reason": "stop"}
    return parse_completion({"choices": [choice], "usage": usage})


@pytest.mark.parametrize(
    "usage, counted",
    [
        # OpenAI, DeepSeek, OpenRouter: part of completion_tokens
        ((10, 400, 410, 300), (400, 300)),
        # servers that count the answer alone as completion: the total says it
        ((10, 100, 410, 300), (400, 300)),
        # without a total, more reasoning than completion says it
        ((10, 100, None, 300), (400, 300)),
        ((10, 400, None, 300), (400, 300)),
        ((10, 400, 410, 0), (400, 0)),
    ],
)
def test_reasoning_is_part_of_the_tokens_that_are_paid_for(usage, counted):
    prompt, completion, total, reasoning = usage
    reply = reply_with(
        {
            "prompt_tokens": prompt,
            "completion_tokens": completion,
            "total_tokens": total,
            "completion_tokens_details": {"reasoning_tokens": reasoning},
        }
    )
    assert (reply.completion_tokens, reply.reasoning_tokens) == counted


@pytest.mark.parametrize("name", ["reasoning", "reasoning_content"])
def test_reasoning_that_is_sent_uncounted_is_its_share_of_the_bytes(name):
    """vLLM and Ollama send the text, and count it in completion_tokens alone."""
    usage = {"prompt_tokens": 10, "completion_tokens": 400}
    assert reply_with(usage, **{name: "x" * 12}).reasoning_tokens == 300
    assert reply_with(usage).reasoning_tokens == 0


# --- the expectation ----------------------------------------------------------------


def test_each_effort_adds_its_share():
    """The answers stay as they are; reasoning comes on top, more with each effort."""
    assert expect(ANSWERS, "none") == ANSWERS
    before = 0
    for effort, share in REASONING_SHARE.items():
        found = expect(ANSWERS, effort)
        for plain, one in zip(ANSWERS, found, strict=True):
            assert one.completion_tokens - one.reasoning_tokens == plain.completion_tokens
            assert one.reasoning_tokens == pytest.approx(share * one.completion_tokens, abs=1)
        total = sum(one.reasoning_tokens for one in found)
        assert total >= before
        before = total
    assert expect(ANSWERS, "") == expect(ANSWERS, "medium")


@pytest.mark.parametrize("measured", [0.0, 0.1, 0.9])
def test_replies_that_were_seen_move_the_expectation(measured):
    """From the effort's share, through the mean at PRIOR replies, to what was measured."""

    def share(count: int) -> float:
        seen = [Sampled(1, 10, 1000, round(1000 * measured))] * count
        one = expect([Sampled(1, 10, 10_000)], "medium", seen)[0]
        return one.reasoning_tokens / one.completion_tokens

    assert share(0) == pytest.approx(0.5, abs=1e-3)
    assert share(PRIOR) == pytest.approx((0.5 + measured) / 2, abs=1e-3)
    assert share(400) == pytest.approx(measured, abs=0.01)


def test_the_estimate_counts_reasoning_in_tokens_and_dollars():
    price = Price("m", 0.0, 1.0, 0.0, "")
    plain = estimate(1000, ANSWERS, price)
    thinking = estimate(1000, expect(ANSWERS, "medium"), price)
    assert plain.reasoning_tokens == (0, 0, 0)
    assert thinking.usd[1] == pytest.approx(2 * plain.usd[1])
    assert thinking.reasoning_tokens[1] == pytest.approx(thinking.completion_tokens[1] / 2)
    assert thinking.requests == plain.requests


# --- what is printed ----------------------------------------------------------------

LIMITS = Limits(max_usd=3.0)


def test_the_plan_says_what_it_counts():
    text = describe_plan(Settings(tasks_wanted=52_000), LIMITS, "gpt-6-luna")
    assert re.search(r"plan: about 3,?\d{3} requests \(\d+ to \d+\) of 20 tasks for 52000", text)
    assert "prompt and" in text and "reply tokens; judging by the course's" in text
    assert "never over 3.0" in text and "warning" not in text


def test_an_effort_is_in_tokens_dollars_and_a_warning():
    """Medium doubles the reply tokens; the reply no longer fits into max_tokens."""
    plain = describe_plan(Settings(tasks_wanted=52_000), LIMITS, "gpt-6-luna")
    settings = Settings(tasks_wanted=52_000, reasoning_effort="medium")
    text = describe_plan(settings, LIMITS, "gpt-6-luna")
    assert "of them reasoning (effort medium)" in text
    assert 1.7 < dollars(text) / dollars(plain) < 2.01
    assert "warning: a reply is expected to take" in text and "set max_tokens to 8192" in text
    assert "warning" not in describe_plan(settings.replace(max_tokens=8192), LIMITS, "gpt-6-luna")
    assert "warning" not in describe_plan(settings, LIMITS, "gpt-6-luna", has_budget=True)


def test_fewer_tasks_per_request_are_more_requests():
    def requests(count: int) -> int:
        settings = Settings(tasks_wanted=520, tasks_per_request=count)
        return int(re.search(r"about (\d+) requests", describe_plan(settings, LIMITS, "m"))[1])

    assert 4 * requests(20) == pytest.approx(requests(5), rel=0.1)


def test_a_free_server_and_a_model_without_a_price():
    settings = Settings(tasks_wanted=10)
    assert "cost: none" in describe_plan(settings, LIMITS, "m", is_free=True)
    assert "cost: unknown, m (online) is not in" in describe_plan(settings, LIMITS, "m")


def test_a_model_that_will_be_gone_is_named():
    assert "gone from 2024-01-04" in describe_plan(Settings(), LIMITS, "text-davinci-003")


def test_a_resumed_run_is_judged_by_its_own_replies(tmp_path):
    """What the journal holds replaces the recorded replies, and only the rest is planned."""
    journal = Journal(tmp_path, {"model": "m"})
    for number in range(2 * PRIOR):
        journal.append(number, RawReply("t", "stop", 100, 4000, reasoning_tokens=3900))
        journal.note_filtered(number, [{"instruction": "a"}, {"text": "b", "dropped": "why"}])
    journal.append(99, RawReply("not filtered yet", "stop", 1, 1))
    journal.close()
    seen = read_sample(tmp_path)
    assert seen == [Sampled(1, 100, 4000, 3900)] * 2 * PRIOR
    text = describe_plan(Settings(tasks_wanted=28, max_tokens=9000), LIMITS, "m", seen=seen)
    assert "for 20 tasks" in text and f"this run's {2 * PRIOR} replies" in text
    assert "nothing to ask" in describe_plan(Settings(tasks_wanted=8), LIMITS, "m", seen=seen)
    assert read_sample(tmp_path / "nowhere") == []


def test_a_journal_of_an_earlier_version_is_read(tmp_path):
    """Replies without reasoning_tokens, refusal, usd and only_reasoning, as the first wrote."""
    row = '{"text": "t", "finish_reason": "stop", "prompt_tokens": 7, "completion_tokens": 9}'
    lines = [
        '{"configuration": {"model": "m"}}',
        f'{{"request": 0, "reply": {row}}}',
        '{"judged": 0, "tasks": [{"instruction": "a"}]}',
        "damaged",
    ]
    (tmp_path / "journal.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    assert read_sample(tmp_path) == [Sampled(1, 7, 9)]
