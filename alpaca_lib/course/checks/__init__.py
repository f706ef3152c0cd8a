"""Judges the answers to the exercises: one module per lesson, one function per exercise.

    from alpaca_lib.course.checks import lora as check
    check.parameters(answer)        # prints "Right: ..." or a hint, never the answer

A check of a function calls it on inputs that the exercise does not show, and compares it with
the library's own or with an oracle. It returns nothing that a notebook shows; ``verdicts`` keeps
what was found, for ``python course.py grade``.
"""

from __future__ import annotations
