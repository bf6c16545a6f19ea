"""Import rules: each package imports lower layers only, some libraries stay in one package, and oracles stand alone."""

import ast
import re
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parent.parent
ROOT = REPOSITORY / "jdiff"
LAYERS = (
    ("rng", "levels", "storage", "text", "exit_status"),
    ("images", "runtime"),
    ("data",),
    ("models", "contrastive", "diffusion"),
    ("sharding", "interop"),
    ("training",),
    ("config", "evaluation"),
    ("inference",),
    ("tasks",),
    ("runs",),
    ("sweep", "figures"),
    ("commands",),
    ("cli",),
)
LEVEL = {package: height for height, packages in enumerate(LAYERS) for package in packages}
ONLY_IN = {
    "flax": ("models", "training", "tasks", "inference"),
    "orbax": ("training/step_folders.py",),
    "grain": ("data",),
    "tensorflow_datasets": ("data",),
    "absl.flags": (
        "cli.py",
        "commands",
        "data/pipeline.py",
    ),  # grain reads flags that only a parser would have marked as parsed
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


def package(path):
    return path.relative_to(ROOT).with_suffix("").parts[0]


FILES = sorted(ROOT.rglob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_down(path):
    importer = package(path)
    for name in imports(path):
        parts = name.split(".")
        if parts[0] == "jdiff" and len(parts) > 1 and importer != "__init__":
            dependency = parts[1]
            assert dependency in LEVEL, f"{name}: a new package needs a layer"
            assert dependency == importer or LEVEL[dependency] < LEVEL[importer], f"{importer} imports {name}"
        for library, packages in ONLY_IN.items():
            if name == library or name.startswith(library + "."):
                is_allowed = any(str(path.relative_to(ROOT)).startswith(place) for place in packages)
                assert is_allowed, f"{library} is imported in {path.relative_to(ROOT)}"


TASK_NAMES = ("contrastive", "text_to_image", "points")
SOURCE_NAMES = ("shapes", "emoji", "folder", "tfds")


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_only_tasks_and_data_compare_names_of_tasks_and_sources(path):
    """A task or a source owns what depends on it; nothing else asks which one it is."""
    if package(path) in ("tasks", "data"):
        return
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Compare):
            constants = {n.value for n in ast.walk(node) if isinstance(n, ast.Constant) and isinstance(n.value, str)}
            assert not constants & {*TASK_NAMES, *SOURCE_NAMES}, ast.unparse(node)


# Calls by which data becomes code, or a command line is read by a shell.
DANGEROUS_MODULES = {"pickle", "dill", "cloudpickle", "shelve", "marshal", "yaml", "joblib"}
DANGEROUS_CALLS = {"eval", "exec", "os.system", "os.popen", "np.load", "numpy.load", "torch.load", "compile"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_data_becomes_code(path):
    assert not {name.partition(".")[0] for name in imports(path)} & DANGEROUS_MODULES
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call):
            assert ast.unparse(node.func) not in DANGEROUS_CALLS, ast.unparse(node)
            assert not any(keyword.arg == "shell" for keyword in node.keywords), ast.unparse(node)


# Files that jdiff writes, whole or not at all, through jdiff/storage.py; a lock, logs and a spool are written in place.
WRITERS = ("storage.py", "runtime/lock.py", "sweep/pool.py", "sweep/run.py", "inference/standalone.py")


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_are_written_by_storage_alone(path):
    if str(path.relative_to(ROOT)) in WRITERS:
        return
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute | ast.Name):
            name = node.func.attr if isinstance(node.func, ast.Attribute) else node.func.id
            assert name not in ("write_text", "write_bytes") or ast.unparse(node.func).startswith("storage."), name
            constants = [value.value for value in ast.walk(node) if isinstance(value, ast.Constant)]
            modes = constants if name == "open" else []
            assert not any(isinstance(mode, str) and re.fullmatch("[rwxab+]*[wxa+][rwxab+]*", mode) for mode in modes)


def test_every_package_has_a_layer():
    packages = {package(path) for path in FILES} - {"__init__"}
    assert packages == set(LEVEL)


# What the files of a folder must not import.
FORBIDDEN_IMPORTS = {
    "reference": ("jdiff", "tests", "benchmarks"),
    "benchmarks": ("tests",),
    "tests": ("benchmarks",),
}
# Tests of the benchmarks; the second has trained runs for them to measure.
TESTS_OF_BENCHMARKS = ("tests/test_benchmarks.py", "tests/test_path.py")


@pytest.mark.parametrize("folder", FORBIDDEN_IMPORTS)
def test_oracles_benchmarks_and_tests_are_independent(folder):
    for path in sorted((REPOSITORY / folder).rglob("*.py")):
        if str(path.relative_to(REPOSITORY)) not in TESTS_OF_BENCHMARKS:
            forbidden = {name for name in imports(path) if name.partition(".")[0] in FORBIDDEN_IMPORTS[folder]}
            assert not forbidden, path.relative_to(REPOSITORY)
