"""Puts the configurations of cpu/ and gpu/ into the package, so that a wheel has them."""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent


class BuildWithTemplates(build_py):
    def run(self):
        super().run()
        if self.editable_mode:  # they are read where they are
            return
        for name in ("cpu", "gpu"):
            target = Path(self.build_lib) / "sjepa" / "templates" / name
            target.mkdir(parents=True, exist_ok=True)
            for path in (ROOT / name / "configs").iterdir():
                shutil.copy(path, target)


setup(cmdclass={"build_py": BuildWithTemplates})
