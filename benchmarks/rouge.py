"""Compares the novelty filter with its peers, in one table.

python benchmarks/rouge.py [--data FILE]

The task is Self-Instruct's: each row in order is compared with the seeds and all rows kept
before it, and dropped above ROUGE-L 0.7. Every line is measured in this run:

  alpaca_lib              filter_novel, exact pruning
  RapidFuzz brute force   the same LCS for every pair (cdist), the fastest way without pruning
  rouge_score             Google's reference, one pair after the other, on a sample of pairs
  rouge_score, pool       as Stanford calls it: a pool of processes forked for each candidate

Then it measures one candidate against all rows and the growth up to ten times the rows, and
proves that the decisions are those of the reference.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from rapidfuzz.distance import LCSseq
from rapidfuzz.process import cdist
from rouge_score import rouge_scorer

from alpaca_lib.dataset import pruning
from alpaca_lib.dataset.rouge import NoveltyIndex, filter_novel, tokenize
from alpaca_lib.records import load_examples

ROOT = Path(__file__).resolve().parents[1]
CORES = os.cpu_count() or 1


def main() -> None:
    """Prints all tables; with --grow, measures one size."""
    options = build_parser().parse_args()
    if options.grow:
        print(json.dumps(grow(options)))
        return
    rows, seeds = load_texts(options)
    pairs = len(rows) * len(seeds) + len(rows) * (len(rows) - 1) // 2
    print(f"{len(seeds)} seeds and {len(rows):,} rows of {options.data.name}: {pairs:,} pairs, ")
    print(f"{CORES} cores; medians of {options.runs} runs\n")
    ours, brute = [], []
    for _ in range(options.runs):  # alternating, so that a busy machine slows both
        ours.append(seconds(lambda: filter_novel(rows, seeds)))
        brute.append(seconds(lambda: all_pairs([*seeds, *rows])))
    single = statistics.median(reference_pair_seconds(rows, n) for n in range(options.runs))
    pooled = statistics.median(pool_pair_seconds(seeds, rows, n) for n in range(options.runs))
    mine, fast = statistics.median(ours), statistics.median(brute)
    print(f"{'':24}{'seconds':>12}{'pairs per second':>18}{'times rouge_score':>20}")
    for name, spent, note in (
        ("alpaca_lib", mine, ""),
        ("RapidFuzz brute force", fast, ""),
        ("rouge_score, pool", pooled * pairs, "  (from a sample)"),
        ("rouge_score", single * pairs, "  (from a sample)"),
    ):
        rate = pairs / spent
        print(f"{name:24}{spent:12,.2f}{rate:18,.0f}{rate * single:20,.1f}{note}")
    stream = measure_checks(rows, seeds)
    print(
        f"\none candidate against {len(rows) + len(seeds):,}: median {stream[0]:.0f} µs, ", end=""
    )
    print(f"99 % under {stream[1]:.0f} µs (index built in {stream[2]:.1f} s)")
    print("\ngrowth            rows    seconds    peak MB    kept")
    for share in (0.1, 1.0, 10.0):
        command = [sys.executable, __file__, "--grow", str(share)]
        command += ["--data", str(options.data), "--seeds", str(options.seeds)]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        one = json.loads(done.stdout)
        print(f"{one['rows']:22,}{one['seconds']:11.2f}{one['peak_mb']:11,.0f}{one['kept']:8,}")
    prove(rows, seeds)


def build_parser() -> argparse.ArgumentParser:
    """Returns the parser of the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=ROOT / "data" / "alpaca_520.json")
    parser.add_argument("--seeds", type=Path, default=ROOT / "data" / "seed_tasks.jsonl")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--grow", type=float, default=0.0, help=argparse.SUPPRESS)
    return parser


def load_texts(options: argparse.Namespace) -> tuple[list[str], list[str]]:
    """Returns (instructions of the rows, instructions of the seeds)."""
    rows = [example.instruction for example in load_examples(options.data)]
    seeds = [example.instruction for example in load_examples(options.seeds)]
    return rows, seeds


def seconds(work: Callable[[], object]) -> float:
    """Returns the seconds of a call."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def all_pairs(texts: list[str], block: int = 512) -> None:
    """Computes the LCS of every pair, in blocks, on all cores."""
    encoded = NoveltyIndex(texts)._encoded
    for at in range(0, len(encoded), block):
        cdist(
            encoded[at : at + block],
            encoded[: at + block],
            scorer=LCSseq.similarity,
            workers=CORES,
            dtype=np.uint8,
        )


def reference_pair_seconds(rows: list[str], seed: int, count: int = 4000) -> float:
    """Returns seconds per pair of rouge_score on texts tokenised beforehand, as Stanford does."""
    draw = random.Random(seed)
    tokens = [tokenize(text) for text in draw.choices(rows, k=200)]
    pairs = [(draw.choice(tokens), draw.choice(tokens)) for _ in range(count)]
    return seconds(lambda: [rouge_scorer._score_lcs(a, b) for a, b in pairs]) / count


def pool_pair_seconds(seeds: list[str], rows: list[str], seed: int, candidates: int = 3) -> float:
    """Returns seconds per pair as in Stanford's loop: a new pool for each candidate."""
    tokens = [tokenize(text) for text in [*seeds, *rows]]
    draw = random.Random(seed)
    spent = 0.0
    for _ in range(candidates):
        candidate = draw.choice(tokens)
        start = time.perf_counter()
        with get_context("fork").Pool(CORES) as pool:
            pool.map(partial(rouge_scorer._score_lcs, candidate), tokens)
        spent += time.perf_counter() - start
    return spent / candidates / len(tokens)


def measure_checks(rows: list[str], seeds: list[str]) -> tuple[float, float, float]:
    """Returns (median, 99th percentile) microseconds per check, and seconds to build the index."""
    index = NoveltyIndex([*seeds, *rows])
    built = seconds(lambda: index.check("anything at all"))
    candidates = vary(rows, 1, random.Random(1))[:2000]
    spent = sorted(seconds(partial(index.check, text)) * 1e6 for text in candidates)
    return spent[len(spent) // 2], spent[len(spent) * 99 // 100], built


def vary(rows: list[str], copies: int, draw: random.Random) -> list[str]:
    """Returns copies of the rows in which words are replaced by random words of the rows.

    The probability is drawn per copy, from 0.1 to 0.6: some copies are near the row, most
    are not.
    """
    vocabulary = [word for text in rows for word in text.split()]
    out = []
    for _ in range(copies):
        for text in rows:
            chance = draw.uniform(0.1, 0.6)
            words = text.split()
            out.append(
                " ".join(draw.choice(vocabulary) if draw.random() < chance else w for w in words)
            )
    return out


def grow(options: argparse.Namespace) -> dict[str, float]:
    """Measures one size in this process: seconds, and peak memory in MB."""
    import resource

    rows, seeds = load_texts(options)
    if options.grow <= 1:
        rows = rows[: round(len(rows) * options.grow)]
    else:
        rows = [*rows, *vary(rows, round(options.grow) - 1, random.Random(0))]
    spent: list[float] = []
    kept = 0

    def run() -> None:
        nonlocal kept
        kept = sum(decision.kept for decision in filter_novel(rows, seeds))

    spent.append(seconds(run))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"rows": len(rows), "seconds": spent[0], "peak_mb": peak, "kept": kept}


def prove(rows: list[str], seeds: list[str]) -> None:
    """Compares all decisions with rouge_score's, and counts the pairs at the threshold.

    Every pair's LCS is computed without pruning; rouge_score itself scores each pair at or
    above 0.65, where the last bit could matter.
    """
    index = NoveltyIndex([*seeds, *rows])
    encoded, lengths = index._encoded, np.array(index._lengths, dtype=np.float64)
    start, near = len(seeds), []
    for at in range(0, len(encoded), 512):
        stop = min(at + 512, len(encoded))
        common = cdist(
            encoded[at:stop],
            encoded[:stop],
            scorer=LCSseq.similarity,
            workers=CORES,
            dtype=np.uint16,
        ).astype(np.float64)
        scores = pruning.f_measure(common, lengths[at:stop, None], lengths[None, :stop])  # type: ignore[arg-type]
        later, earlier = np.nonzero(scores >= 0.65)
        mask = (earlier < later + at) & (later + at >= start)
        near += list(zip(earlier[mask].tolist(), (later[mask] + at).tolist(), strict=True))
    scorer = rouge_scorer.RougeScorer(["rougeL"])
    truth = {
        (i, j): scorer.score(index.texts[i], index.texts[j])["rougeL"].fmeasure for i, j in near
    }
    dropped: set[int] = set()
    rivals: dict[int, list[int]] = {}
    for (i, j), score in truth.items():
        if score > 0.7:
            rivals.setdefault(j, []).append(i)
    for j in range(start, len(index)):
        if any(i not in dropped for i in rivals.get(j, ())):
            dropped.add(j)
    decisions = filter_novel(rows, seeds)
    same = sum(d.kept is (n + start not in dropped) for n, d in enumerate(decisions))
    at_threshold = sum(0.6999999 < score < 0.7000001 for score in truth.values())
    print(f"\n{same:,} of {len(rows):,} decisions are those of rouge_score: ", end="")
    print(f"{len(rows) - len(dropped):,} kept; {at_threshold:,} pairs lie exactly at the threshold")


if __name__ == "__main__":
    main()
