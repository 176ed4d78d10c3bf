"""Data sets of the Hugging Face library, made on the spot."""

import zipfile

import pytest


@pytest.fixture(scope="session")
def recordings(corpus):
    """(name, FLAC bytes) of the generated corpus."""
    with zipfile.ZipFile(corpus / "train.zip") as archive:
        return [(name, archive.read(name)) for name in archive.namelist()]


@pytest.fixture(scope="session")
def library_cache(tmp_path_factory):
    """The library keeps what it converts; not in the user's folder while tests run, and without the
    network."""
    datasets = pytest.importorskip("datasets")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path_factory.mktemp("hf")))
        patch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
        yield


@pytest.fixture(scope="session")
def places(recordings, tmp_path_factory, library_cache):
    """A saved folder, a folder of splits, a Parquet file, a folder of these, and one with
    everything nested, in the Hugging Face library's forms."""
    datasets = pytest.importorskip("datasets")
    folder = tmp_path_factory.mktemp("sets")
    rows = {"audio": [{"bytes": content, "path": name} for name, content in recordings],
            "who": [name.split("/")[-1].split("-")[0] for name, _ in recordings], "length": [1.5] * len(recordings)}  # fmt: skip
    plain = datasets.Dataset.from_dict(rows).cast_column("audio", datasets.Audio())
    plain.save_to_disk(str(folder / "saved"))
    datasets.DatasetDict({"train": plain, "test": plain.select(range(4))}).save_to_disk(str(folder / "splits"))
    plain.to_parquet(str(folder / "one.parquet"))
    (folder / "many").mkdir()
    for number in range(2):
        plain.shard(2, number, contiguous=True).to_parquet(str(folder / f"many/train-{number:05d}-of-00002.parquet"))
    nested = {
        "mp3": [content for _, content in recordings],
        "json": [{"speaker_id": who, "duration_ms": 9} for who in rows["who"]],
    }
    datasets.Dataset.from_dict(nested).to_parquet(str(folder / "nested.parquet"))
    return folder
