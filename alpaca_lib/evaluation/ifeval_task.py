"""IFEval as a benchmark: answers that survive a crash, verdicts and scores."""

from __future__ import annotations

import time
from collections.abc import Callable

from alpaca_lib.errors import MissingPackageError
from alpaca_lib.evaluation.answers_file import AnswersFile
from alpaca_lib.evaluation.benchmark_model import Benchmark, EvaluatedModel
from alpaca_lib.evaluation.benchmark_results import Result, ResultsFile
from alpaca_lib.evaluation.ifeval import (
    Prompt,
    find_unjudged,
    load_prompts,
    read_prompt,
    verify,
)
from alpaca_lib.evaluation.ifeval_scores import score_verdicts
from alpaca_lib.files import dump_json, sha256_file, sha256_text
from alpaca_lib.hub_data import load_rows
from alpaca_lib.inference.decoding import Answer, Decoding, answer
from alpaca_lib.records import Example

IFEVAL = "ifeval"
IFEVAL_HUB = "google/IFEval"


class IfevalTask:
    """IFEval's prompts and checks, for one model after the other."""

    def __init__(self, benchmark: Benchmark, report: Callable[[str], None]) -> None:
        """Reads the prompts and reports what cannot be judged here, and why."""
        self.benchmark, self.report = benchmark, report
        if benchmark.ifeval_data is not None:
            prompts = load_prompts(benchmark.ifeval_data)
            self.data = sha256_file(benchmark.ifeval_data)
        else:
            fix = "name its JSON-lines file with --ifeval-data, or set HF_ENDPOINT to a mirror"
            rows = load_rows(IFEVAL_HUB, "train", fix)
            prompts = [read_prompt(row) for row in rows]
            self.data = sha256_text(dump_json(rows))
        self.of, self.prompts = len(prompts), prompts[: benchmark.limit]
        self.unjudged = find_unjudged(self.prompts)
        if not any(self._is_judged(prompt) for prompt in self.prompts):
            reasons = " ".join(sorted(set(self.unjudged.values())))
            raise MissingPackageError(f"ifeval: none of the prompts can be judged: {reasons}")
        for reason in sorted(set(self.unjudged.values())):
            kinds = ", ".join(kind for kind, why in self.unjudged.items() if why == reason)
            report(f"not judged: {kinds} ({reason}, and repeat the command)")

    def _is_judged(self, prompt: Prompt) -> bool:
        return all(one.kind not in self.unjudged for one in prompt.instructions)

    def run(self, model: EvaluatedModel, saved: ResultsFile) -> Result:
        """Returns a model's result. Answers that are on the disk are not generated again."""
        decoding = Decoding(max_new_tokens=self.benchmark.max_new_tokens)
        settings = {
            **model.settings,
            "template": model.template or "alpaca",
            "decoding": {"temperature": 0.0, "max_new_tokens": decoding.max_new_tokens},
            "data": self.data,
        }
        saved.find(model.name, IFEVAL, settings)
        start = time.monotonic()
        path = saved.sibling(model.name, IFEVAL)
        with AnswersFile(path, settings) as answers:
            self._answer(model, answers, decoding, settings["template"])
            rows = [answers.rows[prompt.key] for prompt in self.prompts]
            verdicts = [
                verify(prompt, row["response"], self.unjudged)
                for prompt, row in zip(self.prompts, rows, strict=True)
            ]
            for row, verdict in zip(rows, verdicts, strict=True):
                row |= {"strict": verdict.strict, "loose": verdict.loose}
            answers.rewrite()
        found = score_verdicts(self.prompts, verdicts)
        return saved.add(
            Result(
                model=model.name,
                task=IFEVAL,
                settings=settings,
                rows=len(rows),
                of=self.of,
                scores=found.scores,
                details={
                    "average": found.average,
                    "prompts_judged": found.prompts,
                    "instructions_judged": found.instructions,
                    "not_judged": found.unjudged,
                    "truncated": sum(not row["ended"] for row in rows),
                    "by_kind": found.by_kind,
                    "answers": path.name,
                },
                run=model.describe_run(start),
            )
        )

    def _answer(
        self, model: EvaluatedModel, answers: AnswersFile, decoding: Decoding, template: str
    ) -> None:
        """Generates the answers that are missing and keeps each as soon as it is done."""
        missing = [prompt for prompt in self.prompts if prompt.key not in answers.rows]
        if len(missing) < len(self.prompts):
            kept = len(self.prompts) - len(missing)
            self.report(f"{kept} of {len(self.prompts)} answers are in {answers.path}")
        if not missing:
            return
        start, done = time.monotonic(), 0

        def keep(index: int, one: Answer) -> None:
            nonlocal done
            prompt, done = missing[index], done + 1
            answers.add(
                {
                    "key": prompt.key,
                    "prompt": prompt.text,
                    "response": one.text,
                    "tokens": one.tokens,
                    "ended": one.ended,
                }
            )
            left = (time.monotonic() - start) / done * (len(missing) - done)
            self.report(f"{done}/{len(missing)} answers, about {left / 60:.0f} min left\r")

        examples, size = [Example(prompt.text) for prompt in missing], self.benchmark.batch_size
        try:
            with model.pool.use(model.name) as loaded:
                tokenizer = model.pool.tokenizer(model.name)
                answer(loaded, tokenizer, examples, decoding, template, size, keep)
        except KeyboardInterrupt:
            raise KeyboardInterrupt(
                f"Ctrl-C; {len(answers.rows)} answers are in {answers.path}, and the same "
                "command resumes from them"
            ) from None
