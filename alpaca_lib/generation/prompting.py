"""Composes the prompt of request k; the same k gives the same prompt in every run.

Seeds, a topic and a passage are drawn by (seed, k) alone. Tasks that the teacher itself
wrote, and verbs that are still rare, come from the tasks kept from replies 0 to
k - window - 1: all of them are filtered before request k is sent, in every run.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from alpaca_lib.dataset.rouge import tokenize
from alpaca_lib.errors import DataError, SettingsError
from alpaca_lib.generation.documents import Passage
from alpaca_lib.generation.settings import Settings
from alpaca_lib.prompts import ADDITIONS, generation_prompt, json_generation_prompt
from alpaca_lib.records import CJK, FIELDS, Example, words


@dataclass(frozen=True)
class Prompt:
    """A prompt, and what was drawn for it."""

    text: str
    first_number: int  # of the first task that the reply writes
    topic: str = ""
    passage: Passage | None = None


class Prompter:
    """Composes the prompt of each request of a run.

    Raises DataError if fewer seeds are short enough than a prompt shows, SettingsError if
    rouge_mode cannot compare them.

    >>> prompt = Prompter(seeds, header, Settings()).prompt(0)
    >>> print(prompt.text)
    """

    def __init__(
        self,
        seeds: Sequence[Example],
        header: str,
        settings: Settings,
        passages: Sequence[Passage] = (),
    ) -> None:
        most = settings.seed_words or float("inf")
        self.seeds = [e for e in seeds if sum(words(getattr(e, name)) for name in FIELDS) <= most]
        self.header, self.settings, self.passages = header, settings, list(passages)
        self.language = settings.language or ("zh" if CJK.search(header) else "en")
        shown = settings.seeds_per_prompt + settings.machine_tasks
        if len(self.seeds) < shown:
            limit = f" of at most {settings.seed_words} words" if settings.seed_words else ""
            raise DataError(
                f"{len(self.seeds)} seed tasks{limit}, but a prompt shows {shown}: add seeds or "
                "lower seeds_per_prompt"
            )
        unseen = sum(not tokenize(seed.instruction, settings.rouge_mode) for seed in self.seeds)
        if 2 * unseen > len(self.seeds):
            raise SettingsError(
                f'rouge_mode="{settings.rouge_mode}" compares words of a-z, and {unseen} of '
                f"{len(self.seeds)} seed tasks have none: repeated tasks would all be kept; set "
                'rouge_mode="auto" (the default) or "unicode"'
            )

    def is_ready(self, request: int, filtered: int) -> bool:
        """Returns whether a request may be sent once replies 0 to filtered - 1 are filtered."""
        depends = self.settings.machine_tasks or self.settings.verbs
        return not depends or request - self.settings.window <= filtered

    def prompt(
        self, request: int, kept: Sequence[Example] = (), kept_after: Sequence[int] = ()
    ) -> Prompt:
        """Returns the Prompt of a request.

        kept: the tasks kept so far. kept_after: their number after each reply.
        """
        settings = self.settings
        draw = random.Random(f"{settings.seed}:{request}")
        if settings.machine_tasks:
            shown = self._with_machine_tasks(draw, self._known(request, kept, kept_after))
        else:
            shown = draw.sample(self.seeds, settings.seeds_per_prompt)
        phrases, lines = ADDITIONS[self.language], []
        draw = random.Random(f"{settings.seed}:{request}:more")  # independent of the tasks shown
        topic = draw.choice(settings.topics) if settings.topics else ""
        if topic:
            lines.append(phrases["topic"].replace("{topic}", topic))
        if settings.verbs:
            rare = self._rare_verbs(draw, self._known(request, kept, kept_after))
            lines.append(phrases["verbs"].replace("{verbs}", ", ".join(rare)))
        passage = draw.choice(self.passages) if self.passages else None
        if passage:
            lines.append(phrases["passage"].replace("{passage}", passage.text))
        count = len(shown) + settings.tasks_per_request
        if settings.reply_format == "json":
            text = json_generation_prompt(shown, self.header, count, lines, self.language)
        else:
            text = generation_prompt(shown, self.header, count, more=lines)
        # A lone surrogate (half an emoji) in a task of the teacher's cannot be sent.
        text = text.encode("utf-8", "replace").decode("utf-8")
        return Prompt(text, len(shown) + 1, topic, passage)

    def _known(
        self, request: int, kept: Sequence[Example], kept_after: Sequence[int]
    ) -> Sequence[Example]:
        replies = request - self.settings.window
        return kept[: kept_after[replies - 1]] if replies > 0 else []

    def _with_machine_tasks(self, draw: random.Random, known: Sequence[Example]) -> list[Example]:
        """Returns seeds and the teacher's own tasks, mixed; more seeds while these are few."""
        settings = self.settings
        machine = draw.sample(list(known), min(settings.machine_tasks, len(known)))
        count = settings.seeds_per_prompt + settings.machine_tasks - len(machine)
        shown = draw.sample(self.seeds, count) + machine
        draw.shuffle(shown)
        return shown

    def _rare_verbs(self, draw: random.Random, known: Sequence[Example]) -> list[str]:
        """Returns the eight verbs that the fewest known instructions begin with."""
        texts = [e.instruction.lower() for e in (*self.seeds, *known)]
        used = Counter(text.split()[0].strip(".,:;!?\"'") for text in texts)
        verbs = list(dict.fromkeys(self.settings.verbs))
        draw.shuffle(verbs)
        for verb in verbs:
            if CJK.search(verb):  # no spaces between words
                used[verb.lower()] = sum(verb.lower() in text for text in texts)
        return sorted(verbs, key=lambda verb: used[verb.lower()])[:8]
