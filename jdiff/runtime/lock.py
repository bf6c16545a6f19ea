"""A lock on a directory: one process at a time trains a run, works on a sweep or prepares data.

On disk the kernel's file lock ends with the process. Where hosts do not see each other's file locks, and in buckets,
the owner proves that it is alive by writing a new count into the lock every few seconds; another one takes the lock
over when the count has stayed the same for longer. Clocks are not compared.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
import sys
import threading
import time
from collections.abc import Iterator
from datetime import datetime
from typing import Any

from etils import epath

from jdiff import storage

LOCK = ".lock"
BEAT_SECONDS, TAKEOVER_SECONDS = 4.0, 15.0


class DirectoryInUse(ValueError):
    """Another process works on a directory; the message names it."""


@contextlib.contextmanager
def hold_lock(directory: epath.PathLike, noun: str) -> Iterator[None]:
    """Hold the lock of a directory, which is made where it is missing.

    noun: what the directory is, for the message.
    Raises ``DirectoryInUse``, and ``OSError`` where nothing can be written.
    """
    directory = epath.Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    file = directory / LOCK
    with _file_lock(file, noun) as descriptor:
        _check_owner(file, directory, noun)
        end_event = threading.Event()
        owner = {"host": socket.gethostname(), "pid": os.getpid(), "start": datetime.now().isoformat(" ", "seconds")}
        _write(file, descriptor, owner | {"count": 0})
        beats = threading.Thread(target=_beat, args=(file, descriptor, owner, end_event), daemon=True, name="lock")
        beats.start()
        try:
            yield
        finally:
            end_event.set()
            beats.join(1)
            file.unlink(missing_ok=True)


def owner(directory: epath.PathLike) -> str:
    """The process that works on a directory, in words; "" where none does, as far as its lock tells."""
    file = epath.Path(directory) / LOCK
    content = _read(file)
    if content is None:
        return ""
    is_here = content.get("host") == socket.gethostname()
    return "" if is_here and not _is_running(content.get("pid", 0)) else _name(content)


@contextlib.contextmanager
def _file_lock(file: epath.Path, noun: str) -> Iterator[int | None]:
    """The kernel's lock of a file on disk: its descriptor. Raises ``DirectoryInUse``."""
    if not storage.on_disk(file):
        yield None
        return
    while True:
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise _in_use(file.parent, noun, _read(file) or {}) from error
            except OSError:
                pass  # a file system without locks
            if not _is_same_file(file, descriptor):  # its owner has just removed it
                continue
            yield descriptor
            return
        finally:
            os.close(descriptor)


def _is_same_file(file: epath.Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(os.stat(file), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _check_owner(file: epath.Path, directory: epath.Path, noun: str) -> None:
    """Wait until the lock's owner, if it has one that may be alive, has shown whether it is.

    Raises ``DirectoryInUse``.
    """
    owner = _read(file)
    if owner is None:
        return
    is_on_disk = storage.on_disk(file)
    if owner.get("host") == socket.gethostname() and (is_on_disk or not _is_running(owner.get("pid", 0))):
        return  # the kernel has released it, or the process is gone
    print(f"{directory} was locked by {_name(owner)}; waiting up to {TAKEOVER_SECONDS:.0f} s for a sign of it")
    deadline = time.monotonic() + TAKEOVER_SECONDS
    while time.monotonic() < deadline:
        time.sleep(0.5)
        if (current := _read(file)) != owner:
            if current is None:
                return
            raise _in_use(directory, noun, current)
    print(f"jdiff: {_name(owner)} has shown no sign; its lock is taken over", file=sys.stderr)


def _beat(file: epath.Path, descriptor: int | None, owner: dict[str, Any], end_event: threading.Event) -> None:
    count = 0
    while not end_event.wait(BEAT_SECONDS):
        count += 1
        with contextlib.suppress(OSError):  # a full disk
            _write(file, descriptor, owner | {"count": count})


def _write(file: epath.Path, descriptor: int | None, owner: dict[str, Any]) -> None:
    """Write the owner of a lock in place: a rename would leave the file that is locked."""
    data = json.dumps(owner).encode()
    if descriptor is None:
        file.write_bytes(data)
    else:
        os.pwrite(descriptor, data, 0)
        os.ftruncate(descriptor, len(data))


def _read(file: epath.Path) -> dict[str, Any] | None:
    """The owner in a lock, None where there is none."""
    try:
        content = json.loads(file.read_bytes())
    except (FileNotFoundError, ValueError):
        return None
    return content if isinstance(content, dict) else None


def _in_use(directory: epath.Path, noun: str, owner: dict[str, Any]) -> DirectoryInUse:
    process = _name(owner) if owner else "another process"
    sentence = f"{directory} is {noun} that {process} works on"
    return DirectoryInUse(f"{sentence}; wait until it ends, or name another directory")


def _name(owner: dict[str, Any]) -> str:
    return f"process {owner.get('pid', '?')} on {owner.get('host', 'another host')}, since {owner.get('start', '?')}"


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        pass
    return True
