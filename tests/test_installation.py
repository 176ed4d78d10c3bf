"""What the Makefile installs, seen by stand-ins for Python, pip and uv that write down how they
were called."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# `python -c …` tells of the PyTorch that is there; an installation of torch leaves the build that
# GIVEN names
PYTHON = """#!/bin/sh
case "$1 $2" in
"-c "*) case "$2" in *import\\ torch*version*|*'try:'*) cat "$STATE";; *) grep -q -v none "$STATE";; esac;;
"-m pip") [ "$3" = --version ] && exit 0; shift 2; echo "pip $*" >> "$LOG"
    case "$*" in *uninstall*torch*) echo "none" > "$STATE";; *install*torch*) echo "$GIVEN" > "$STATE";; esac;;
esac
"""
UV = """#!/bin/sh
echo "uv $*" >> "$LOG"
case "$*" in *uninstall*torch*) echo "none" > "$STATE";; *install*torch*) echo "$GIVEN" > "$STATE";; esac
"""
CPU, CUDA, ROCM = "cpu 2.13.0+cpu 0", "cuda 2.13.0+cu130 1", "rocm 2.13.0+rocm7.1 2"


@pytest.fixture
def make(tmp_path):
    """Calls make in the repository with stand-ins; what was called, and how it ended."""
    venv, tools = tmp_path / "venv", tmp_path / "tools"
    (venv / "bin").mkdir(parents=True)
    tools.mkdir()
    python = venv / "bin/python"
    python.write_text(PYTHON)
    python.chmod(0o755)

    def run(target, *variables, there="none", given=CPU, uv=False):
        (tmp_path / "state").write_text(there + "\n")
        log = tmp_path / "log"
        log.write_text("")
        if uv:
            (tools / "uv").write_text(UV)
            (tools / "uv").chmod(0o755)
        path = f"{tools}:/usr/bin:/bin"  # no uv of this machine
        environment = {"PATH": path, "STATE": str(tmp_path / "state"), "LOG": str(log), "GIVEN": given}
        done = subprocess.run(
            ["make", target, f"VENV={venv}", *variables], cwd=ROOT, env={**os.environ, **environment, "VIRTUAL_ENV": ""},
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        called = log.read_text().replace(f" --python {python}", "").replace(" --quiet", "")
        return called.splitlines(), done

    return run


def test_pip_takes_the_cpu_build_from_where_it_is_configured_to_look(make):
    called, done = make("install")
    assert called == ["pip install torch==2.13.0", "pip install -e ."]
    assert "PyTorch 2.13.0+cpu, cpu build, 0 GPUs" in done.stdout
    assert done.returncode == 0


@pytest.mark.parametrize(("target", "given"), [("install", CPU), ("cuda_install", CUDA), ("rocm_install", ROCM)])
def test_an_index_is_handed_on(make, target, given):
    called, done = make(target, "TORCH_INDEX=some-index", given=given)
    assert called[0].startswith("pip install --index-url some-index torch")
    assert done.returncode == 0


@pytest.mark.parametrize(
    ("target", "variables", "given", "backend"),
    [
        ("install", [], CPU, "cpu"),
        ("cuda_install", [], CUDA, "auto"),
        ("cuda_install", ["TORCH_BACKEND=cu128"], CUDA, "cu128"),
        ("rocm_install", ["TORCH_BACKEND=rocm6.4"], ROCM, "rocm6.4"),
    ],
)
def test_uv_chooses_the_build(make, target, variables, given, backend):
    called, done = make(target, *variables, given=given, uv=True)
    assert called[0].startswith(f"uv pip install --torch-backend={backend} torch")
    assert called[1] == "uv pip install -e ."
    assert done.returncode == 0


@pytest.mark.parametrize("uv", [False, True])
@pytest.mark.parametrize(
    ("target", "there", "given"),
    [("install", CUDA, CPU), ("cuda_install", CPU, CUDA), ("rocm_install", CUDA, ROCM), ("cuda_install", ROCM, CUDA)],
)
def test_another_build_is_replaced(make, target, there, given, uv):
    called, done = make(target, "TORCH_INDEX=some-index", there=there, given=given, uv=uv)
    assert "uninstall" in called[0]
    assert "torch" in called[0]
    assert "install --index-url some-index torch" in called[1]
    assert f"PyTorch {given.split()[1]}" in done.stdout


def test_the_build_that_is_wanted_stays(make):
    called, done = make("cuda_install", there=CUDA)
    assert called == ["pip install -e ."]
    assert "cuda build, 1 GPUs" in done.stdout


def test_a_build_that_was_not_asked_for_is_an_error(make):
    called, done = make("install", given=CUDA)
    assert done.returncode != 0
    assert "wanted the cpu build, found: cuda 2.13.0+cu130" in done.stderr
    assert called == ["pip install torch==2.13.0"]  # and the package is not installed on top of it


def test_rocm_without_uv_needs_an_index_and_leaves_what_is_there(make):
    called, done = make("rocm_install", there=CPU)
    assert done.returncode != 0
    assert "TORCH_INDEX" in done.stderr
    assert called == []


@pytest.mark.slow
def test_a_wheel_holds_the_shipped_configurations(tmp_path):
    """And everything else that is not Python; a copy of the sources stays as it is."""
    copy = tmp_path / "sources"
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(copy)], check=True)
    pip = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        "--wheel-dir",
        str(tmp_path / "wheels"),
        str(copy),
    ]
    done = subprocess.run(pip, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (wheel,) = (tmp_path / "wheels").glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    configurations = {
        f"sjepa/templates/{name}/{path.name}" for name in ("cpu", "gpu") for path in (ROOT / name / "configs").iterdir()
    }
    assert configurations <= names
    assert {"sjepa/reporting/page.css", "sjepa/s_jepa/units/listen.js", "sjepa/py.typed"} <= names
