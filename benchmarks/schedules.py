"""Utilisation of pipelines whose stages sleep, over real ranks: measured, and what each schedule allows.

python -m benchmarks.schedules [--seconds 0.03] [--steps 40] [--stages 2 4 8]
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from synthetic import Case, mean, run_cases


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=0.03, help="of a stage's step")
    parser.add_argument("--steps", type=int, default=40, help="of a group")
    parser.add_argument("--stages", type=int, nargs="+", default=[2, 4, 8])
    options = parser.parse_args()
    cases = [
        Case((options.seconds,) * stages, groups, schedule, options.steps)
        for stages in options.stages
        for schedule, most in (("naive", 1), ("gpipe", 8), ("ring", 8))
        for groups in (1, 2, 4, 8)
        if groups <= most
    ]
    with tempfile.TemporaryDirectory() as folder:
        results = run_cases(cases, Path(folder))
    print("stages groups schedule  measured  of this run  of a long run  bubble")
    for case, stages in zip(cases, results, strict=True):
        print(
            f"{len(case.seconds):6} {case.groups:6} {case.schedule:8} {mean(stages):9.3f}"
            f" {case.expected:12.3f} {case.ideal:14.3f} {mean(stages, 'bubble'):7.3f}"
        )


if __name__ == "__main__":
    main()
