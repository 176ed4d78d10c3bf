from pathlib import Path

import pytest
import yaml

from sjepa.config.load import load_config
from sjepa.entrypoints.codec_quality import SCHEMA as CODEC
from sjepa.s_jepa.schema import SCHEMA as S_JEPA
from sjepa.tokenizer.schema import SCHEMA as TOKENIZER

ROOT = Path(__file__).parents[2]
CPU = sorted((ROOT / "cpu/configs").glob("*.yaml"))


def flat(values, prefix=""):
    for name, value in values.items():
        if isinstance(value, dict) and value:
            yield from flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name


def test_both_sets_have_the_same_files():
    assert [path.name for path in CPU] == sorted(path.name for path in (ROOT / "gpu/configs").glob("*.yaml"))
    assert CPU


@pytest.mark.parametrize("path", CPU, ids=lambda path: path.name)
def test_both_sets_have_the_same_keys(path):
    cpu, gpu = (yaml.safe_load((ROOT / kind / "configs" / path.name).read_text()) for kind in ("cpu", "gpu"))
    assert list(flat(cpu)) == list(flat(gpu))


@pytest.mark.parametrize("kind", ["cpu", "gpu"])
@pytest.mark.parametrize("name", [path.name for path in CPU])
def test_shipped_configurations_are_valid(kind, name):
    schema = CODEC if name == "tok_eval.yaml" else TOKENIZER if name.startswith("tok_") else S_JEPA
    config = load_config(schema, ROOT / kind / "configs" / name)
    assert config.device == {"cpu": "cpu", "gpu": "cuda"}[kind]
