"""The note in a sound file's metadata, read back by libsndfile and by ffmpeg's libraries."""

from __future__ import annotations

import io

import av
import numpy as np
import pytest
import soundfile

from orpheus.audio import recordings


def tone() -> np.ndarray:
    """Half a second, float32 [N]."""
    return (0.5 * np.sin(np.arange(12_000) / 9)).astype(np.float32)


NOTES = ["seed 7", "an odd one", "Voice: 유나, né à Köln. " * 12]


@pytest.mark.parametrize("note", NOTES, ids=("even", "odd", "long"))
@pytest.mark.parametrize("format", recordings.FORMATS)
def test_other_libraries_read_the_note(format, note):
    data = recordings.to_bytes(tone(), format, comment=note)
    with av.open(io.BytesIO(data)) as file:
        found = {k.lower(): v for k, v in {**file.metadata, **file.streams[0].metadata}.items()}
        assert found["comment"] == note
        assert sum(frame.samples for frame in file.decode(audio=0)) >= len(tone())
    with soundfile.SoundFile(io.BytesIO(data)) as file:
        assert file.comment == note
    assert len(recordings.read(data)) == pytest.approx(len(tone()), abs=2000)


@pytest.mark.parametrize("format", recordings.FORMATS)
def test_the_note_changes_no_sample(format):
    plain, noted = (recordings.read(recordings.to_bytes(tone(), format, comment=note)) for note in ("", NOTES[-1]))
    assert np.allclose(plain, noted, atol=1e-6)


@pytest.mark.parametrize("note", NOTES)
def test_a_wav_stream_carries_a_note_from_its_first_byte(tmp_path, note):
    with recordings.WavStream(tmp_path / "a.wav", comment=note) as wav:
        for part in np.array_split(tone(), 3):
            wav.write(part)
            with soundfile.SoundFile(tmp_path / "a.wav") as file:
                assert (file.comment, file.frames) == (note, wav.samples)
    assert (tmp_path / "a.wav").read_bytes() == recordings.to_bytes(tone(), comment=note)
    unknown = recordings.wav_header(None, note) + recordings.pcm16(tone())
    assert np.array_equal(recordings.read(unknown), recordings.read(tmp_path / "a.wav"))
