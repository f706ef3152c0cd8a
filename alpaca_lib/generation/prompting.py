"""What request number k shows the teacher, and why the same k always shows the same.

Seeds, a topic and a passage are drawn by (seed, k) alone. Tasks that the teacher itself
wrote, and verbs that are still rare, come from the tasks kept from replies 0 to
k - window - 1: all of them are judged before request k goes out, in every run.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from alpaca_lib.errors import DataError
from alpaca_lib.generation.documents import Passage
from alpaca_lib.generation.settings import Settings
from alpaca_lib.prompts import ADDITIONS, generation_prompt, json_generation_prompt
from alpaca_lib.records import CJK, FIELDS, Example, words


@dataclass(frozen=True)
class Prompt:
    """A request's text, and what was drawn for it."""

    text: str
    first_number: int
    topic: str = ""
    passage: Passage | None = None


def seeds_shown(seeds: Sequence[Example], settings: Settings) -> list[Example]:
    """The seeds that are short enough to be shown."""
    most = settings.seed_words or float("inf")
    return [e for e in seeds if sum(words(getattr(e, name)) for name in FIELDS) <= most]


class Prompter:
    """Makes the prompt of each request of a run."""

    def __init__(
        self,
        seeds: Sequence[Example],
        header: str,
        settings: Settings,
        passages: Sequence[Passage] = (),
    ) -> None:
        shown = settings.seeds_per_prompt + settings.machine_tasks
        if len(seeds_shown(seeds, settings)) < shown:
            limit = f" of at most {settings.seed_words} words" if settings.seed_words else ""
            raise DataError(
                f"{len(seeds_shown(seeds, settings))} seed tasks{limit}, but a prompt shows "
                f"{shown}: add seeds or lower seeds_per_prompt"
            )
        self.language = settings.language or ("zh" if CJK.search(header) else "en")
        if self.language not in ADDITIONS:
            raise ValueError(f"language {settings.language!r}: one of {', '.join(ADDITIONS)}")
        self.seeds, self.header, self.settings = seeds_shown(seeds, settings), header, settings
        self.passages = list(passages)

    @property
    def needs_judged(self) -> bool:
        """Whether a prompt depends on earlier replies."""
        return bool(self.settings.machine_tasks or self.settings.verbs)

    def ready(self, request: int, judged: int) -> bool:
        """Whether a request may go out when replies 0 to judged - 1 are judged."""
        return not self.needs_judged or request - self.settings.window <= judged

    def prompt(
        self, request: int, kept: Sequence[Example] = (), kept_after: Sequence[int] = ()
    ) -> Prompt:
        """The Prompt of a request. kept: the tasks so far; kept_after: how many there were
        after each reply."""
        settings = self.settings
        draw = random.Random(f"{settings.seed}:{request}")
        if settings.machine_tasks:
            shown = self._with_machine_tasks(draw, self._known(request, kept, kept_after))
        else:
            shown = draw.sample(self.seeds, settings.seeds_per_prompt)
        phrases, lines = ADDITIONS[self.language], []
        draw = random.Random(f"{settings.seed}:{request}:more")  # not moved by what is shown
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
        # Half an emoji in a task that is shown again cannot be sent.
        text = text.encode("utf-8", "replace").decode("utf-8")
        return Prompt(text, len(shown) + 1, topic, passage)

    def _known(
        self, request: int, kept: Sequence[Example], kept_after: Sequence[int]
    ) -> Sequence[Example]:
        judged = request - self.settings.window
        return kept[: kept_after[judged - 1]] if judged > 0 else []

    def _with_machine_tasks(self, draw: random.Random, known: Sequence[Example]) -> list[Example]:
        """Seeds and the teacher's own tasks, mixed; seeds instead while there are too few."""
        settings = self.settings
        machine = draw.sample(list(known), min(settings.machine_tasks, len(known)))
        count = settings.seeds_per_prompt + settings.machine_tasks - len(machine)
        shown = draw.sample(self.seeds, count) + machine
        draw.shuffle(shown)
        return shown

    def _rare_verbs(self, draw: random.Random, known: Sequence[Example]) -> list[str]:
        """Eight of the verbs that fewest known instructions begin with."""
        texts = [e.instruction.lower() for e in (*self.seeds, *known)]
        used = Counter(text.split()[0].strip(".,:;!?\"'") for text in texts)
        verbs = list(dict.fromkeys(self.settings.verbs))
        draw.shuffle(verbs)
        for verb in verbs:
            if CJK.search(verb):  # no spaces between words
                used[verb.lower()] = sum(verb.lower() in text for text in texts)
        return sorted(verbs, key=lambda verb: used[verb.lower()])[:8]
