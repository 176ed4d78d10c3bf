"""The command, for launchers that start modules: `deepspeed --module
sjepa.entrypoints.traintok …`."""

import sys

from sjepa.entrypoints.cli import traintok

if __name__ == "__main__":
    sys.argv = [argument for argument in sys.argv if not argument.startswith("--local_rank")]
    sys.exit(traintok())
