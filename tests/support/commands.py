"""The commands as separate processes."""

import os
import subprocess
import sys
from pathlib import Path

BIN = Path(sys.executable).parent


def command(*arguments, cwd, **environment):
    return subprocess.run(
        [str(BIN / arguments[0]), *map(str, arguments[1:])], cwd=cwd, capture_output=True, text=True, timeout=900,
        env={**os.environ, **environment}, check=False,
    )  # fmt: skip
