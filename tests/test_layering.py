"""The layers of the house: a package imports strictly lower ones and itself; some libraries have one room."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent / "jdiff"
LAYERS = (
    ("rng", "levels", "storage", "standalone"),
    ("diffusion", "contrastive", "data"),
    ("models", "sharding", "images"),
    ("training", "evaluation", "interop", "runtime"),
    ("sample", "embed", "construct"),
    ("build",),
    ("runs",),
    ("sweep", "plan"),
    ("verbs",),
    ("cli",),
)
LEVEL = {room: height for height, rooms in enumerate(LAYERS) for room in rooms}
ONLY_IN = {
    "flax": ("models", "training"),
    "orbax": ("training/checkpoint.py",),
    "grain": ("data",),
    "tensorflow_datasets": ("data",),
    "absl.flags": ("cli.py", "data/pipeline.py"),  # grain reads flags that only a parser would have marked as parsed
    "torch": (),
    "tensorflow": (),
}


def imports(path):
    """Dotted names that a file imports, wherever in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def room(path):
    return path.relative_to(ROOT).with_suffix("").parts[0]


FILES = sorted(ROOT.rglob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_down(path):
    here = room(path)
    for name in imports(path):
        parts = name.split(".")
        if parts[0] == "jdiff" and len(parts) > 1 and here != "__init__":
            there = parts[1]
            assert there in LEVEL, f"{name}: a new room needs a layer"
            assert there == here or LEVEL[there] < LEVEL[here], f"{here} imports {name}"
        for library, rooms in ONLY_IN.items():
            if name == library or name.startswith(library + "."):
                allowed = any(str(path.relative_to(ROOT)).startswith(place) for place in rooms)
                assert allowed, f"{library} is imported in {path.relative_to(ROOT)}"


def test_every_room_has_a_layer():
    rooms = {room(path) for path in FILES} - {"__init__"}
    assert rooms <= set(LEVEL)
