"""The command line: ``jdiff COMMAND --flags``. A table of commands, each of which is a file in ``commands``."""

from __future__ import annotations

import inspect
import io
import logging as stdlib_logging
import signal
import sys
import warnings
from importlib import import_module

from absl import flags

from jdiff.commands.flags import UsageError, parse, shipped_configs
from jdiff.config.construct import ConfigError, nearest
from jdiff.exit_status import exit_status, sentence
from jdiff.runtime import setup
from jdiff.runtime.signals import STATUS, SignalInterrupt, handle_signals

COMMANDS = {  # name -> what it does; jdiff/commands/NAME.py does it
    "prepare": "write captioned images to disk as records",
    "train": "train a model, or resume its training",
    "sample": "sample images from prompts",
    "evaluate": "measure a trained model",
    "convert": "make a run from pretrained weights",
    "export": "export a sampler that needs JAX alone",
    "figures": "draw a figure: forward or spiral",
    "status": "show what a run is doing, and where its time went",
    "verify": "check that a run's files are those that were written",
    "sweep": "train and measure many variants of a config",
}
HELP = ("--help", "-h", "help")


def usage() -> str:
    """The page of ``jdiff --help``."""
    rows = "\n".join(f"  {name:<11}{summary:<45}{_module(name).USAGE}" for name, summary in COMMANDS.items())
    return f"""jdiff COMMAND --flags

{rows}

Commands that only read a run also accept pretrained CLIP or Stable Diffusion weights in its place.

`jdiff COMMAND --help` lists the flags. A config is a file, or the name of one that comes with jdiff
({", ".join(shipped_configs())});
`NAME:tiny` takes two steps, and `--config.train.steps=100` changes a key."""


def _help(command: str, module) -> str:
    """The page of ``jdiff COMMAND --help``."""
    pages = [flags.FLAGS.module_help(name) for name in (module.__name__, "jdiff.commands.flags")]
    lines = [
        line for page in pages if page for line in inspect.cleandoc(page).splitlines()[1:] if "'None')" not in line
    ]
    return f"jdiff {command} {module.USAGE}\n{COMMANDS[command]}\n\n" + "\n".join(lines)


def _module(command: str):
    return import_module(f"jdiff.commands.{command}")


def main() -> None:
    """Run a command.

    Errors end in one sentence and an exit status: 2 for a mistake of the user, which trying again does not mend, 1 for
    what trying again might, 130 after Ctrl-C and 75 after a SIGTERM, where the same command goes on with what was
    done.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a terminal that is not UTF-8 gets escapes, not an error
    with handle_signals():
        try:
            _main(sys.argv[1:])
        except SignalInterrupt as interruption:
            print(f"jdiff: {interruption}", file=sys.stderr)
            sys.exit(STATUS[signal.Signals(interruption.signal)])


def _main(arguments: list[str]) -> None:
    command = arguments[0] if arguments else "--help"
    try:
        if command in HELP:
            print(usage())
            return
        if command not in COMMANDS:
            raise UsageError(f"unknown command '{command}'; {nearest(command, COMMANDS)}")
        setup()
        module = _module(command)
        module.define_flags()
        if any(argument in HELP[:2] for argument in arguments[1:]):
            print(_help(command, module))
            return
        rest = parse(command, arguments[1:])
    except (UsageError, ConfigError, flags.Error) as error:
        print(f"jdiff: {error}", file=sys.stderr)
        sys.exit(2)
    _run(module, rest)


def _run(module, arguments: list[str]) -> None:
    """Do a command's work, with the exit status of its errors."""
    _silence_failed_saves()
    warnings.filterwarnings("ignore", module=r"PIL\.")  # what is wrong with an image is the reason why it is rejected
    try:
        module.run(arguments)
    except ImportError as error:
        if "gcsfs" not in str(error):
            raise
        print("jdiff: gs:// needs the package gcsfs: pip install 'jdiff[gcs]'", file=sys.stderr)
        sys.exit(2)
    except Exception as error:
        if (status := exit_status(error)) is None:
            raise
        print(f"jdiff: {sentence(error)}", file=sys.stderr)
        sys.exit(status)


def _silence_failed_saves() -> None:
    """Print no tracebacks of failed saves, which jdiff names in one line: Orbax logs them, and so does asyncio, and
    TensorStore reports what still arrives afterwards as errors of no thread."""
    from absl import logging

    logging.set_verbosity(logging.FATAL)
    warnings.filterwarnings("ignore", message="coroutine .* was never awaited")
    stdlib_logging.getLogger("asyncio").setLevel(stdlib_logging.CRITICAL)
    report = sys.unraisablehook
    sys.unraisablehook = lambda hook: None if str(hook.exc_value) == "Event loop is closed" else report(hook)


if __name__ == "__main__":
    main()
