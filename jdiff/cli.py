"""The command line: ``jdiff VERB --flags``. Flags are read here and nowhere else."""

from __future__ import annotations

import dataclasses
import inspect
import signal
import sys
from collections.abc import Callable
from pathlib import Path

from absl import flags, logging
from ml_collections import config_flags

from jdiff import runtime

USAGE = """jdiff VERB --flags

  prepare    write captioned images to disk             --config
  train      train a model, or go on with it            --config --workdir
  sample     draw what sentences say                    --workdir 'a red circle' 'a blue star'
  evaluate   measure a trained model                    --workdir
  convert    make a run of somebody's weights           SOURCE DESTINATION
  export     make files that draw with JAX alone        RUN DESTINATION
  figures    draw a figure: forward or spiral           --out
  sweep      train and measure many variants            NAME --workdir

Where a run is only read, a folder or file of somebody's weights does, too: CLIP's or Stable Diffusion's.

`jdiff VERB --help` lists a verb's flags. A config is a file, or the name of one that jdiff ships ({configs});
`NAME:tiny` takes two steps, and `--config.train.steps=100` changes a key."""


class UsageError(ValueError):
    """The command asks for something that does not exist."""


def shipped_configs() -> dict[str, Path]:
    """The configs that come with jdiff, by name: beside the package in a clone, inside it when installed."""
    package = Path(__file__).parent
    folders = [folder for folder in (package / "configs", package.parent / "configs") if folder.is_dir()]
    return {path.stem: path for folder in folders for path in sorted(folder.glob("*.py"))}


def _resolved(config: str) -> str:
    """A config's file, from its path or its name, with the variant kept."""
    from jdiff.construct import nearest

    name, colon, variant = config.partition(":")
    if not Path(name).is_file():
        known = shipped_configs()
        if name not in known:
            raise UsageError(f"there is no config '{name}', as a file or by name; {nearest(name, known)}")
        name = str(known[name])
    return f"{name}{colon}{variant}"


def _define_config(default: str | None = None) -> None:
    # A key that the file leaves at its default may be given too; build refuses those that nothing takes.
    config_flags.DEFINE_config_file(
        "config",
        default,
        help_string="A config file or name, with :variant after it.",
        lock_config=False,
        accept_new_attributes=True,
    )


def _config_and_workdir() -> None:
    _define_config()
    flags.DEFINE_string("workdir", None, "Directory of the run.")


def _prepare() -> None:
    from jdiff.verbs.prepare import prepare

    prepare(_experiment())


def _define_train() -> None:
    _config_and_workdir()
    flags.DEFINE_string(
        "cluster", "auto", "What starts the processes, if JAX is not to look; 'none': this one is alone."
    )
    flags.DEFINE_string("coordinator", None, "HOST:PORT of process 0, where nothing tells JAX of the processes.")
    flags.DEFINE_integer("num_processes", None, "How many processes, each started by this command.", 1)
    flags.DEFINE_integer("process_id", None, "Which of them this is, from 0.", 0)
    flags.DEFINE_integer("devices", None, "How many devices all processes must find, or none begins.", 1)
    flags.DEFINE_integer("wait", 300, "Seconds that processes wait for each other to start.", 1)


def _train() -> None:
    from jdiff.runtime.distributed import Cluster, initialize

    f = flags.FLAGS
    initialize(Cluster(f.cluster, f.coordinator, f.num_processes, f.process_id, f.devices, f.wait))
    from jdiff.verbs.train import train

    train(_experiment(), _needed("workdir"))


def _define_average() -> None:
    flags.DEFINE_string("ema", None, "Which average of a run's weights: of config.ema, or width=W, or 'none'.")


def _define_hints() -> None:
    flags.DEFINE_enum("activation", None, ["quick_gelu", "gelu"], "Of CLIP's towers, if their file does not say.")
    flags.DEFINE_enum("prediction_type", None, ["eps", "v"], "Of a U-Net, if its file does not say.")
    flags.DEFINE_string("tokenizer", None, "A vocabulary's file or folder, if none lies beside the weights.")


def _hints(**more):
    from jdiff.interop.foreign import Hints

    return Hints(**{name: flags.FLAGS[name].value for name in ("activation", "prediction_type", "tokenizer")}, **more)


def _define_convert() -> None:
    _define_hints()
    flags.DEFINE_integer("image_size", None, "Side in pixels to use a CLIP at, if not its own.", 1)


def _convert() -> None:
    from jdiff.verbs.convert import convert

    paths = _arguments()
    if len(paths) != 2:
        raise UsageError(f"convert takes the weights and the run to make of them, two paths; found {len(paths)}")
    convert(*paths, _hints(image_size=flags.FLAGS.image_size))


def _define_settings() -> None:
    from jdiff.diffusion.schedules import SPACINGS
    from jdiff.diffusion.solvers import SOLVERS, VARIANCES

    flags.DEFINE_float("guidance_scale", None, "1 is the plain conditional model; the config's if not said.")
    flags.DEFINE_integer("steps", None, "Steps, in each of which heun asks twice; the config's if not said.", 1)
    flags.DEFINE_enum("solver", None, list(SOLVERS), "The config's if not said.")
    flags.DEFINE_enum("spacing", None, list(SPACINGS), "Of the grid's levels; the config's if not said.")
    flags.DEFINE_float("eta", None, "DDIM's noise, from 0, none, to 1, DDPM's.", 0, 1)
    flags.DEFINE_enum("variance", None, list(VARIANCES), "DDPM's; the config's if not said.")
    flags.DEFINE_float("guidance_from", None, "Least log SNR that is guided.")
    flags.DEFINE_float("guidance_to", None, "Greatest log SNR that is guided.")
    flags.DEFINE_float(
        "guidance_rescale", None, "Share of guidance's contrast that is brought back to the prompt's.", 0, 1
    )
    flags.DEFINE_float("apg_parallel", None, "APG: share of guidance along the image itself.")
    flags.DEFINE_float("apg_norm", None, "APG: the longest guidance, as its root mean square.", 0)
    flags.DEFINE_float("apg_momentum", None, "APG: how much of the step before is added; below 0 as published.")
    flags.DEFINE_float("threshold_percentile", None, "Of dynamic thresholding, such as 99.5; 0 for none.", 0, 100)


def _settings() -> dict:
    """The settings that were said, by name."""
    from jdiff.diffusion.settings import Settings

    f = flags.FLAGS
    names = [field.name for field in dataclasses.fields(Settings) if field.name in f]
    return {name: f[name].value for name in names if f[name].value is not None}


def _define_sample() -> None:
    flags.DEFINE_string(
        "workdir", None, "Directory of the run, or of somebody's weights; or name it before the prompts."
    )
    _define_hints()
    _define_average()
    _define_settings()
    flags.DEFINE_string("prompts_file", None, "A file of prompts, one a line; beside or instead of those named.")
    flags.DEFINE_string("negative", "", "What to move away from.")
    flags.DEFINE_string("autoguidance", None, "A run of a weaker model, to move away from what it would draw.")
    flags.DEFINE_integer("num", None, "How many images; prompts are taken in turn. One each if not said.", 1)
    flags.DEFINE_integer("seed", 0, "Image i has seed + i.", 0, 2**31 - 1)
    flags.DEFINE_integer("batch_size", 64, "Images drawn at a time.", 1)
    flags.DEFINE_boolean("trajectory", False, "Also write the denoising as a strip and an animation.")
    flags.DEFINE_string("out", None, "Directory for the images; WORKDIR/images if not said.")


def _sample() -> None:
    from jdiff.verbs.sample import sample

    f = flags.FLAGS
    path, prompts = f.workdir, _arguments()
    if path is None and prompts and Path(prompts[0]).exists():
        path, *prompts = prompts
    sample(
        path or _needed("workdir"),
        hints=_hints(),
        weaker=f.autoguidance,
        average=f.ema,
        prompts=prompts,
        prompts_file=f.prompts_file,
        negative=f.negative,
        num=f.num,
        seed=f.seed,
        changes=_settings(),
        batch_size=f.batch_size,
        trajectory=f.trajectory,
        out=f.out,
    )


def _define_export() -> None:
    _define_hints()
    _define_average()
    _define_settings()
    flags.DEFINE_integer("max_rows", 1000, "The most rows that a method may take that is put in place of this.", 1)


def _export() -> None:
    from jdiff.verbs.export import export

    paths = _arguments()
    if len(paths) != 2:
        raise UsageError(f"export takes the model and the folder to write, two paths; found {len(paths)}")
    f = flags.FLAGS
    export(*paths, hints=_hints(), changes=_settings(), max_rows=f.max_rows, average=f.ema)


def _define_evaluate() -> None:
    flags.DEFINE_string("workdir", None, "Directory of the run to measure, or with --images of somebody's weights.")
    flags.DEFINE_string("images", None, "Folder of pictures to measure a dual encoder on, captioned or sorted by kind.")
    flags.DEFINE_string("templates", None, "With --images: sentences with {} for the kind; CLIP's 80 if not said.")
    flags.DEFINE_string("out", None, "With --images: the JSON to write.")
    _define_hints()
    _define_average()
    flags.DEFINE_string("split", "test", "The split whose captions are asked for.")
    flags.DEFINE_integer("num", None, "How many examples at most: 256 prompts, or 128 pairs, if not said.", 1)
    flags.DEFINE_multi_float("guidance_scale", None, "Guidance scales to measure; the config's if not said.")
    flags.DEFINE_bool("negative_prompts", False, "Also measure negative prompts (shapes only).")


def _evaluate() -> None:
    from jdiff.verbs.evaluate import evaluate
    from jdiff.verbs.evaluate_folder import evaluate_folder

    f = flags.FLAGS
    if f.images:
        about = {"hints": _hints(), "templates": f.templates, "num": f.num, "out": f.out, "average": f.ema}
        evaluate_folder(_needed("workdir"), f.images, **about)
        return
    evaluate(
        _needed("workdir"),
        split=f.split,
        num=f.num,
        guidance_scales=f.guidance_scale,
        negatives=f.negative_prompts,
        average=f.ema,
    )


def _define_figures() -> None:
    from jdiff.diffusion.schedules import SCHEDULES

    flags.DEFINE_string("out", "figures", "Directory for the figure.")
    flags.DEFINE_enum("schedule", "linear", list(SCHEDULES), "Of forward: the noise schedule.")
    flags.DEFINE_string("image", None, "Of forward: the image to dissolve; a scene of the shapes world if not said.")
    _define_config(default=_resolved("spiral"))


def _figures() -> None:
    from jdiff.construct import nearest

    f, names, known = flags.FLAGS, _arguments() or ["forward"], ("forward", "spiral")
    for name in names:
        if name not in known:
            raise UsageError(f"there is no figure '{name}'; {nearest(name, known)}")
    if "forward" in names:
        from jdiff.verbs.figures import forward

        forward(f.out, schedule=f.schedule, image=f.image)
    if "spiral" in names:
        from jdiff import build
        from jdiff.verbs.spiral import spiral

        spiral(build.spiral(f.config), f.out)


def _define_sweep() -> None:
    from jdiff.verbs.sweep import TOGETHER

    flags.DEFINE_string("workdir", None, "Directory of the sweep.")
    flags.DEFINE_integer("jobs", 1, "Runs at a time here, each with its share of the cores; 0: only report.", 0)
    flags.DEFINE_list("gpus", [], "Numbers of GPUs, each for one run at a time.")
    flags.DEFINE_enum("vectorize", "auto", TOGETHER, "Runs that differ in numbers: in one program.")
    flags.DEFINE_list("runs", [], "Only these runs, by their numbers, as a task of an array says.")
    flags.DEFINE_bool("retry", False, "Try again what has failed.")
    flags.DEFINE_bool("dry_run", False, "Only print a command for each cell.")


def _sweep() -> None:
    from jdiff.verbs.sweep import sweep

    f, names = flags.FLAGS, _arguments()
    if len(names) != 1:
        raise UsageError(f"sweep takes one sweep, by its file or name; found {len(names)}")
    about = {name: f[name].value for name in ("jobs", "gpus", "vectorize", "retry", "dry_run")}
    if not all(number.isdecimal() for number in f.runs):
        raise UsageError(f"--run is {','.join(f.runs)}; it must be numbers of runs, from 0")
    about["run"] = [int(number) for number in f.runs]
    sweep(_sweep_file(names[0]), _needed("workdir"), config_file=_resolved, **about)


def _sweep_file(name: str) -> str:
    """A sweep's file, from its path or its name."""
    from jdiff.construct import nearest

    if Path(name).is_file():
        return name
    known = {
        path.stem: path for config in shipped_configs().values() for path in (config.parent / "sweeps").glob("*.py")
    }
    if name not in known:
        raise UsageError(f"there is no sweep '{name}', as a file or by name; {nearest(name, known)}")
    return str(known[name])


VERBS: dict[str, tuple[Callable[[], None], Callable[[], None]]] = {
    "prepare": (_config_and_workdir, _prepare),
    "train": (_define_train, _train),
    "sample": (_define_sample, _sample),
    "evaluate": (_define_evaluate, _evaluate),
    "convert": (_define_convert, _convert),
    "export": (_define_export, _export),
    "figures": (_define_figures, _figures),
    "sweep": (_define_sweep, _sweep),
}


def _arguments() -> list[str]:
    """What follows the verb and is no flag."""
    return _rest


_rest: list[str] = []


def _needed(flag: str):
    value = flags.FLAGS[flag].value
    if value is None:
        raise UsageError(f"--{flag} is missing")
    return value


def _experiment():
    from jdiff import build

    return build.experiment(_needed("config"))


def _parse(verb: str, arguments: list[str]) -> None:
    """Define the verb's flags and read them."""
    from jdiff.construct import nearest

    joined: list[str] = []
    for argument in arguments:
        if joined and joined[-1] == "--config":
            joined[-1] = f"--config={argument}"
        else:
            joined.append(argument)
    arguments = [
        f"--config={_resolved(a.split('=', 1)[1])}" if a.startswith(("--config=", "-config=")) else a for a in joined
    ]
    VERBS[verb][0]()
    # ml_collections looks for overrides such as --config.train.steps in sys.argv.
    sys.argv = [f"jdiff {verb}", *arguments]
    try:
        _rest[:] = flags.FLAGS(sys.argv, known_only=False)[1:]
    except flags.UnrecognizedFlagError as error:
        own = [name for name in flags.FLAGS if not name.startswith("?")]
        raise UsageError(f"--{error.flagname} is no flag of `jdiff {verb}`; {nearest(error.flagname, own)}") from error
    except flags.IllegalFlagValueError as error:
        # ml_collections puts a whole traceback into its message; its last line is what a config's author wrote.
        lines = [line for line in str(error).splitlines() if line.strip()]
        raise UsageError(lines[-1].split("Error: ", 1)[-1]) from error
    except (AttributeError, KeyError) as error:
        overrides = [a.split("=", 1)[0] for a in arguments if a.startswith("--config.")]
        why = str(error).replace("\\n", " ").strip("'\" ")
        raise UsageError(f"one of {', '.join(overrides)} is no key of the config: {why}") from error


def main() -> None:
    """Run a verb.

    What goes wrong ends in one sentence and a status: 2 for a user's mistake, which another try would not mend, 1 for
    what one might, 130 after Ctrl-C, 75 after a SIGTERM, where a run has saved and the same command goes on.
    """
    runtime.setup()
    logging.set_verbosity(logging.ERROR)
    arguments = sys.argv[1:]
    verb = arguments[0] if arguments else "--help"
    if verb in ("--help", "-h", "help"):
        print(USAGE.format(configs=", ".join(shipped_configs())))
        return
    from jdiff.construct import nearest
    from jdiff.runtime.distributed import ClusterError
    from jdiff.sweep.pool import RunsFailed, Stopped
    from jdiff.training.loop import Diverged, Interrupted

    mistakes = (ValueError, FileNotFoundError, ClusterError, Diverged, flags.Error)
    try:
        if verb not in VERBS:
            raise UsageError(f"'{verb}' is no verb of jdiff; {nearest(verb, VERBS)}")
        if any(a in ("--help", "-h") for a in arguments[1:]):
            VERBS[verb][0]()
            print(inspect.cleandoc(flags.FLAGS.module_help("jdiff.cli") or ""))
            return
        _parse(verb, arguments[1:])
        VERBS[verb][1]()
    except (Interrupted, Stopped) as stopped:
        print(f"jdiff: {stopped}", file=sys.stderr)
        sys.exit(130 if stopped.signal == signal.SIGINT else 75)
    except KeyboardInterrupt:
        print("jdiff: stopped", file=sys.stderr)
        sys.exit(130)
    except (*mistakes, RunsFailed, OSError) as error:
        unknown = "there is no such bucket: " if str(error).startswith("http") else ""  # gcsfs gives an address alone
        print(f"jdiff: {unknown}{error}", file=sys.stderr)
        sys.exit(2 if isinstance(error, mistakes) else 1)
    except ImportError as error:
        if "gcsfs" not in str(error):
            raise
        print("jdiff: gs:// is read and written by gcsfs, which is not here: pip install 'jdiff[gcs]'", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
