"""GMM fitting and posteriors against scikit-learn, on MFCC of generated speech (two threads)."""

from __future__ import annotations

import io
import tempfile
import warnings
import zipfile
from pathlib import Path

import soundfile
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture
from torch import Tensor

from benchmarks.table import Row, median_seconds, report
from sjepa.core.frames import SPEECH
from sjepa.dataset.demo import write_corpus
from sjepa.features.mfcc import MFCC
from sjepa.gmm.diagonal import DiagonalGMM
from sjepa.gmm.fit import Fit, FitSettings, fit_gmm

FRAMES = 50_000


def mfcc_frames() -> Tensor:
    mfcc, parts = MFCC(SPEECH), []
    with tempfile.TemporaryDirectory() as folder:
        write_corpus(Path(folder), speakers=16, clips=50)
        with zipfile.ZipFile(Path(folder) / "train.zip") as archive:
            for name in archive.namelist():
                audio, _ = soundfile.read(io.BytesIO(archive.read(name)), dtype="float32")
                parts.append(mfcc(torch.from_numpy(audio)[None], torch.tensor([len(audio)]))[0])
    return torch.cat(parts)[:FRAMES]


def fitting() -> Row:
    frames = mfcc_frames()
    fits: list[Fit] = []
    references: list[GaussianMixture] = []

    def reference() -> None:
        mixture = GaussianMixture(100, covariance_type="diag", max_iter=20, tol=0.0, random_state=len(references))
        references.append(mixture.fit(frames.numpy()))

    fit_gmm(frames, FitSettings(100, 0))
    ours = median_seconds(lambda: fits.append(fit_gmm(frames, FitSettings(100, len(fits)))))
    baseline = median_seconds(reference)
    reached = [fit.log_likelihoods[-1] for fit in fits]
    expected = [float(mixture.score(frames.numpy())) for mixture in references]
    print(f"{len(frames):,} frames; mean log-likelihood by seed: ours {reached}, scikit-learn {expected}")
    return Row.speedup("gmm_fit", ours, baseline, 2.5)


def posteriors() -> Row:
    torch.manual_seed(0)
    frames = torch.randn(2000, 768)
    ours = DiagonalGMM(500, 768)
    ours.set_parameters(torch.rand(500) + 0.1, torch.randn(500, 768), torch.rand(500, 768) + 0.5)
    reference = GaussianMixture(500, covariance_type="diag")
    reference.weights_, reference.means_, reference.covariances_ = (
        value.double().numpy() for value in (ours.weights, ours.means, ours.variances)
    )
    reference.precisions_cholesky_ = reference.covariances_**-0.5
    double = frames.double().numpy()
    difference = abs(ours.posteriors(frames).responsibilities_NK.numpy() - reference.predict_proba(double)).max()
    print(f"posteriors: largest difference {difference:.1e}")
    return Row.speedup(
        "gmm_posteriors",
        median_seconds(lambda: ours.posteriors(frames), 9),
        median_seconds(lambda: reference.predict_proba(double), 9),
        2.0,
    )


def measure() -> list[Row]:
    torch.set_num_threads(2)
    warnings.simplefilter("ignore", ConvergenceWarning)
    return [fitting(), posteriors()]


if __name__ == "__main__":
    report(measure, __doc__)
