"""The units of a model to listen to: the frames nearest to every component, with what is around
them."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path

import numpy as np
import soundfile

from sjepa.core.frames import FrameGeometry
from sjepa.dataset.audio import DecodeError, Waveform
from sjepa.dataset.clips import Clips
from sjepa.dataset.windows import Windows
from sjepa.s_jepa.units.survey import Survey

_SCRIPT = (Path(__file__).parent / "listen.js").read_text(encoding="utf-8")
_COMPONENTS, _EXAMPLES = 100, 5
_CONTEXT_SECONDS = 0.35  # on each side of a frame
_APART_SECONDS = 1.0  # frames of one clip
_FADE_SECONDS = 0.02
_PEAK = 0.5
_MEDIA = {"MP3": "mpeg", "WAV": "wav"}


def listening(found: Survey, clips: Clips, windows: Windows, geometry: FrameGeometry) -> str:
    """HTML: the most frequent components as tiles; a click plays their nearest frames, from
    different clips."""
    counts = found.components.unit_count_K
    order = [int(component) for component in np.argsort(-counts, kind="stable") if counts[component]][:_COMPONENTS]
    examples = {component: _examples(found, component, clips, windows, geometry) for component in order}
    tiles = "".join(_tile(found, component) for component in order)
    data = json.dumps([[component, own] for component, own in examples.items()]).replace("<", "\\u003c")
    return (
        f"<p>{len(order)} of {len(counts)} components, the most frequent first. A click plays the frames nearest to the "
        f"component's mean, from different clips where possible, with {_CONTEXT_SECONDS:g} s before and after.</p>"
        f'<div id="units"><div class="tiles">{tiles}</div><div class="heard"></div></div>'
        f'<script type="application/json" id="unit-audio">{data}</script><script>{_SCRIPT}</script>'
    )


def _tile(found: Survey, component: int) -> str:
    counts = found.components.unit_count_K
    phone, share = found.components.phone(component)
    named = f" {phone} {float(share):.0%}" if phone else ""
    about = f"{counts[component] / counts.sum():.1%} of frames{escape(named)}"
    return (
        f'<button class="tile" data-unit="{component}" aria-pressed="false">{component} <small>{about}</small></button>'
    )


def _examples(
    found: Survey, component: int, clips: Clips, windows: Windows, geometry: FrameGeometry
) -> list[tuple[str, float, str]]:
    """(name, seconds in its recording, audio as a data URL) of the nearest frames: one per clip,
    then others that are apart."""
    examples: list[tuple[str, float, str]] = []
    for clip, centre in _spread(found.places.of(component), windows, geometry):
        if len(examples) == _EXAMPLES:
            break
        reach = round(_CONTEXT_SECONDS * clips.sample_rate)
        start = max(0, round(centre * clips.sample_rate) - reach)
        length = min(2 * reach, int(clips.length_N[clip]) - start)
        try:
            waveform = clips.read(clip, start=start, length=length)
        except DecodeError:
            continue
        examples.append((clips.name(clip), clips.first_second(clip) + centre, _audio(waveform, clips.sample_rate)))
    return examples


def _spread(
    places: Sequence[tuple[int, ...]], windows: Windows, geometry: FrameGeometry
) -> Iterator[tuple[int, float]]:
    """(clip, seconds) of (window, frame) places in order: the first of every clip, then those far
    from the ones before."""
    spots = [
        (int(windows.clip_N[window]), float(geometry.centres(int(windows.start_N[window]), frame + 1)[frame]))
        for window, frame in places
    ]
    given: dict[int, list[float]] = {}
    for fits in (
        lambda _, heard: not heard,
        lambda at, heard: all(abs(at - other) >= _APART_SECONDS for other in heard),
    ):
        for clip, at in spots:
            heard = given.setdefault(clip, [])
            if fits(at, heard):
                heard.append(at)
                yield clip, at


def _audio(waveform_S: Waveform, sample_rate: int) -> str:
    """Faded at both ends, all of like level."""
    fade = min(round(_FADE_SECONDS * sample_rate), len(waveform_S) // 2)
    shape = np.ones(len(waveform_S), np.float32)
    shape[:fade] = np.linspace(0, 1, fade)
    shape[len(shape) - fade :] = np.linspace(1, 0, fade)
    peak = max(float(np.abs(waveform_S).max(initial=0.0)), 1e-4)
    written = io.BytesIO()
    kind = "MP3" if "MP3" in soundfile.available_formats() else "WAV"  # not in libsndfile below 1.1
    soundfile.write(written, waveform_S * shape * (_PEAK / peak), sample_rate, format=kind)
    return f"data:audio/{_MEDIA[kind]};base64,{base64.b64encode(written.getvalue()).decode('ascii')}"
