"""Frame geometry shared by targets, masks, padding and encoder. [Architecture Details]"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class FrameGeometry:
    """Mapping of samples to frames: a stack of unpadded 1-D convolutions over raw audio.

    The default is the HuBERT frontend: 16 kHz, a receptive field of 400 samples and a hop of 320
    (50 frames per second).
    """

    sample_rate: int = 16000
    kernels: tuple[int, ...] = (10, 3, 3, 3, 3, 2, 2)
    strides: tuple[int, ...] = (5, 2, 2, 2, 2, 2, 2)

    @property
    def hop_samples(self) -> int:
        """Samples between the starts of two neighbouring frames."""
        hop = 1
        for stride in self.strides:
            hop *= stride
        return hop

    @property
    def receptive_field_samples(self) -> int:
        """Receptive field of one frame in samples."""
        field, hop = 1, 1
        for kernel, stride in zip(self.kernels, self.strides, strict=True):
            field += (kernel - 1) * hop
            hop *= stride
        return field

    def frames(self, samples: Any) -> Any:
        """Number of frames of `samples`: an int, or element-wise for an integer array or tensor."""
        return self._positions(samples, self.receptive_field_samples, self.hop_samples)

    def first_layer_frames(self, samples: Any) -> Any:
        """Number of outputs of the first convolution, which its group norm is over."""
        return self._positions(samples, self.kernels[0], self.strides[0])

    def samples(self, frames: int) -> int:
        """Minimum number of samples for `frames` frames."""
        return 0 if frames <= 0 else (frames - 1) * self.hop_samples + self.receptive_field_samples

    @property
    def fewest_samples(self) -> int:
        """Minimum samples of a clip in a batch: two frames, one masked and one visible."""
        return self.samples(2)

    def centres(self, start_sample: int, num_frames: int) -> NDArray[np.float64]:
        """Frame centres in seconds [T], for a window that starts at `start_sample` of its clip."""
        first = start_sample + self.receptive_field_samples / 2
        return (first + self.hop_samples * np.arange(num_frames)) / self.sample_rate

    @staticmethod
    def _positions(samples: Any, kernel: int, stride: int) -> Any:
        count = (samples - kernel) // stride + 1
        return count * (count > 0)


SPEECH = FrameGeometry()


@dataclass(frozen=True)
class PaddedGeometry(FrameGeometry):
    """A stack of padded convolutions: every `hop` samples are one frame, and so is a remainder at
    the end. (`kernels` and `strides` hold the hop alone.)"""

    def frames(self, samples: Any) -> Any:
        return -(-samples // self.hop_samples)

    def samples(self, frames: int) -> int:
        return 0 if frames <= 0 else (frames - 1) * self.hop_samples + 1


def padded_geometry(sample_rate: int, hop: int) -> PaddedGeometry:
    return PaddedGeometry(sample_rate, (hop,), (hop,))
