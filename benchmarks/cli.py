"""How long the commands take that a user waits for, and that they import no torch.

    python benchmarks/cli.py

Targets: `launcher --help` under 0.3 s, `launcher plan` under 1 s.
"""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

CONFIGS = Path(__file__).parents[1] / "configs"
RUNS = 7
PROBE = "import sys; sys.argv = ['launcher', *{arguments!r}]; from launcher.cli import main\ntry: main()\nfinally: print('torch' in sys.modules, file=sys.stderr)"


def median_s(arguments: list[str]) -> float:
    """Wall seconds of the command in a process of its own, median of RUNS after one warm-up."""
    times = []
    for _ in range(RUNS + 1):
        began = time.perf_counter()
        subprocess.run(
            [sys.executable, "-m", "launcher", *arguments], capture_output=True, check=True
        )
        times.append(time.perf_counter() - began)
    return sorted(times[1:])[RUNS // 2]


def imports_torch(arguments: list[str]) -> bool:
    probe = PROBE.format(arguments=arguments)
    done = subprocess.run(
        [sys.executable, "-c", probe], capture_output=True, text=True, check=False
    )
    return "True" in done.stderr.splitlines()[-1]


def main() -> None:
    bare = median_s_python()
    print(f"{'command':<50} {'median':>8} {'x python':>9}  torch imported")
    for arguments in (["--help"], ["plan", str(CONFIGS / "llama2-70b-sequential.yaml")]):
        seconds = median_s(arguments)
        shown = " ".join(["launcher", *(Path(word).name for word in arguments)])
        print(f"{shown:<50} {seconds:>6.2f} s {seconds / bare:>8.1f}x  {imports_torch(arguments)}")


def median_s_python() -> float:
    """An interpreter that does nothing, to compare with: machines differ."""
    times = []
    for _ in range(RUNS + 1):
        began = time.perf_counter()
        subprocess.run([sys.executable, "-c", ""], check=True)
        times.append(time.perf_counter() - began)
    return sorted(times[1:])[RUNS // 2]


if __name__ == "__main__":
    main()
