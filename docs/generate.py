"""Writes the pages that follow from code and measurements.

From the code: reference/commands.md, reference/config.md and jdiff/config/keys.json. From benchmarks/results:
evidence/results.md.

``python -m docs.generate``; with ``--check`` it writes nothing, and fails where a file is out of date.
"""

from __future__ import annotations

import dataclasses
import inspect
import io
import json
import re
import sys
import tokenize
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

from absl import flags

from benchmarks import __main__ as benchmarks
from benchmarks.claims import Claim
from jdiff.cli import COMMANDS
from jdiff.commands.flags import shipped_configs
from jdiff.config import keys, sections
from jdiff.contrastive.loss import FORMS, LOSSES
from jdiff.data.decoding import CROPS
from jdiff.data.shapes.world import KINDS
from jdiff.data.sources import SOURCES
from jdiff.data.spiral import spiral_points
from jdiff.data.tokenizer import DIALECTS, load_tokenizer, train_tokenizer
from jdiff.diffusion.prediction import PREDICTION_TYPES
from jdiff.diffusion.schedules import SCHEDULES
from jdiff.diffusion.settings import Settings
from jdiff.diffusion.solvers import SOLVERS, VARIANCES
from jdiff.diffusion.spacing import SPACINGS
from jdiff.diffusion.timestep_sampling import TIMESTEP_SAMPLINGS
from jdiff.diffusion.weighting import WEIGHTINGS
from jdiff.models.autoencoder import Autoencoder
from jdiff.models.clip import POOLINGS, VISION_TOWERS, DualEncoder, TextTower
from jdiff.models.layers import ACTIVATIONS, REMAT
from jdiff.models.mlp import MLP
from jdiff.tasks import TASKS
from jdiff.tasks.text_to_image import DENOISERS
from jdiff.training.optimizers import OPTIMIZERS

ROOT = Path(__file__).parent.parent
NETWORKS = {"text": {"": TextTower}, "vision": VISION_TOWERS, "denoiser": DENOISERS, "autoencoder": {"": Autoencoder}}
SECTIONS: dict[str, dict[str, Callable]] = {  # section -> for each choice that has keys of its own, what they configure
    "train": {"": sections.TrainSection},
    "data": {"": sections.DataSection, **SOURCES, "task points": spiral_points},
    "tokenizer": {"": train_tokenizer, "pretrained": load_tokenizer},
    **NETWORKS,
    "encoder": {"": DualEncoder},
    "mlp": {"": MLP},
    "contrastive": {"": sections.ContrastiveSection},
    "diffusion": {"": sections.DiffusionSection},
    "optimizer": OPTIMIZERS,
    "ema": {"": sections.EmaSection},
    "mesh": {"": sections.MeshSection},
    "watchdog": {"": sections.WatchdogSection},
    "sample": {"": Settings},
}
CHOICES = {  # key -> what it chooses among the tables of a section, and the default
    "vision": ("kind", "vit"),
    "denoiser": ("kind", "unet"),
    "optimizer": ("name", "adamw"),
}
OPTIONS = {  # key -> the names it chooses among
    "train.task": TASKS,
    "data.source": SOURCES,
    "data.crop": CROPS,
    "data.world": KINDS,
    "text.activation": ACTIVATIONS,
    "vision.activation": ACTIVATIONS,
    "vision.pooling": POOLINGS,
    "contrastive.loss": LOSSES,
    "contrastive.form": FORMS,
    "diffusion.prediction_type": PREDICTION_TYPES,
    "sample.solver": SOLVERS,
    "sample.spacing": SPACINGS,
    "sample.variance": VARIANCES,
    "tokenizer.dialect": DIALECTS,
    **{f"{section}.remat": REMAT for section in ("text", "vision", "denoiser")},
}
FUNCTIONS = {  # key -> functions it chooses among, whose keyword arguments are its parameters
    "diffusion.schedule": {name: discrete or continuous for name, (discrete, continuous) in SCHEDULES.items()},
    "diffusion.weighting": WEIGHTINGS,
    "diffusion.timestep_sampling": TIMESTEP_SAMPLINGS,
}
MEANINGS = {  # where neither a comment nor a docstring has one
    "optimizer.learning_rate": "the largest learning rate, after the warm-up",
    "optimizer.warmup_steps": "steps of linear warm-up from 0",
    "optimizer.final_lr_fraction": "share of the learning rate at which the cosine decay ends",
    "optimizer.weight_decay": "decoupled weight decay of matrices and kernels",
    "optimizer.clip_norm": "gradient clipping: the largest global norm",
    "text.vocab_size": "the tokenizer's by default; a pretrained tower may have more tokens",
    "text.projection_bias": "whether the projection to the embedding has a bias",
    "text.width": "of the token states",
    "vision.width": "of the patch states",
    "autoencoder.latent_channels": "channels of a latent",
    "tokenizer.context_length": "the most tokens of a caption, start and end included",
    "tokenizer.path": "a tokenizer's file",
    "tokenizer.pad": "padding token, by number",
    "tokenizer.dialect": "how text is normalized and which special tokens it gets",
    "data.path": "the folder",
    "data.test_fraction": "share of the images that are the test split, where no folder is",
    "data.caption_template": "the caption of a label",
    "data.seed": "of the scenes",
    "data.max_pixels": "a larger image is rejected before it is decoded",
    "data.count": "number of points",
    "data.train": "examples of the split",
    "data.test": "examples of the split",
    "data.compositions": "examples of the split, whose combinations of shape, colour and place are not in train",
    "diffusion.timesteps": "number of timesteps",
}
INIT_ROWS = {
    "init_from": ("str", "none", "a run or pretrained weights that the network is initialized from"),
    "frozen": ("bool", "by the task", "not trained; text tower and autoencoder of `text_to_image` are by default"),
}
# What jdiff passes itself: not keys of a config.
FIXED = {
    "attend", "parent", "name", "captions", "path_or_folder", "source_keys", "evaluator", "text", "vision",
    "out_channels", "context_length@text", "image_size@vision", "steps@optimizer", "folder",
}  # fmt: skip
Row = tuple[str, str, str]  # type, default, meaning


def rows_of(section: str, function: Callable) -> dict[str, Row]:
    """The keys of a section that a class or function has, with type, default and meaning."""
    meanings = _docstring_meanings(function) | (_comments(function) if inspect.isclass(function) else {})
    rows = {}
    for name, parameter in inspect.signature(function).parameters.items():
        if name in FIXED or f"{name}@{section}" in FIXED:
            continue
        kind = str(parameter.annotation).replace("jax.typing.DTypeLike | None", "float32 or bfloat16")
        default = "required" if parameter.default is inspect.Parameter.empty else _default(parameter.default)
        key = f"{section}.{name}"
        meaning = MEANINGS.get(key) or meanings.get(name, "").rstrip(".")
        if key in OPTIONS:
            meaning = f"{meaning}; " * bool(meaning) + f"{', '.join(f'`{option}`' for option in OPTIONS[key])}"
        rows[name] = (kind.replace("epath.PathLike", "path"), default, meaning)
    return rows


def _default(value: Any) -> str:
    if value is dataclasses.MISSING or str(value) == "<factory>":
        return "none"
    return "none" if value is None else f"`{value!r}`"


def _comments(cls: type) -> dict[str, str]:
    """The comment at the end of each field's line."""
    comments = {}
    for token in tokenize.generate_tokens(io.StringIO(inspect.getsource(cls)).readline):
        if token.type == tokenize.COMMENT and (match := re.match(r"\s+(\w+): ", token.line)):
            comments.setdefault(match[1], token.string.removeprefix("# "))
    return comments


def _docstring_meanings(function: Callable) -> dict[str, str]:
    """What a docstring's ``name, name: meaning`` lines say, by name."""
    meanings = {}
    doc = inspect.getdoc(function) or ""
    names = r"(?:\w+, )*\w+"
    for match in re.finditer(rf"(?:^|   )({names}): (.*?)(?=^\S|   {names}: |\Z|^$)", doc, re.MULTILINE | re.DOTALL):
        for name in match[1].split(", "):
            meanings[name] = " ".join(match[2].split())
    return meanings


def section_tables() -> dict[str, dict[str, dict[str, Row]]]:
    """For each section, its tables of keys by choice; what all choices share is under ""."""
    result = {}
    for section, functions in SECTIONS.items():
        tables = {choice: rows_of(section, function) for choice, function in functions.items()}
        if section == "data":  # every source is given the common keys
            for choice in SOURCES:
                tables[choice] = {name: row for name, row in tables[choice].items() if name not in tables[""]}
        elif "" not in tables:
            first = next(iter(tables.values()))
            common = {
                name: row for name, row in first.items() if all(table.get(name) == row for table in tables.values())
            }
            key, default = CHOICES[section]
            kinds = ", ".join(f"`{name}`" for name in tables)
            common = {key: ("str", f"`{default!r}`", f"one of {kinds}")} | common
            tables = {"": common} | {
                choice: {name: row for name, row in table.items() if name not in common}
                for choice, table in tables.items()
            }
        if section in NETWORKS:
            tables[""] = INIT_ROWS | tables[""]
        result[section] = tables
    return result


def config_page(tables: dict[str, dict[str, dict[str, Row]]]) -> str:
    """reference/config.md."""
    lines = [
        "# Config keys",
        "",
        "Every section and key of a config, written from the code by `make docs`. A config is a Python file with",
        "`get_config(variant)`, or the name of one that comes with jdiff; `--config.SECTION.KEY=VALUE` changes a key.",
        "Keys that do not exist, values of the wrong type, and keys that the task does not use are errors.",
        "",
        "| config | aim |",
        "|---|---|",
    ]
    for name, path in shipped_configs().items():
        aim = " ".join(re.search(r"^Aim +(.*?)^Run ", path.read_text(), re.DOTALL | re.MULTILINE)[1].split())
        lines.append(f"| `{name}` | {aim} |")
    lines += [
        "",
        "A choice with parameters (`diffusion.schedule`, `diffusion.weighting`, `diffusion.timestep_sampling`) is a",
        'name, or a dict such as `{"name": "min_snr", "cap": 3.0}`.',
        "",
        "| section | tasks that use it |",
        "|---|---|",
    ]
    for section in tables:
        tasks = ", ".join(f"`{name}`" for name, task in TASKS.items() if section in task.sections)
        lines.append(f"| [{section}](#{section}) | {tasks} |")
    for section, choices in tables.items():
        lines += ["", f"## {section}"]
        for choice, rows in choices.items():
            if not rows:
                continue
            if choice:
                key, _ = CHOICES.get(section, ("source", ""))
                lines += [
                    "",
                    choice.capitalize() + ":" if " " in choice or choice == "pretrained" else f"`{key}` `{choice}`:",
                ]
            lines += ["", "| key | type | default | meaning |", "|---|---|---|---|"]
            lines += [
                f"| `{name}` | {' | '.join(cell.replace('|', 'or').replace('``', '`') for cell in row)} |"
                for name, row in rows.items()
            ]
        if section == "diffusion":
            for key, functions in FUNCTIONS.items():
                lines += ["", f"`{key.removeprefix('diffusion.')}`:", "", "| name | parameters |", "|---|---|"]
                for name, function in functions.items():
                    lines.append(
                        f"| `{name}` | {', '.join(f'`{p}={d!r}`' for p, d in _parameters(function).items())} |"
                    )
    return "\n".join(lines) + "\n"


def _parameters(function: Callable) -> dict[str, Any]:
    """The keyword arguments of a function, with their defaults."""
    parameters = inspect.signature(function).parameters.values()
    return {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}


def command_page() -> str:
    """reference/commands.md."""
    lines = [
        "# Commands",
        "",
        "The commands of `jdiff` and their flags, written from the code by `make docs`. Exit statuses: 0 done, 2 a",
        "mistake that one sentence explains, 75 stopped by SIGTERM or hung, 130 stopped by Ctrl-C, 1",
        "any other failure.",
        "",
        "| command | |",
        "|---|---|",
        *(f"| [{name}](#jdiff-{name}) | {summary} |" for name, summary in COMMANDS.items()),
    ]
    for name, summary in COMMANDS.items():
        module = import_module(f"jdiff.commands.{name}")
        other_names = set(flags.FLAGS)
        module.define_flags()
        flag_names = sorted(set(flags.FLAGS) - other_names)
        rows = []
        for flag_name in flag_names:
            flag = flags.FLAGS[flag_name]
            if flag_name.startswith("config."):  # a config's keys have their own page
                continue
            default = "" if flag.default is None or flag.default == [] else f"`{flag.default}`"
            values = f" One of {', '.join(f'`{v}`' for v in flag.parser.enum_values)}." if _is_choice(flag) else ""
            rows.append(f"| `--{flag_name}` | {default} | {_plain_help(flag)}{values} |")
        for flag_name in flag_names:
            delattr(flags.FLAGS, flag_name)
        lines += ["", f"## jdiff {name}", "", f"`jdiff {name} {module.USAGE}`: {summary}.", ""]
        lines += ["| flag | default | meaning |", "|---|---|---|", *rows]
    return "\n".join(lines) + "\n"


def _is_choice(flag: flags.Flag) -> bool:
    return hasattr(flag.parser, "enum_values")


def _plain_help(flag: flags.Flag) -> str:
    return re.sub(r"^<[^>]*>: ", "", " ".join((flag.help or "").split())).replace("|", "or")


def results_page() -> str:
    """evidence/results.md."""
    lines = [
        "# Results",
        "",
        "The last full measurement of every claim. `python -m benchmarks NAME` measures it again and writes",
        "`benchmarks/results`; `make docs` writes this page from there. Intervals are 95 % confidence intervals.",
        "A claim is *not settled* if its interval spans its bound.",
    ]
    for path in sorted((ROOT / "benchmarks" / "results").glob("*.json")):
        name, _, device = path.stem.partition("-")
        title = f"{name} on {device.removeprefix('nvidia-').upper()}"
        lines += ["", f"## {title}", "", f"{benchmarks.NAMES[name].capitalize()}."]
        rows = json.loads(path.read_text())
        for environment in dict.fromkeys(row["environment"] for row in rows):
            lines += ["", f"{environment}:", ""]
            lines += ["| claim | measured | bound | outcome | date |", "|---|---|---|---|---|"]
            for row in rows:
                if row["environment"] == environment:
                    claim = Claim(**{field: row[field] for field in Claim.__dataclass_fields__})
                    cells = (claim.text, claim.text_of_value, claim.text_of_bound, claim.outcome, row["date"])
                    lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main(arguments: list[str]) -> int:
    """Write the files, or check them. Returns the exit status."""
    tables = section_tables()
    names = {
        section: sorted({name for rows in choices.values() for name in rows}) for section, choices in tables.items()
    } | {key: sorted({"name"}.union(*map(_parameters, functions.values()))) for key, functions in FUNCTIONS.items()}
    files = {
        ROOT / "docs" / "reference" / "config.md": config_page(tables),
        ROOT / "docs" / "reference" / "commands.md": command_page(),
        ROOT / "docs" / "evidence" / "results.md": results_page(),
        keys.KEYS_FILE: json.dumps(names, indent=1) + "\n",
    }
    old = [path for path, text in files.items() if not path.exists() or path.read_text() != text]
    if "--check" in arguments:
        for path in old:
            print(f"{path.relative_to(ROOT)} is out of date; `make docs` writes it", file=sys.stderr)
        return int(bool(old))
    for path in old:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(files[path])
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
