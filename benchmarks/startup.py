"""Start-up time of `trainsjepa --help` against `import torch`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from benchmarks.table import Row, median_seconds, report


def measure() -> list[Row]:
    def run(*command: str) -> None:
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)

    ours = (str(Path(sys.executable).parent / "trainsjepa"), "--help")
    baseline = (sys.executable, "-c", "import torch")
    run(*ours)
    run(*baseline)
    return [
        Row.speedup("cli_start", median_seconds(lambda: run(*ours), 5), median_seconds(lambda: run(*baseline), 5), 3.3)
    ]


if __name__ == "__main__":
    report(measure, __doc__)
