"""Names are terms of the field or nouns, and one name means one thing; the rule is CONTRIBUTING's, held here."""

import ast
from collections import defaultdict
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PLACES = ("jdiff", "configs", "docs", "launch", "benchmarks", "reference", "tests")
FILES = sorted(path for place in PLACES for path in (ROOT / place).rglob("*.py"))

# Alone, these say nothing of what a name stands for: participles without -ed, pronouns, adverbs, prepositions.
BANNED_WORDS = set(
    """
    about above absent across afar after again against ago alike all_of alone along already also always among anew any
    anybody anything apart are around as aside asks at away back bar_none be been before began begun behind being below
    beneath beside besides between beyond both bought broken brought built but by came can chosen come cut did do does
    done drawn driven due during each either else enough even ever everybody everything everywhere except far fell
    felt few for forth found from further gave given gives go goes gone got had handed has have he held hence her here
    his how however if in indeed inside instead into is it its itself just kept known laid lain last_of later lead
    least led left less let lies like likely little long lost made many may maybe meant meets met might mine more most
    much must my near nearly neither never no nobody none nor not nothing now nowhere of off often on once one only
    onto or ought our ours out outside over own past per perhaps put quite rather ran said same sat saw says seen sent
    set_of several shall she should shown since sits slept so some somebody something somewhere soon sought spoken
    stands still stood such taken takes than that the their theirs them then there they thing_of this those though
    thought through throughout thus till to together told too took toward tried twice under unless unlike until up upon
    us very was we well went were what whatever when whence where whereas whether which while who whole whom whose why
    will with within without won would written wrong_one wrote yet you your
    """.split()  # noqa: SIM905
)
# Words that end as a participle does and are none, and participles that are terms, each with who uses it so.
ALLOWED_WORDS = {
    # no participles
    "seed", "embed", "feed", "speed", "need", "red", "exceed", "bed",
    # flax, optax, jax
    "frozen", "fixed", "replicated", "vectorized", "compiled", "lowered", "traced", "jitted", "sharded", "donated",
    # samplers and guidance: diffusers, k-diffusion, [cfg], [imagen]
    "guided", "unguided", "clipped", "noised", "denoised", "corrected", "predicted", "scaled", "shifted", "weighted",
    # losses and statistics
    "gathered", "paired", "expected", "observed", "normalized", "masked", "pooled",
    # numpy, the standard library
    "sorted", "rounded", "stacked", "padded", "zipped", "joined", "cropped", "resized", "encoded", "decoded",
    # what an objective trains; the Hugging Face libraries
    "trained", "pretrained",
    # clu: Metric.merge; argparse
    "merged", "required",
    # tests: what a test expects to fail
    "rejected", "captioned", "labelled",
}  # fmt: skip


def names(tree):
    """Every name that a file binds, with its line: definitions, arguments, variables, attributes."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node.name, node.lineno
        elif isinstance(node, ast.arg):
            yield node.arg, node.lineno
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id, node.lineno
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.attr, node.lineno
        elif isinstance(node, ast.alias) and node.asname:
            yield node.asname, node.lineno
        elif isinstance(node, ast.ExceptHandler) and node.name:
            yield node.name, node.lineno


def violations(path):
    """Names of a file that break the rule, as "line: name"."""
    pairs = set()
    for name, line in names(ast.parse(path.read_text())):
        word = name.strip("_").lower()
        is_participle = word.endswith("ed") and "_" not in word and word not in ALLOWED_WORDS
        if (word in BANNED_WORDS and word not in ALLOWED_WORDS) or is_participle:
            pairs.add((line, name))
    return [f"{line}: {name}" for line, name in sorted(pairs)]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_name_is_a_term_or_a_noun(path):
    assert not violations(path)


# Public names that several packages define on purpose: protocol methods aside, each is the same thing for two kinds.
SHARED_NAMES = {"main"}


def test_a_public_name_is_defined_in_one_package():
    places = defaultdict(set)
    for path in FILES:
        parts = path.relative_to(ROOT).with_suffix("").parts
        if parts[0] != "jdiff" or parts[1] in ("commands", "__init__"):
            continue
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
                places[node.name].add(parts[1])
    assert {name: sorted(rooms) for name, rooms in places.items() if len(rooms) > 1 and name not in SHARED_NAMES} == {}


if __name__ == "__main__":
    import sys

    for path in FILES:
        if not sys.argv[1:] or any(str(path.relative_to(ROOT)).startswith(place) for place in sys.argv[1:]):
            for violation in violations(path):
                print(f"{path.relative_to(ROOT)}:{violation}")
