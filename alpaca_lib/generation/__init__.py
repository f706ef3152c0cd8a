"""Stage 01: ask a teacher for tasks, parse, filter, keep; no torch in here."""
