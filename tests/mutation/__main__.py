"""``python -m tests.mutation [NAME ...]``: which test detects each wrong formula. Exit status 1 if one survives."""

import os
import sys
from concurrent.futures import ThreadPoolExecutor

from rich.console import Console
from rich.table import Table

from tests.mutation import runner
from tests.mutation.mutants import MUTANTS


def main(names):
    """Run the named mutants, or all. Returns the exit status."""
    unknown_names = set(names) - {mutant.name for mutant in MUTANTS}
    if unknown_names:
        print(f"unknown mutants: {', '.join(sorted(unknown_names))}", file=sys.stderr)
        return 2
    mutants = [mutant for mutant in MUTANTS if not names or mutant.name in names]
    table = Table("mutant", "function", "source", "killed by", title="Wrong formulas, and the tests that detect them")
    survivors = 0
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for mutant, outcome in zip(mutants, pool.map(runner.run, mutants)):
            verdict = outcome.test if outcome.is_killed else f"SURVIVES: {outcome.test} {outcome.message}".strip()
            print(f"{mutant.name}: {verdict}", flush=True)
            table.add_row(mutant.name, f"{mutant.module}.{mutant.attribute}", mutant.source, verdict)
            survivors += not outcome.is_killed
    Console(width=180).print(table)
    print(f"{len(mutants) - survivors} of {len(mutants)} mutants killed by an assertion about finite values")
    return int(survivors > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
