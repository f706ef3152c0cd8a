"""Every error that a user can cause or fix: one base class, and one class per kind.

A command line catches ``AlpacaError`` and nothing else, prints its text and exits with its
``exit_code``; any other exception is a fault of the program and keeps its traceback. The text
says where (file and row, or setting), what (the value) and the fix.

>>> try:
...     Settings(data_path="d.json", output_dir="out", epochs=-1)
... except AlpacaError as error:
...     print(error)
epochs -1: above 0 is needed
"""

from __future__ import annotations


class AlpacaError(Exception):
    """Base class of every error with a fix that the user can apply."""

    exit_code = 1


class DataError(AlpacaError, ValueError):
    """Reports a file of data, rules or results that cannot be used: file, row, fix."""


class SettingsError(AlpacaError, ValueError):
    """Reports a setting that is unknown, out of range or in conflict with another one."""


class UsageError(SettingsError):
    """Reports a command line that cannot be parsed; the exit code is 2, as argparse's."""

    exit_code = 2


class FileError(AlpacaError, OSError):
    """Reports a file or folder that cannot be read, written or locked."""

    def __str__(self) -> str:
        return str(self.args[0]) if self.args else ""


class MissingPackageError(AlpacaError, ImportError):
    """Reports an optional package that is not installed, with the line that installs it."""


class ModelError(AlpacaError, RuntimeError):
    """Reports a model that is unavailable; the text says what was tried and what to do."""


class AdapterError(AlpacaError, RuntimeError):
    """Reports a LoRA adapter that cannot be created, read or applied, or was saved wrongly."""


class CheckpointError(AlpacaError, RuntimeError):
    """Reports a checkpoint that was requested and cannot be used, or could not be written."""


class TrackerError(AlpacaError, RuntimeError):
    """Reports an experiment tracker that cannot be opened; nothing has been trained yet."""


class NotEnoughMemory(AlpacaError, RuntimeError):
    """Reports a run that would not fit; the text lists settings that would."""


class TrainingStopped(AlpacaError, RuntimeError):
    """Reports a run that stopped before its last step; the text says why and how to resume."""


class LaunchError(AlpacaError, RuntimeError):
    """Reports a launched run that failed, with the text of the rank that failed first."""


class TeacherError(AlpacaError, RuntimeError):
    """Reports a teacher that cannot be used; the text says what to change."""


class ReplyError(AlpacaError, ValueError):
    """Reports a teacher's response that has no usable reply in it."""


class BudgetSpent(AlpacaError, RuntimeError):
    """Reports that the next request could exceed the run's budget."""


class JournalError(AlpacaError, ValueError):
    """Reports a journal of another run, a damaged one, or one that cannot be written."""


class RunError(AlpacaError, ValueError):
    """Reports a run of the notebooks that cannot start: a wrong name, value or folder."""

    exit_code = 2
