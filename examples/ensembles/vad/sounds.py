"""The sounds that the example listens to, made of nothing: tones, noise, and voices.

Owns how they are made; the same on every machine, but for `spoken`, which the program espeak-ng says.
"""

from __future__ import annotations

import io
import shutil
import subprocess
import wave

import numpy as np
import numpy.typing as npt

SAMPLES_PER_SECOND = 16_000

Sound = npt.NDArray[np.float64]

# The first three resonances of the mouth, in Hz, for a, i, u, e, o and ae.
_VOWELS = np.array(
    [
        (730, 1090, 2440),
        (270, 2290, 3010),
        (300, 870, 2240),
        (530, 1840, 2480),
        (570, 840, 2410),
        (660, 1720, 2410),
    ],
    dtype=float,
)
# How loud each is, and how wide in Hz.
_RESONANCES = ((1.0, 70.0), (0.5, 90.0), (0.2, 120.0))
_HIGHEST_HZ = 3_800
_SYLLABLES_PER_SECOND = 4.5


def silence(seconds: float) -> Sound:
    return np.zeros(_count(seconds))


def tone(seconds: float, hz: float) -> Sound:
    return 0.3 * np.sin(2 * np.pi * hz * _times(seconds))


def sweep(seconds: float, start_hz: float, end_hz: float) -> Sound:
    """A tone that rises or falls evenly."""
    hz = np.linspace(start_hz, end_hz, _count(seconds))
    return 0.3 * np.sin(2 * np.pi * np.cumsum(hz) / SAMPLES_PER_SECOND)


def noise(seconds: float, seed: int = 0, loudness: float = 0.1) -> Sound:
    return loudness * np.random.default_rng(seed).standard_normal(_count(seconds))


def voice(seconds: float, hz: float, seed: int = 0) -> Sound:
    """Syllables that mean nothing: a hum at about `hz`, shaped by a mouth that goes from vowel to vowel."""
    random = np.random.default_rng(seed)
    times = _times(seconds)
    syllables = times * _SYLLABLES_PER_SECOND
    vowels = _VOWELS[random.integers(0, len(_VOWELS), int(syllables[-1]) + 2)]
    centres = np.arange(len(vowels)) + 0.5
    formants = [np.interp(syllables, centres, column) for column in vowels.T]
    # The melody of a sentence, and of each syllable.
    melody = 1 + 0.15 * np.sin(1.2 * np.pi * times) + 0.05 * np.sin(2 * np.pi * syllables + 1)
    pitch = hz * melody
    phase = 2 * np.pi * np.cumsum(pitch) / SAMPLES_PER_SECOND
    sound = np.zeros(len(times))
    for harmonic in range(1, int(_HIGHEST_HZ / hz)):
        gain = np.zeros(len(times))
        for formant, (loudness, width) in zip(formants, _RESONANCES, strict=True):
            gain += loudness / (1 + ((harmonic * pitch - formant) / width) ** 2)
        sound += gain / harmonic * np.sin(harmonic * phase)
    opening = (0.5 - 0.5 * np.cos(2 * np.pi * syllables)) ** 0.7
    breath = np.diff(random.standard_normal(len(times)), prepend=0) * (1 - opening)
    return 0.4 * (sound * opening / np.abs(sound).max() + 0.1 * breath)


def made_sounds() -> dict[str, Sound]:
    """Those that need no other program, by name."""
    return {
        "silence": silence(1.5),
        "tone": tone(1.5, 440),
        "chord": tone(1.5, 300) + tone(1.5, 700),
        "siren": sweep(2, 300, 1_500),
        "noise": noise(1.5),
        "low voice": np.concatenate([silence(0.5), voice(1.5, 120, seed=3), silence(1)]),
        "high voice": np.concatenate([noise(0.5, 1, 0.003), voice(1.5, 200, seed=3), noise(1, 2, 0.003)]),
        "two sentences": np.concatenate(
            [voice(1.2, 110, seed=4), silence(1), voice(1.2, 130, seed=5), silence(0.8)]
        ),
        "voice after a tone": np.concatenate([tone(1, 500), voice(1.5, 150, seed=6), silence(0.8)]),
    }


def spoken(text: str) -> Sound | None:
    """`text`, said by espeak-ng; None where that is not installed."""
    if shutil.which("espeak-ng") is None:
        return None
    said = subprocess.run(["espeak-ng", "--stdout", text], check=True, capture_output=True).stdout
    with wave.open(io.BytesIO(said)) as file:
        rate = file.getframerate()
        # The header was written before the end was known: what counts is what is there.
        samples = np.frombuffer(file.readframes(len(said)), np.int16) / 32_768
    positions = np.arange(0, len(samples) - 1, rate / SAMPLES_PER_SECOND)
    return np.interp(positions, np.arange(len(samples)), samples)


def recorded(sound: Sound, frame: int) -> npt.NDArray[np.int16]:
    """Whole numbers as a sound card gives them, cut into frames; the last one is filled up with silence."""
    whole = np.zeros(-(-len(sound) // frame) * frame)
    whole[: len(sound)] = sound
    return np.clip(np.rint(whole * 32_767), -32_768, 32_767).astype(np.int16).reshape(-1, frame)


def _count(seconds: float) -> int:
    return round(SAMPLES_PER_SECOND * seconds)


def _times(seconds: float) -> Sound:
    return np.arange(_count(seconds)) / SAMPLES_PER_SECOND
