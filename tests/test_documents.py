"""The documents: every link leads somewhere, every command and snippet runs, every number that can be
checked by hand is right, what is generated is up to date."""

import math
import re
import shlex
import shutil
import subprocess
import sys
import unicodedata
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from sjepa.core.frames import SPEECH
from sjepa.dataset.demo import write_corpus
from sjepa.features.effective_rank import effective_rank
from sjepa.s_jepa.modules.masking import num_masked
from tests.support.commands import command
from tests.support.runs import run
from tests.tokenizer.runs import decode
from tests.tokenizer.runs import run as train_tokenizer

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
OURS = ("trainsjepa", "buildh5ds", "evalsjepa", "exportw", "runinfer", "traintok", "runtok", "evaltok", "ckpt2pt")


def anchors(path):
    """The anchors of a page's headings, as GitHub makes them."""
    code, found = False, set()
    for line in path.read_text().splitlines():
        code ^= line.startswith("```")
        if not code and re.match(r"#+ ", line):
            title = unicodedata.normalize("NFC", line.lstrip("# ").replace("`", "").lower())
            found.add(re.sub(r"[^\w\- ]", "", title).replace(" ", "-"))
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_every_link_leads_somewhere(page):
    for text, target in re.findall(r"\[([^\]]*)\]\(([^)\s]+)\)", page.read_text()):
        if re.match(r"https?://|mailto:", target):
            continue
        name, _, anchor = target.partition("#")
        path = (page.parent / name).resolve() if name else page
        assert path.exists(), f"{page.name}: [{text}] leads to {name}"
        if anchor and path.suffix == ".md":
            assert anchor in anchors(path), f"{page.name}: [{text}] leads to #{anchor}"
    for source in re.findall(r'(?:src|srcset)="([^"]+)"', page.read_text()):
        assert (page.parent / source).exists(), source


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_files_and_targets_that_are_named_exist(page):
    targets = set(re.findall(r"^([a-z_]+):", (ROOT / "Makefile").read_text(), re.M))
    text = page.read_text()
    for name in re.findall(r"`((?:cpu|gpu|docs|scripts|benchmarks|tests|examples)/[\w./-]+\.\w+)`", text):
        assert (ROOT / name).exists(), name
    for module in re.findall(r"python -m ((?:scripts|benchmarks)\.\w+)", text.replace("\n", " ")):
        assert (ROOT / f"{module.replace('.', '/')}.py").exists(), module
    for target in re.findall(r"(?:`|^)make ([a-z_]+)", text, re.M):
        assert target in targets, target


def test_the_page_of_keys_is_up_to_date():
    from scripts.keys_page import PAGE, page

    assert PAGE.read_text() == page(), "python -m scripts.keys_page"


def test_yaml_blocks_are_configurations():
    from sjepa.s_jepa.schema import parse_config

    for page in PAGES:
        for block in re.findall(r"```yaml\n(.*?)```", page.read_text(), re.S):
            parse_config(yaml.safe_load(block), where=page.name)


def test_numbers_of_the_guides_are_right():
    """Those of docs/en_concepts.md; the French page has the same."""
    english, french = ((ROOT / f"docs/{name}_concepts.md").read_text() for name in ("en", "fr"))
    assert SPEECH.frames(16000) == 49
    assert num_masked(49, 0.65) == 31
    first, second = math.exp(-(0.8**2) / 2), math.exp(-(1.2**2) / 2)
    share = first / (first + second)
    bits = -(share * math.log2(share) + (1 - share) * math.log2(1 - share))
    q = np.array([0.6, 0.4])
    divergences = [float((q * np.log(q / np.array(p))).sum()) for p in ((0.5, 0.5), (0.9, 0.1))]
    mean = (0.9 * 200 + 0.1 * 12) / (0.9 * 100 + 0.1 * 4)
    values = [f"{first:.3f}", f"{second:.3f}", f"{share:.2f}", f"{bits:.2f} bit", f"{0.999**1000:.0%}".replace("%", " %"),
              *(f"{value:.3f}" for value in divergences), f"{mean:.3f}", f"{-0.9 * math.log(0.9) - 0.1 * math.log(0.1):.3f}"]  # fmt: skip
    for value in values:
        assert value in english
        assert value.replace(".", ",") in french
    flat = torch.tensor([[9.0, 0.0], [-9.0, 0.0], [0.0, 1.0], [0.0, -1.0]])  # singular values 9 : 1
    assert effective_rank(flat) == pytest.approx(1.4, abs=0.05)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder in which the commands of the documents find what they name."""
    folder = tmp_path_factory.mktemp("documents")
    for name in ("cpu", "gpu", "scripts"):
        (folder / name).symlink_to(ROOT / name)
    write_corpus(folder / "data/demo", speakers=8, clips=6, seed=2)
    data = folder / "data/demo"
    for name in ("train.zip", "test.zip"):
        shutil.copy(data / name, folder / "data" / name)
    with zipfile.ZipFile(data / "train.zip") as archive:
        archive.extractall(folder / "my/recordings")
        archive.extractall(folder / "recordings")
    shutil.copy(data / "test.zip", folder / "my/held_out.zip")
    shutil.copy(data / "test.zip", folder / "more.zip")
    flac = next((folder / "recordings").rglob("*.flac"))
    shutil.copy(flac, folder / "one.flac")
    (folder / "train.jsonl").write_text(
        "".join(f'{{"path": "{path}"}}\n' for path in sorted((folder / "recordings").rglob("*.flac")))
    )
    assert run(data, folder / "runs", "run_name=demo", "train.epochs=1", "model.frontend=logmel") == 0
    for name in ("recordings", "NAME"):
        shutil.copytree(folder / "runs/demo", folder / "runs" / name)
    quick = ["run_name=tok_cpu", "train.epochs=1", "logging.report=false"]
    assert train_tokenizer(data, folder / "runs", *quick) == 0
    assert decode(data, folder / "runs", *quick) == 0
    return folder


def commands():
    """(page, arguments) of every command of ours in a block of shell."""
    for page in PAGES:
        for block in re.findall(r"```bash\n(.*?)```", page.read_text(), re.S):
            for line in block.replace("\\\n", " ").splitlines():
                words = shlex.split(line, comments=True)
                words = words[words.index(".venv/bin/traintok") :] if ".venv/bin/traintok" in words else words
                if words and Path(words[0]).name in OURS:
                    yield pytest.param([Path(words[0]).name, *words[1:]], id=f"{page.stem}: {' '.join(words)[:70]}")


SMALLER = {
    "--init": ["device=cpu"], "exportw": [], "evaltok": ["dataset.max_test_samples=2", "dataset.num_workers=0"],
    "evalsjepa": ["probe.splits=1", "dataset.num_workers=0", "evaluation.align=false"],
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("words", commands())
def test_every_command_runs(place, words):
    """Trainings up to their plan (`--dry-run`); on a machine without a GPU, on the CPU."""
    name, *arguments = words
    if name in ("trainsjepa", "traintok") and "--init" not in arguments:
        arguments = [*arguments, "--dry-run"]
        if any("gpu/configs" in item for item in arguments) and "--ds_config" not in arguments:
            arguments += ["device=cpu", "train.devices=1", "model.size=tiny"]
        if "my.yaml" in arguments and not (place / "my.yaml").exists():
            pytest.skip("written by the command before it")
    if name == "ckpt2pt":
        assert command(name, "--help", cwd=place).returncode == 0
        return
    if name == "runtok":
        arguments = [str(next((place / "tokens").glob("*.npz"))) if "tokens/" in item else item for item in arguments]
    if name == "trainsjepa" and "--out" in arguments:  # it never replaces a file
        (place / arguments[arguments.index("--out") + 1]).unlink(missing_ok=True)
    done = command(
        name,
        *arguments,
        *SMALLER.get("--init" if "--init" in arguments and "--template" not in arguments else name, []),
        cwd=place,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    "page", [page for page in PAGES if "```python" in page.read_text()], ids=lambda path: path.name
)
def test_every_snippet_of_python_runs(place, page, monkeypatch):
    """In order, each in a process of its own, with the names of the page before it."""
    text = ""
    for block in re.findall(r"```python\n(.*?)```", page.read_text(), re.S):
        text += block
    if "out/hf" in text and not (place / "out/hf").exists():
        made = command(
            "exportw", "init_weights=runs/demo/train/weights/best.pt", "onnx_path=out/encoder.onnx", cwd=place
        )
        assert made.returncode == 0
    given = "import torch\nwaveforms, lengths = torch.randn(2, 16000) * 0.1, torch.tensor([16000, 12000])\n" \
            "labels = torch.randint(1, 32, (2, 5))\nwaveform = waveforms\n"  # fmt: skip
    text = text.replace("runs/tok_demo/train2", "runs/tok_cpu/train2")
    done = subprocess.run([sys.executable, "-c", given + text], cwd=place, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
