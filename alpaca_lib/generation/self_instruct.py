"""Self-Instruct's loop in Alpaca's form: ask, parse, filter, keep, until enough.

The prompt of request k depends only on (seed, k), and replies are judged in the
order of k; so the result depends on the replies, not on when they came.
"""

from __future__ import annotations

import hashlib
import random
import threading
from collections import Counter, deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path

from alpaca_lib.dataset.rouge import NoveltyIndex
from alpaca_lib.generation.journal import Journal
from alpaca_lib.generation.parsing import Rejected, parse_reply
from alpaca_lib.generation.teacher import RawReply, Teacher
from alpaca_lib.prompts import generation_prompt
from alpaca_lib.records import DataError, Example, dump_json, save_examples


@dataclass(frozen=True)
class Settings:
    """What decides a run's prompts and filter; a run resumes only with the same."""

    tasks_wanted: int = 100
    seeds_per_prompt: int = 3
    tasks_per_request: int = 20
    temperature: float = 1.0
    top_p: float = 1.0
    max_tokens: int = 3072
    threshold: float = 0.7
    rouge_mode: str = "rouge"
    seed: int = 0


@dataclass
class Outcome:
    """What a run kept and why it dropped the rest."""

    kept: list[Example] = field(default_factory=list)
    rejected: list[Rejected] = field(default_factory=list)
    requests: int = 0
    resumed_requests: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    kept_after_request: list[int] = field(default_factory=list)

    def reasons(self) -> Counter[str]:
        """How many were dropped for each reason."""
        return Counter(rejected.reason for rejected in self.rejected)


def prompt_for(seeds: Sequence[Example], header: str, settings: Settings, request: int) -> str:
    """The prompt of request number ``request``: seeds drawn by (seed, request) alone."""
    draw = random.Random(f"{settings.seed}:{request}")
    chosen = draw.sample(list(seeds), settings.seeds_per_prompt)
    count = settings.seeds_per_prompt + settings.tasks_per_request
    return generation_prompt(chosen, header, count=count)


def generate(
    teacher: Teacher,
    seeds: Sequence[Example],
    header: str,
    settings: Settings,
    folder: Path,
    concurrency: int = 4,
    max_requests: int = 1000,
    progress: Callable[[Outcome], None] = lambda outcome: None,
) -> Outcome:
    """Asks until ``tasks_wanted`` are kept or ``max_requests`` are answered.

    Writes folder/journal.jsonl as replies arrive and folder/regen.json after each
    one; called again on the same folder it goes on where it was.
    Raises DataError for too few seeds, TeacherError when the teacher fails for good
    (what was paid for is kept).
    """
    if len(seeds) < settings.seeds_per_prompt:
        raise DataError(
            f"{len(seeds)} seed tasks, but a prompt shows {settings.seeds_per_prompt}: "
            "add seeds or lower seeds_per_prompt"
        )
    index = NoveltyIndex(
        (seed.instruction for seed in seeds), settings.threshold, settings.rouge_mode
    )
    outcome = Outcome()
    configuration = {**asdict(settings), "teacher": teacher.kind, "model": teacher.model}
    del configuration["tasks_wanted"]  # a finished run may be asked for more
    known = dump_json([header, [seed.to_dict() for seed in seeds]])
    configuration["prompt_and_seeds"] = hashlib.sha256(known.encode("utf-8")).hexdigest()
    journal = Journal(folder, configuration)
    outcome.resumed_requests = len(journal.replies)

    def answer(request: int) -> RawReply:
        if request in journal.replies:
            return journal.replies[request]
        reply = teacher.ask(
            prompt_for(seeds, header, settings, request),
            first_number=settings.seeds_per_prompt + 1,
            tasks=settings.tasks_per_request,
            seed=settings.seed * 1_000_003 + request,
            max_tokens=settings.max_tokens,
            temperature=settings.temperature,
            top_p=settings.top_p,
        )
        with writing:
            journal.append(request, reply)  # before anything is made of it
        return reply

    writing = threading.Lock()
    waiting: deque[Future[RawReply]] = deque()
    pool = ThreadPoolExecutor(concurrency)
    upcoming = iter(range(max_requests))
    try:
        while len(outcome.kept) < settings.tasks_wanted:
            for request in upcoming:
                waiting.append(pool.submit(answer, request))
                if len(waiting) >= concurrency:
                    break
            if not waiting:
                break
            _judge(waiting.popleft().result(), index, settings, outcome)
            save_examples(outcome.kept, folder / "regen.json")
            progress(outcome)
    finally:
        # Replies already on their way are paid for: wait until they are in the journal.
        pool.shutdown(cancel_futures=True)
        journal.close()
    return outcome


def _judge(reply: RawReply, index: NoveltyIndex, settings: Settings, outcome: Outcome) -> None:
    """Adds to the outcome what one reply gives, in order."""
    parsed = parse_reply(reply.text, reply.finish_reason, settings.seeds_per_prompt + 1)
    outcome.rejected += parsed.rejected
    for task in parsed.tasks:
        decision = index.check(task.instruction)
        if not decision.kept:
            reason = f"ROUGE-L above {settings.threshold} with a known instruction"
            outcome.rejected.append(Rejected(reason, task.instruction))
            continue
        near = index.neighbours(task.instruction)
        index.add(task.instruction)
        extra = {
            "most_similar_instructions": near.nearest,
            "avg_similarity_score": near.mean,
        }
        outcome.kept.append(Example(task.instruction, task.input, task.output, extra))
    outcome.requests += 1
    outcome.prompt_tokens += reply.prompt_tokens
    outcome.completion_tokens += reply.completion_tokens
    outcome.kept_after_request.append(len(outcome.kept))
