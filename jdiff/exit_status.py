"""Which exit status an error gives: by it a launcher decides whether it starts the same command again.

0    done
2    a mistake: the same command fails again
1    what another attempt may mend, such as a full disk or a lost connection; also an error of jdiff itself
75   stopped by SIGTERM, or hung: start again
130  stopped by Ctrl-C
"""

from __future__ import annotations

import errno
import re

MISTAKE, FAILURE, START_AGAIN, CTRL_C = 2, 1, 75, 130
# Operating system errors that stay until somebody changes a path, a flag or a permission.
LASTING = {errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENAMETOOLONG}
# TensorStore and Orbax raise ValueError for trouble of storage, whose text begins with the name of a status.
STORAGE = re.compile(
    r"(ABORTED|CANCELLED|DATA_LOSS|DEADLINE_EXCEEDED|FAILED_PRECONDITION|INTERNAL|NOT_FOUND|OUT_OF_RANGE"
    r"|RESOURCE_EXHAUSTED|UNAVAILABLE|UNKNOWN): "
)
OUT_OF_MEMORY = re.compile(r"RESOURCE_EXHAUSTED|[Oo]ut of memory")


def exit_status(error: Exception) -> int | None:
    """The exit status of an error that one sentence tells; None for one that needs a traceback, whose status is 1."""
    if type(error).__module__.startswith("absl.flags"):
        return MISTAKE
    if isinstance(error, (TypeError, LookupError, AttributeError, AssertionError)):
        return None
    for cause in _chain(error):
        if getattr(cause, "exit_status", None) is not None:
            return cause.exit_status
        if isinstance(cause, OSError):
            return MISTAKE if _is_lasting(cause) else FAILURE
        if isinstance(cause, ValueError):
            return FAILURE if STORAGE.match(str(cause)) else MISTAKE
        if isinstance(cause, MemoryError) or is_out_of_memory(cause):
            return MISTAKE
    return None


def is_out_of_memory(error: BaseException) -> bool:
    """Whether JAX found no room on a device."""
    return type(error).__name__ in ("JaxRuntimeError", "XlaRuntimeError") and bool(OUT_OF_MEMORY.search(str(error)))


def sentence(error: Exception) -> str:
    """The error as one line."""
    if isinstance(error, MemoryError) or is_out_of_memory(error):
        first = next(iter(str(error).splitlines()), "") or "the machine's memory is full"
        return f"out of memory ({first}); lower the batch size, or raise config.train.microbatches"
    cause = next((cause for cause in _chain(error) if isinstance(cause, (OSError, ValueError))), error)
    text = str(error if isinstance(error, (OSError, ValueError)) or hasattr(error, "exit_status") else cause)
    return f"there is no such bucket: {text}" if text.startswith("http") else text  # gcsfs gives an address alone


def _is_lasting(error: OSError) -> bool:
    return isinstance(error, FileNotFoundError) or error.errno in LASTING


def _chain(error: BaseException | None):
    """An error and what caused it."""
    while error is not None:
        yield error
        error = error.__cause__
