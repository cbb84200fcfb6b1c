"""Speak tagged prompts with a voice you trained.

orpheus speak                                        # three sample prompts -> generated_audio/
orpheus speak "Oh no, <sighs> not again." "<laughs> Yes!"
orpheus speak --voice tara --file lines.txt --out wavs
echo "Hello there." | orpheus speak
orpheus speak "Hello there." --out hello.mp3
orpheus speak --stream "A WAV that grows while it is spoken."
orpheus speak --pcm "Hello there." | aplay -f S16_LE -r 24000
orpheus speak --file book.txt --long --guard
orpheus speak --reference me.wav --reference-text "What I say in it." "Hello there."    # pretrained bases
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from orpheus.config import DEFAULT_PROMPTS, ReadingOptions, RecogniserName, SamplingOptions, VoiceOptions
from orpheus.errors import UserError
from orpheus.tools.prompts import read_prompts

EMBEDDED_PROMPTS = ("Hello everyone my name is Elise, <giggles> and I can tell you a story.",
                    "<sighs> I have to work today, it is a terrible day.",
                    "Please open the window, <gasps> and close the door. <laughs>")  # fmt: skip
"""The samples of a voice that does not know the words of the others."""


@dataclass(frozen=True)
class SpeakOptions:
    """Speak tagged prompts with a trained voice and write WAV files (24 kHz, mono)."""

    prompts: tuple[str, ...] = field(default=(), metadata={"positional": True})
    """Texts to speak, with tags like <laughs> or <sighs>; '-', or none and a pipe: each line of stdin is one. Default:
    three samples."""
    file: Path | None = None
    """Speak each line of this UTF-8 text file."""
    voice: str | None = None
    """Voice for 'voice: text' prompts. Default: the one the adapter was trained on."""
    reference: Path | None = None
    """Speak in the voice of this recording: for pretrained bases, not tuned to a voice. Needs --reference-text."""
    reference_text: str | None = None
    """What is said in the reference."""
    out: Path = Path("generated_audio")
    """Folder for output_0.wav, output_1.wav, ...; for one text also a file: .wav, .flac, .mp3, .ogg or .opus."""
    overwrite: bool = False
    """Start at output_0.wav again instead of numbering on after the files that exist."""
    stream: bool = False
    """Write each WAV while it is spoken, one after another; texts of any length."""
    pcm: bool = False
    """Stream to standard output instead: raw samples, 16 bit little-endian, mono, 24 kHz. Messages go to stderr."""
    long: bool = False
    """Speak all lines as one text, into one WAV, streamed; blank lines end a paragraph."""
    batch_size: int = 8
    """Prompts spoken at once."""
    transcribe: RecogniserName = "none"
    """Print what a speech recogniser hears in each WAV, unless streamed; auto: if one is installed."""
    model: VoiceOptions = field(default_factory=VoiceOptions)
    sampling: SamplingOptions = field(default_factory=SamplingOptions)
    reading: ReadingOptions = field(default_factory=ReadingOptions)


def main(options: SpeakOptions) -> None:
    """Load the voice once, speak batch by batch, say what was written."""
    texts = read_prompts(options.prompts, options.file, options.long)
    check(options, texts)
    references = [(options.reference, options.reference_text or "")] if options.reference else []
    if options.stream or options.pcm or options.long:
        from orpheus.speak.live import speak_aloud

        return speak_aloud(texts, options.model, options.voice, options.sampling, options.reading,
                           folder=options.out, overwrite=options.overwrite, pcm=options.pcm,
                           references=references)  # fmt: skip
    from orpheus.hearing.recognise import find_recogniser
    from orpheus.speak.inference import load_voice

    recogniser = find_recogniser(options.transcribe)
    tts = load_voice(options.model)
    if texts == list(DEFAULT_PROMPTS) and tts.unknown_words(" ".join(texts)):
        texts = list(EMBEDDED_PROMPTS)
    for speech, path in tts.speak_to_files(texts, options.out, options.voice, options.sampling,
                                           batch_size=options.batch_size, overwrite=options.overwrite,
                                           reading=options.reading, references=references):  # fmt: skip
        print(
            f"{path}  {speech.duration_s:.2f} s, {speech.finish_reason}, seed {speech.seed}, "
            f"{speech.timings.tokens_per_s:.0f} tokens/s: {speech.text}"
        )
        for note in speech.guard:
            print(f"    guard: {note}")
        if recogniser:
            print(f"    recognised by {recogniser.name}: {recogniser.transcribe(speech.samples)}")


def check(options: SpeakOptions, texts: Sequence[str]) -> None:
    """What can't work is said now, before PyTorch is loaded."""
    if options.batch_size < 1:
        raise UserError(f"batch-size is {options.batch_size}, expected 1 or more")
    if options.transcribe != "none" and (options.stream or options.pcm or options.long):
        raise UserError("--transcribe needs whole speeches: leave out --stream, --pcm and --long")
    if bool(options.reference) != bool((options.reference_text or "").strip()):
        raise UserError("--reference and --reference-text belong together: a recording, and the words said in it")
    if options.reference and not options.reference.is_file():
        raise UserError(f"--reference: there is no file {options.reference}")
    from orpheus.speak.inference import check_speaking
    from orpheus.speak.names import check_out

    if not options.pcm:
        check_out(options.out, len(texts), options.overwrite, streamed=options.stream or options.long)
    check_speaking(options.model, texts, "" if options.reference and options.voice is None else options.voice)
