"""Flags that several commands share, and how a command line is read.

Each command's module has USAGE, ``define_flags()`` and ``run(arguments)``. This module imports neither JAX nor
the rest of jdiff when it is loaded, so that help and a misspelt command are answered at once.
"""

from __future__ import annotations

import ast
import dataclasses
import os
import re
import sys
from pathlib import Path
from typing import Any

from absl import flags

from jdiff.config.construct import nearest


class UsageError(ValueError):
    """The command line asks for something that does not exist."""


def shipped_configs() -> dict[str, Path]:
    """The configs that come with jdiff, by name: beside the package in a clone, inside it when installed."""
    package = Path(__file__).parent.parent
    folders = [folder for folder in (package / "configs", package.parent / "configs") if folder.is_dir()]
    return {path.stem: path for folder in folders for path in sorted(folder.glob("*.py"))}


def config_file(config: str) -> str:
    """A config's file, from its path or its name, with the variant kept. Raises ``UsageError``."""
    path = next((path for path in (config, config.rpartition(":")[0]) if Path(path).is_file()), "")
    if ":" in path:
        raise UsageError(f"--config: the path {path} has a colon, which a variant begins with; rename the folder")
    name, colon, variant = config.partition(":")
    if not Path(name).is_file():
        configs = shipped_configs()
        if name not in configs:
            raise UsageError(f"--config: there is no config '{name}', as a file or by name; {nearest(name, configs)}")
        name = str(configs[name])
    return f"{name}{colon}{variant}"


def define_config(default: str | None = None) -> None:
    from ml_collections import config_flags

    # A key that the file leaves at its default may be set too; parsing the config refuses those that do not exist.
    config_flags.DEFINE_config_file(
        "config",
        default,
        help_string="Config file or name, with an optional :variant. --config.SECTION.KEY=VALUE changes a key.",
        lock_config=False,
        accept_new_attributes=True,
    )


def define_workdir(help_text: str = "Run directory.") -> None:
    flags.DEFINE_string("workdir", None, help_text)


def define_ema() -> None:
    flags.DEFINE_string(
        "ema", None, "EMA of the run's parameters to use: one of config.ema, width=W (post-hoc), or 'none' (raw)."
    )


def define_hints() -> None:
    flags.DEFINE_enum(
        "activation", None, ["quick_gelu", "gelu"], "Activation of pretrained CLIP towers, if their files lack it."
    )
    flags.DEFINE_enum(
        "prediction_type", None, ["eps", "v"], "Prediction type of a pretrained U-Net, if its files lack it."
    )
    flags.DEFINE_string("tokenizer", None, "Vocabulary file or folder, if there is none beside the pretrained weights.")


def hints(**others: Any):
    """The values of ``define_hints``."""
    from jdiff.interop.pretrained import Hints

    names = ("activation", "prediction_type", "tokenizer")
    return Hints(**{name: flags.FLAGS[name].value for name in names}, **others)


def define_settings() -> None:
    """Sampling settings; each replaces that of the config's sample section."""
    from jdiff.diffusion.solvers import SOLVERS, VARIANCES
    from jdiff.diffusion.spacing import SPACINGS

    flags.DEFINE_float("guidance_scale", None, "Classifier-free guidance scale; 1 is the plain conditional model.")
    flags.DEFINE_integer("steps", None, "Sampling steps; heun evaluates the network twice in all but the last.", 1)
    flags.DEFINE_enum("solver", None, list(SOLVERS), "Solver.")
    flags.DEFINE_enum("spacing", None, list(SPACINGS), "Spacing of the noise levels.")
    flags.DEFINE_float("eta", None, "DDIM's eta: 0 is deterministic, 1 is DDPM.", 0, 1)
    flags.DEFINE_enum("variance", None, list(VARIANCES), "Variance of DDPM's steps.")
    flags.DEFINE_float("guidance_from", None, "Apply guidance only above this log-SNR.")
    flags.DEFINE_float("guidance_to", None, "Apply guidance only below this log-SNR.")
    flags.DEFINE_float("guidance_rescale", None, "Guidance rescale phi, in [0, 1].", 0, 1)
    flags.DEFINE_float("apg_parallel", None, "APG: share of the guidance parallel to the prediction that is kept.")
    flags.DEFINE_float("apg_norm", None, "APG: maximal RMS norm of the guidance.", 0)
    flags.DEFINE_float("apg_momentum", None, "APG: momentum of the guidance; negative as published.")
    flags.DEFINE_float("threshold_percentile", None, "Dynamic thresholding percentile, such as 99.5; 0: off.", 0, 100)


def settings() -> dict[str, Any]:
    """The values of ``define_settings`` that were set, by name."""
    from jdiff.diffusion.settings import Settings

    names = [field.name for field in dataclasses.fields(Settings) if field.name in flags.FLAGS]
    return {name: flags.FLAGS[name].value for name in names if flags.FLAGS[name].value is not None}


def take_paths(command: str, arguments: list[str], *names: str) -> list[str]:
    """The arguments of a command that takes paths. names: what each is.   Raises ``UsageError`` at another number."""
    if len(arguments) != len(names):
        number = {1: "one path", 2: "two paths"}[len(names)]
        raise UsageError(f"{command} takes {number}, {' and '.join(names)}; {len(arguments)} were passed")
    return arguments


def required(name: str) -> Any:
    """The value of a flag. Raises ``UsageError`` where it is missing."""
    value = flags.FLAGS[name].value
    if value is None:
        raise UsageError(f"--{name} is missing")
    return value


def decode_prompt(prompt: str) -> str:
    """A prompt of the command line, whose bytes are UTF-8 whatever the locale. Raises ``UsageError``."""
    try:
        return os.fsencode(prompt).decode()
    except UnicodeError as error:
        raise UsageError(
            f"the prompt {prompt!r} is not UTF-8; use a terminal in UTF-8, or write it into a file for --prompts_file"
        ) from error


def config() -> dict[str, Any]:
    """The config of --config, with the parameters of choices that the command line sets. Raises ``ConfigError``."""
    from jdiff.config.keys import plain, set_key

    raw = plain(required("config"))
    for key, value in _parameters:
        set_key(raw, key, value)
    return _expand_home(raw)


def no_arguments(arguments: list[str]) -> None:
    """Raise ``UsageError`` where a command that takes flags alone was passed other arguments."""
    if arguments:
        raise UsageError(f"this command takes flags alone, but was passed {' '.join(map(repr, arguments))}")


def task():
    """The task of --config."""
    from jdiff.tasks import make_task

    return make_task(config())


def image_text_task():
    """The task of --config, where it has captioned images."""
    from jdiff.tasks.task import ImageTextTask

    image_task = task()
    if not isinstance(image_task, ImageTextTask):
        raise UsageError(
            f"--config is of task '{image_task.name}', which `jdiff figures spiral` and `jdiff sweep` train"
        )
    return image_task


def parse(command: str, arguments: list[str]) -> list[str]:
    """Read the flags of a command, which are defined already. Returns what is no flag.

    Raises ``UsageError``, or ``ConfigError`` at a key that no config has.
    """
    arguments = [
        f"--config={config_file(a.split('=', 1)[1])}" if a.startswith(("--config=", "-config=")) else a
        for a in _as_assignments(arguments)
    ]
    # A parameter of a choice, such as --config.diffusion.schedule.beta_end, is none of ml_collections' keys.
    _parameters[:] = [_parameter(a) for a in arguments if PARAMETER.match(a)]
    arguments = [a for a in arguments if not PARAMETER.match(a)]
    # ml_collections looks for overrides such as --config.train.steps in sys.argv.
    sys.argv = [f"jdiff {command}", *arguments]
    try:
        rest = flags.FLAGS(sys.argv, known_only=False)[1:]
    except flags.UnrecognizedFlagError as error:
        flag_names = [name for name in flags.FLAGS if not name.startswith("?")]
        name = error.flagname
        if name in RENAMED_FLAGS:
            raise UsageError(f"--{name} is an old name; use --{RENAMED_FLAGS[name]}") from error
        hint = "; write prompts that begin with '-' after --" if command == "sample" else ""
        raise UsageError(f"unknown flag --{name} of `jdiff {command}`; {nearest(name, flag_names)}{hint}") from error
    except flags.IllegalFlagValueError as error:
        # ml_collections puts a whole traceback into its message; its last line is what a config's author wrote.
        lines = [line for line in str(error).splitlines() if line.strip()]
        raise UsageError(lines[-1].split("Error: ", 1)[-1]) from error
    except (AttributeError, KeyError, TypeError) as error:
        overrides = [a.split("=", 1)[0] for a in arguments if a.startswith("--config.")]
        for override in overrides:
            section, _, key = override.removeprefix("--config.").partition(".")
            _check_names({section: {key: None}})
        reason = str(error).replace("\\n", " ").strip("'\" ")
        raise UsageError(f"one of {', '.join(overrides)} is not a key of the config: {reason}") from error
    if "config" in flags.FLAGS and flags.FLAGS.config is not None:
        _check_names(config())
    return rest


def _as_assignments(arguments: list[str]) -> list[str]:
    """Arguments with --config VALUE and --config.KEY VALUE as one each, and with ~ and $HOME expanded in values."""
    result: list[str] = []
    flags_ended = False
    for argument in arguments:
        flags_ended = flags_ended or argument == "--"
        if result and CONFIG_FLAG.fullmatch(result[-1]) and not argument.startswith("-"):
            result[-1] += f"={argument}"
        else:
            result.append(argument)
        flag, equals, value = result[-1].partition("=")
        if equals and flag.startswith("-") and not flags_ended:
            result[-1] = f"{flag}={_expand_home(value)}"
    return result


def _expand_home(value: Any) -> Any:
    """A value, or all values of a config, with ~ and $HOME at the start of a path expanded as a shell does."""
    if isinstance(value, str):
        return HOME.sub(lambda _: os.path.expanduser("~"), value)
    if isinstance(value, dict):
        return {key: _expand_home(item) for key, item in value.items()}
    return [_expand_home(item) for item in value] if isinstance(value, list) else value


def _parameter(argument: str) -> tuple[str, Any]:
    """The key and value of --config.SECTION.KEY.PARAMETER=VALUE."""
    key, _, text = argument.removeprefix("--config.").partition("=")
    try:
        return key, ast.literal_eval(text)
    except (SyntaxError, ValueError):
        return key, text


def _check_names(raw: dict[str, Any]) -> None:
    """Raise ``ConfigError`` at a key that was renamed, or that no config has."""
    from jdiff.config.keys import check_names, plain

    check_names(plain(raw))


CONFIG_FLAG = re.compile(r"--?config(\.[\w.]+)?")  # without its value
HOME = re.compile(r"^(~|\$HOME|\$\{HOME\})(?=/|$)")
PARAMETER = re.compile(r"--config\.\w+\.\w+\.\w[\w.]*=")
_parameters: list[tuple[str, Any]] = []  # of the command line, by dotted key
RENAMED_FLAGS = {  # old flag -> new flag
    "average": "ema",
    "weaker": "autoguidance",
    "together": "vectorize",
    "processes": "num_processes",
    "process": "process_id",
    "negatives": "negative_prompts",
    "run": "runs",
    "rescale": "guidance_rescale",
    "parallel": "apg_parallel",
    "norm": "apg_norm",
    "momentum": "apg_momentum",
    "percentile": "threshold_percentile",
}
