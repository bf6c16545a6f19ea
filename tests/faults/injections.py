"""Faults that are set up inside a process, before its command starts."""

import ctypes
import importlib
import os
import signal
from pathlib import Path


def hang_in_phase(phase, step, file):
    """Touch ``file`` when a phase of training begins after a step, and stay there for ever, in native code."""
    from jdiff.runtime.watchdog import Watchdog

    enter = Watchdog.enter

    def enter_and_hang(watchdog, name, current):
        enter(watchdog, name, current)
        if name == phase and current >= step:
            hang(file)

    Watchdog.enter = enter_and_hang


def hang_at_call(module, function, file):
    """Touch ``file`` when a function is called, and stay there for ever, in native code."""
    owner, name = _owner(module, function)
    setattr(owner, name, lambda *_, **__: hang(file))


def hang(file):
    Path(file).touch()
    while True:
        ctypes.CDLL(None).sleep(1000)


def kill_at_write(name, moment):
    """SIGKILL at the first write of a file of this name: "before" it, when it is "torn", or "after" its rename."""
    replace = os.replace

    def replace_and_die(source, target):
        if os.path.basename(os.fspath(target)) != name:
            return replace(source, target)
        if moment == "torn":
            os.truncate(source, os.path.getsize(source) // 2)
        if moment == "after":
            replace(source, target)
        return os.kill(os.getpid(), signal.SIGKILL)

    os.replace = replace_and_die


def _owner(module, function):
    """The module or class that has a function, and the function's name in it."""
    owner = importlib.import_module(module)
    *parents, name = function.split(".")
    for parent in parents:
        owner = getattr(owner, parent)
    return owner, name


def poison_batches(first, last):
    """Let the loss of some batches, counted by their place in the data from 0, be infinite: their images are."""
    from jdiff.data import pipeline
    from jdiff.training import update

    init, advance = pipeline.Batches.__init__, pipeline.Batches.__next__

    def init_and_count(batches, *arguments, start_step=0, **options):
        init(batches, *arguments, start_step=start_step, **options)
        batches.place = start_step

    def advance_and_poison(batches):
        batch = advance(batches)
        if first <= batches.place <= last:
            batch["index"] = batch["index"] - (1 << 20)
        batches.place += 1
        return batch

    def images_of(batch):
        images = batch["image"].astype("float32") / 127.5 - 1
        return images / (batch["index"] >= 0)[:, None, None, None]

    pipeline.Batches.__init__, pipeline.Batches.__next__ = init_and_count, advance_and_poison
    for name in ("contrastive", "text_to_image"):
        importlib.import_module(f"jdiff.tasks.{name}").images_of = images_of
    update.images_of = images_of
