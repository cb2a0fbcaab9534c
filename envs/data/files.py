"""Files that are whole or not there."""

from __future__ import annotations

import os
import socket
import uuid
from pathlib import Path


def temporary_name(path: Path) -> Path:
    """A hidden place beside `path` that no other host, process or call uses."""
    return path.with_name(f".{path.name}.{socket.gethostname()}.{os.getpid()}.{uuid.uuid4().hex[:8]}.tmp")


def write_whole(path: str | os.PathLike[str], content: bytes | str) -> None:
    """Replace a file so that a kill or a full disk leaves the old one or the new one, never a part.

    Raise OSError that says what to do.
    """
    path = Path(path)
    temporary = temporary_name(path)
    try:
        with open(temporary, "wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        sync_folder(path.parent)
    except OSError as error:
        raise OSError(
            error.errno,
            f"cannot write {path} ({error.strerror}). What was there before is whole; "
            "free some space or mend the folder and run the same command again",
        ) from error
    finally:
        temporary.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Make what was renamed or removed in a folder last through a loss of power."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
