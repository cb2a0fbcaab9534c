"""Files that are whole or not there, lines that are whole or not there, and strict JSON.

Several processes, on several hosts, may work in one folder. What is being written lies under a hidden temporary name
that nobody else uses, and the writer holds a lock on it (`flock`), which the kernel takes away when the writer dies:
so `remove_leftovers` tells what a dead writer left from what is under way.
"""

from __future__ import annotations

import fcntl
import io
import json
import math
import os
import shutil
import socket
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any, BinaryIO

SUFFIX = ".tmp"
TAIL = 4096  # bytes that are read at once when the end of the last whole line is looked for

# -------------------------------------------------------------------------------------------------- whole files


def temporary_name(path: Path) -> Path:
    """A hidden place beside `path` that no other host, process or call uses."""
    return path.with_name(f".{path.name}.{socket.gethostname()}.{os.getpid()}.{uuid.uuid4().hex[:12]}{SUFFIX}")


def write_whole(path: str | os.PathLike[str], content: bytes | str) -> None:
    """Replace a file so that a kill or a full disk leaves the old one or the new one, never a part.

    Raise OSError that says what to do.
    """
    path = Path(path)
    with _explained(path), _temporary(path, content) as temporary:
        os.replace(temporary, path)
        sync_folder(path.parent)  # without it the new name itself could be lost in a power cut


def create_whole(path: str | os.PathLike[str], content: bytes | str) -> bool:
    """Write a file where there is none yet; return whether it was written.

    Of several that try at the same time exactly one succeeds. Raise OSError that says what to do.
    """
    path = Path(path)
    with _explained(path), _temporary(path, content) as temporary:
        try:
            os.link(temporary, path)
        except FileExistsError:
            return False
        except OSError:  # a file system without hard links: whole all the same, but two at once are not told apart
            if path.exists():
                return False
            os.replace(temporary, path)
        sync_folder(path.parent)
        return True


def sync_folder(folder: Path) -> None:
    """Make what was renamed or removed in a folder last through a loss of power."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def remove_leftovers(folder: str | os.PathLike[str]) -> int:
    """Remove the temporary files and folders of writers that were killed; return how many those were.

    What somebody is writing now stays: a file as long as its writer holds the lock, which `write_whole` does, and a
    folder unless its name says that a process of this host made it that is gone. What cannot be told stays too; it
    lies under a hidden name that no reader looks at.
    """
    return sum(_remove_if_dead(path) for path in Path(folder).glob(f".*{SUFFIX}"))


def _remove_if_dead(path: Path) -> bool:
    try:
        if path.is_dir():
            if not _maker_is_gone(path):
                return False
            shutil.rmtree(path)
            return True
        with open(path, "r+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink()
            return True
    except OSError:  # locked, gone meanwhile, or on a file system without locks
        return False


def _maker_is_gone(path: Path) -> bool:
    """Whether a temporary name is of this host and of a process that runs no more."""
    parts = path.name.removesuffix(SUFFIX).rsplit(".", 2)
    if len(parts) < 3 or not parts[0].endswith(f".{socket.gethostname()}") or not parts[1].isdigit():
        return False
    try:
        os.kill(int(parts[1]), 0)  # signal 0 only asks whether it is there
    except ProcessLookupError:
        return True
    except (PermissionError, OverflowError):
        return False
    return False


@contextmanager
def _temporary(path: Path, content: bytes | str) -> Iterator[Path]:
    """A synced temporary file of this content; the lock is held, and what is left of it removed, at the end."""
    temporary, file = _open_locked(path)
    try:
        with file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
            yield temporary
    finally:
        with suppress(OSError):  # the error that led here matters more
            temporary.unlink(missing_ok=True)


def _open_locked(path: Path) -> tuple[Path, BinaryIO]:
    while True:
        temporary = temporary_name(path)
        file = open(temporary, "xb")  # noqa: SIM115  closed by the caller
        lock(file, fcntl.LOCK_EX)
        if os.fstat(file.fileno()).st_nlink:
            return temporary, file
        file.close()  # somebody cleaned the folder between the two lines, so this file has no name any more


def lock(file: BinaryIO | io.TextIOBase, kind: int) -> bool:
    """Take a lock of `fcntl.flock`; return False where it is held by another (with LOCK_NB).

    True also on a file system that has no locks: there two at once are not told apart.
    """
    try:
        fcntl.flock(file, kind)
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        explained = OSError(
            f"cannot write {path}: {error.strerror or error}. What was written before is kept; free some space, mend "
            "the folder or choose another one, and run the same command again."
        )
        explained.errno = error.errno
        raise explained from error


# -------------------------------------------------------------------------------------------------- whole lines


def append_line(path: str | os.PathLike[str], line: str) -> None:
    """Add a line and see that it is on the disk before anything goes on. Raise OSError that says what to do.

    Several processes may add to one file. A last line that a killed one left without its end is dropped.
    """
    if "\n" in line:
        raise ValueError(f"this is more than one line: {line!r}")
    path = Path(path)
    with _explained(path), open(path, "a+b") as file:
        lock(file, fcntl.LOCK_EX)  # every writer takes it, so nobody is in the middle of a line now
        end = _end_of_last_line(file)
        try:
            file.truncate(end)
            file.write(line.encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
        except OSError:
            with suppress(OSError):
                os.truncate(path, end)
            raise
        if end == 0:
            sync_folder(path.parent)


def read_lines(path: str | os.PathLike[str]) -> list[str]:
    """The whole lines of a file, none where it does not exist; one that is being written or was cut is left out."""
    try:
        content = Path(path).read_bytes()
    except FileNotFoundError:
        return []
    return content[: content.rfind(b"\n") + 1].decode().splitlines()


def _end_of_last_line(file: BinaryIO) -> int:
    """Bytes up to and including the last newline."""
    end = file.seek(0, os.SEEK_END)
    while end:
        start = max(0, end - TAIL)
        file.seek(start)
        found = file.read(end - start).rfind(b"\n")
        if found >= 0:
            return start + found + 1
        end = start
    return 0


# -------------------------------------------------------------------------------------------------- strict JSON


def to_json(value: Any, indent: int | None = 1, sort_keys: bool = False) -> str:
    """Strict JSON, which has no NaN: what is not finite (nothing to measure) becomes null.

    Takes dataclasses, tuples, paths, and the scalars and arrays of numpy and torch. TypeError for anything else.
    """
    return json.dumps(_plain(value), indent=indent, sort_keys=sort_keys, ensure_ascii=False, allow_nan=False)


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    """`to_json` into a file, whole or not there."""
    write_whole(path, to_json(value) + "\n")


def _plain(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        return _plain(asdict(value))
    if isinstance(value, Mapping):
        return {_key(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, float):  # numpy's float64 is one too
        return float(value) if math.isfinite(value) else None
    if hasattr(value, "tolist"):  # an array or scalar of numpy or torch
        return _plain(value.tolist())
    return value


def _key(key: Any) -> str:
    key = _plain(key)
    return key if isinstance(key, str) else to_json(key, indent=None)
