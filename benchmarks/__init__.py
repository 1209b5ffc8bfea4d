"""Scripts that print the figures of README and docs. They share the tests' helpers: models, jobs, the dev cluster."""

import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path[:0] = [
    str(ROOT / name) for name in ("tests", "tests/faults", "tests/slurm", "slurm/devcluster")
]
