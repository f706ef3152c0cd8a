"""Supports the notebooks: runs, folders, tables, figures and widgets.

    from alpaca_lib.course import notebooks as course
    lesson = course.start("01_self_instruct", globals())    # runs/01_self_instruct/001/
    lesson.record("kept 20 tasks", kept=20)                 # writes result.json

``runner`` runs the notebooks headless, ``machine`` reports what this machine can do, ``checks``
judge the exercises, ``exercises`` makes and grades their notebooks, ``parameters`` keeps the notes
of the notebooks' parameters equal to the descriptions of the options.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from alpaca_lib.lazy import attach

if TYPE_CHECKING:
    from alpaca_lib.course.machine import check_machine
    from alpaca_lib.course.notebooks import LESSONS, Lesson, start
    from alpaca_lib.course.runner import run_notebooks

__getattr__, __dir__, __all__ = attach(__name__, __file__)
