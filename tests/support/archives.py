"""The same clips in a folder, a zip and a tar."""

import io
import tarfile
import zipfile

from tests.support.audio import encode, tone

NAMES = [f"speaker {number % 3}/deep/clip {number}.wav" for number in range(7)]


def audio(number):
    return encode(tone(0.3 + 0.1 * number, seed=number), 16000, "wav")


def make_folder(root):
    for number, name in enumerate(NAMES):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(audio(number))
    (root / "notes.txt").write_text("not audio")
    return root


def make_zip(path, compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("__MACOSX/._clip.wav", b"resource fork")
        for number, name in enumerate(NAMES):
            archive.writestr(name, audio(number))
    return path


def make_tar(path, mode):
    with tarfile.open(path, mode) as archive:
        for number, name in enumerate(NAMES):
            info = tarfile.TarInfo(name)
            info.size = len(audio(number))
            archive.addfile(info, io.BytesIO(audio(number)))
    return path
