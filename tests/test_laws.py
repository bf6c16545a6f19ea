"""tests/LAWS.md lists every test with the law it holds."""

import ast
import re
from pathlib import Path

TESTS = Path(__file__).parent


def test_every_law_has_its_test_and_every_test_its_law():
    listed_tests = set(re.findall(r"^\| `tests/([^`]+)` \|", (TESTS / "LAWS.md").read_text(), re.MULTILINE))
    tests = {
        f"{path.relative_to(TESTS)}::{node.name}"
        for path in TESTS.rglob("test_*.py")
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
    }
    assert listed_tests == tests
