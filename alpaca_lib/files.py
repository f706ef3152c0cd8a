"""Files that survive a crash: atomic writes, append-only JSON lines, locks, checksums.

Every file of the project is written here, so that one place decides what happens when the
process is killed, the disk is full or two processes write to the same folder.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
import stat
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from alpaca_lib.errors import FileError

PATIENCE = 3.0 if os.name == "nt" else 0.0  # seconds in which move() tries again


def dump_json(value: object, indent: int | None = None) -> str:
    """Encodes a value as JSON with readable Unicode.

    Lone surrogates, which UTF-8 cannot encode, are escaped.
    """
    text = json.dumps(value, ensure_ascii=False, indent=indent)
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return json.dumps(value, indent=indent)
    return text


def parse_json(text: str | bytes, **options: Any) -> Any:
    """Parses JSON as json.loads does; also nesting that is too deep is a ValueError."""
    try:
        return json.loads(text, **options)
    except RecursionError:
        raise ValueError("lists or objects are nested too deeply") from None


def read_bytes(path: str | os.PathLike[str]) -> bytes:
    """Returns the bytes of a regular file; raises OSError if it is missing or unreadable."""
    check_is_file(path)
    return Path(path).read_bytes()


def check_is_file(path: str | os.PathLike[str]) -> None:
    """Raises FileError for a pipe, a device or a socket, which could block or never end.

    Raises OSError if the file is missing; a folder passes.
    """
    mode = os.stat(path).st_mode
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
        kind = "pipe" if stat.S_ISFIFO(mode) else "socket" if stat.S_ISSOCK(mode) else "device"
        raise FileError(f"{path}: is a {kind}, not a file; save what it gives to a file first")


def write_text(path: str | os.PathLike[str], text: str) -> Path:
    """Replaces a file's text atomically and returns its path.

    After a crash the file holds the old text or the new one. Folders are created. Raises
    FileError if the file cannot be written.
    """
    with atomic_path(path) as work, open(work, "w", encoding="utf-8", newline="\n") as stream:
        stream.write(text)
    return Path(path)


@contextlib.contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yields a temporary path in the same folder, which replaces ``path`` if the block succeeds.

    The file is synced to the disk before the rename, and removed if the block fails. A new file
    has the permissions that the umask leaves, one that exists keeps its own. Raises FileError,
    naming ``path``, for errors of the file system.
    """
    path = Path(path)
    work: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        mode = path.stat().st_mode & 0o777 if path.exists() else None
        new = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
        os.close(
            os.open(new, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666 if mode is None else 0o600)
        )
        work = new
        yield work
        sync(work)
        if mode is not None:
            os.chmod(work, mode)
        move(work, path)
    except OSError as error:
        if isinstance(error, FileError):
            raise
        raise _not_written(path, error) from error
    finally:
        if work is not None:
            with contextlib.suppress(OSError):
                work.unlink()


def move(source: Path, target: Path) -> None:
    """Moves a file or folder to a name; a file that has it is replaced, atomically.

    Windows refuses that while another program has one of the files open, as virus scanners and
    readers have for a moment: there it is tried again for PATIENCE seconds.
    """
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            os.replace(source, target)
            return
        except PermissionError:
            if time.monotonic() >= deadline:
                raise
            time.sleep(0.05)


def _not_written(path: Path, error: OSError) -> FileError:
    """Returns the FileError for an error of the file system, with its errno and its reason."""
    reason = error.strerror or str(error)
    failure = FileError(
        f"{path}: cannot be written ({reason}); free some space, or choose a folder that can be "
        "written"
    )
    failure.errno, failure.strerror = error.errno, reason
    return failure


def read_small(path: str | os.PathLike[str], most: int = 1 << 27) -> str:
    """Reads the text of a regular file of at most ``most`` bytes.

    Raises FileError for a folder, a FIFO or a device, which could block or never end, for a
    larger file, and for one that is not UTF-8.
    """
    path = Path(path)
    try:
        size = path.stat().st_size
        if size > most:
            raise FileError(f"{path}: {size} bytes are more than the {most} read here")
        return read_bytes(path).decode("utf-8")
    except FileError:
        raise
    except (OSError, UnicodeDecodeError) as error:
        raise FileError(f"{path}: cannot be read ({error})") from None


def sync(path: Path) -> None:
    """Blocks until a file's bytes, or the names in a folder, are on the disk.

    Without it a rename may survive a power cut that the file's bytes do not.
    """
    folder = path.is_dir()
    if folder and os.name != "posix":  # Windows cannot open a folder
        return
    handle = os.open(path, os.O_RDONLY if folder else os.O_RDWR)
    try:
        os.fsync(handle)
    except OSError:
        if not folder:  # some network file systems cannot sync a folder
            raise
    finally:
        os.close(handle)


def sha256_file(path: str | os.PathLike[str]) -> str:
    """Returns the SHA-256 checksum of a file, in hexadecimal."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def sha256_text(text: str) -> str:
    """Returns the SHA-256 checksum of a text's UTF-8 bytes, in hexadecimal."""
    return hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()


class JsonLine(NamedTuple):
    """One line of a JSON-lines file. ``row`` is None if the line is not a JSON object."""

    number: int  # 1 for the first line
    offset: int  # bytes before the line
    row: dict[str, Any] | None


class JsonLines:
    """An append-only file of JSON objects, one per line, safe to reopen after a crash.

    Opening the file cuts off a last line without its newline, which a crash left behind. Texts
    stay on the disk; ``read_at`` returns a row by the offset that ``append`` returned.

    >>> with JsonLines(folder / "log.jsonl") as log:
    ...     offset = log.append({"step": 1})
    ...     assert log.read_at(offset) == {"step": 1}
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._lock = threading.RLock()
        self._lock_file: Any = None
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._stream = open(self.path, "a+b", buffering=0)  # noqa: SIM115
        except OSError as error:
            raise _not_written(self.path, error) from error
        self._size = _whole_bytes(self._stream)
        os.ftruncate(self._stream.fileno(), self._size)

    def __enter__(self) -> JsonLines:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def lock(self, busy: str) -> None:
        """Holds a lock on the open file itself: a lock file can be deleted, except on Windows.

        Raises FileError with the text ``busy`` if another process holds it.
        """
        try:
            import fcntl
        except ImportError:  # Windows
            name = f".{self.path.name}.lock"
            self._lock_file = acquire_lock(self.path.with_name(name), wait=False, busy=busy)
            return
        try:
            fcntl.flock(self._stream.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise FileError(busy) from None
        except OSError:  # some network file systems cannot
            return

    def append(self, row: dict[str, Any], sync: bool = True) -> int:
        """Appends one row and returns its offset in bytes; ``sync`` waits for the disk.

        A write that fails leaves no part of the line behind and raises FileError.
        """
        data = (dump_json(row) + "\n").encode("utf-8")
        with self._lock:
            try:
                written = 0
                while written < len(data):
                    written += os.write(self._stream.fileno(), data[written:])
                if sync:
                    os.fsync(self._stream.fileno())
            except BaseException as error:
                with contextlib.suppress(OSError):
                    os.ftruncate(self._stream.fileno(), self._size)
                if isinstance(error, OSError):
                    raise _not_written(self.path, error) from error
                raise
            offset, self._size = self._size, self._size + len(data)
        return offset

    def read_at(self, offset: int) -> dict[str, Any]:
        """Returns the row that begins at an offset in bytes."""
        with open(self.path, "rb") as stream:
            stream.seek(offset)
            row: dict[str, Any] = json.loads(stream.readline())
        return row

    def close(self) -> None:
        """Closes the file; every appended row is already in it."""
        self._stream.close()
        if self._lock_file is not None:
            self._lock_file.release()


def read_json_lines(path: str | os.PathLike[str]) -> Iterator[JsonLine]:
    """Yields the lines of a JSON-lines file; none if the file does not exist.

    A last line without its newline is not complete and is left out.
    """
    path = Path(path)
    if not path.is_file():
        return
    offset = 0
    with open(path, "rb") as stream:
        for number, data in enumerate(stream, 1):
            if not data.endswith(b"\n"):
                return
            try:
                row = json.loads(data)
            except (ValueError, RecursionError):
                row = None
            yield JsonLine(number, offset, row if isinstance(row, dict) else None)
            offset += len(data)


def _whole_bytes(stream: Any) -> int:
    """Returns the size of a file without a last line that lacks its newline."""
    end = int(stream.seek(0, os.SEEK_END))
    block = 1 << 16
    while end:
        start = max(end - block, 0)
        stream.seek(start)
        data = stream.read(end - start)
        if (at := data.rfind(b"\n")) >= 0:
            return start + at + 1
        end = start
    return 0


@contextlib.contextmanager
def locked(path: str | os.PathLike[str], wait: bool = True, busy: str = "") -> Iterator[None]:
    """Holds a lock file while the block runs; the system frees it however the process ends.

    ``wait`` false: raises FileError with the text ``busy`` if another process holds it.
    """
    lock = acquire_lock(path, wait, busy)
    try:
        yield
    finally:
        lock.release()


def acquire_lock(path: str | os.PathLike[str], wait: bool = True, busy: str = "") -> Any:
    """Acquires a lock file and returns the lock, which the caller releases.

    ``wait`` false: raises FileError with the text ``busy`` if another process holds it.
    """
    from filelock import FileLock, Timeout

    lock = FileLock(path, timeout=-1 if wait else 0)
    try:
        lock.acquire()
    except Timeout:
        raise FileError(busy or f"{path}: another process holds this lock") from None
    return lock
