"""Any data set -> checked clips -> SNAC codes -> token sequences, and a report of what was left out and why.

    records -> check (text, voice, recording, length) -> codes (cached on disk) -> training examples -> two splits

A clip is used whole or not at all. One that does not fit into `max_seq_length` is reported, never cut: cutting
takes end_of_speech away, and the model learns never to stop. No clip's codes are changed: dropping frames that
repeat would drop duration. At most two windows of audio are held at a time (`encoding`), so a data set may be of any
size, and many processes may each encode a part of it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import statistics
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from orpheus.audio import recordings
from orpheus.audio.recordings import SAMPLE_RATE_HZ
from orpheus.config import CorpusOptions
from orpheus.data.clips import Clip, Unfit, check_record, read_recording
from orpheus.data.encoding import Encoder, Part, read_ahead
from orpheus.data.oddities import warnings
from orpheus.data.sources import Progress, Source, open_source
from orpheus.data.usual import Heard, SpeechStatistics, learn
from orpheus.errors import UserError
from orpheus.format.prompt import Example, Renderer, tag_census
from orpheus.format.texts import census
from orpheus.format.tokens import FRAME_SLOTS, Codes
from orpheus.model.provenance import short_name

if TYPE_CHECKING:
    from datasets import Dataset

    from orpheus.codec.snac import SnacCodec


@dataclass(frozen=True)
class Rejection:
    """A clip that was left out: `reason` is one of a few words (too short, no text, ...), `detail` what was found."""

    name: str
    reason: str
    detail: str


@dataclass(frozen=True)
class Corpus:
    """Token sequences to train on, and what is known about the clips they came from.

    `train` and `validation` have the columns `input_ids` [L], `labels` [L] (int32) and `length` (= L).
    `clips` are the accepted ones; all lists keep the data set's order.
    """

    name: str
    train: Dataset
    validation: Dataset
    clips: list[Clip]
    rejections: list[Rejection]
    warnings: list[str]
    statistics: SpeechStatistics = field(default_factory=SpeechStatistics)  # what the guard goes by
    held_out: frozenset[int] = frozenset()  # the clips to validate on, by their index
    layout: str = ""  # how the data set was read: its columns and what they are for
    replay: dict[str, Any] = field(default_factory=dict)  # what of the base's own speech is in `train` (`data.replay`)

    @property
    def voices(self) -> tuple[str, ...]:
        """The speakers' names, sorted; empty for a data set without them."""
        return tuple(sorted({clip.voice for clip in self.clips if clip.voice}))

    @property
    def trained(self) -> list[Clip]:
        """The clips in `train`."""
        return [clip for i, clip in enumerate(self.clips) if i not in self.held_out]

    @property
    def tags(self) -> dict[str, int]:
        """How often each tag occurs, most frequent first."""
        return dict(tag_census(clip.text for clip in self.clips).most_common())

    @property
    def seconds(self) -> float:
        """Length of all accepted audio."""
        return math.fsum(clip.seconds for clip in self.clips)

    @property
    def data_hash(self) -> str:
        """SHA-256 over the samples, texts and voices of the accepted clips, whatever their order."""
        lines = sorted(json.dumps([clip.key, clip.text, clip.voice]) for clip in self.clips)
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()

    def about(self, dataset: str) -> dict[str, Any]:
        """What a provenance keeps of it (`Provenance.data`); `dataset`: what the user calls it."""
        left = Counter(rejection.reason for rejection in self.rejections)
        return {
            "name": short_name(dataset),
            "hub_id": dataset if dataset.count("/") == 1 and short_name(dataset) == dataset else None,
            "clips": len(self.clips),
            "seconds": round(self.seconds, 1),
            "left_out": dict(left.most_common()),
            **({"replay": self.replay} if self.replay else {}),
        }

    def summary(self) -> str:
        """A table in plain text: counts, lengths, voices, tags, repeated texts, what was rejected and why."""
        total = len(self.clips) + len(self.rejections)
        repeated = Counter(f"'{clip.text}'" for clip in self.clips)
        reasons = Counter(rejection.reason for rejection in self.rejections)
        rows = {
            "clips": f"{len(self.clips)} of {total} from {self.name}, {self.seconds / 60:.1f} min of speech",
            "read as": self.layout or "rows",
            "split": f"{len(self.train)} to train, {len(self.validation)} to validate",
            "seconds": _spread([clip.seconds for clip in self.clips], ".1f"),
            "tokens": _spread([clip.tokens for clip in self.clips], ".0f"),
            "voices": ", ".join(self.voices) or "one, without a name",
            "tags": _counts(self.tags) or "none",
            "texts": f"normalised: {changed}"
            if (changed := census(clip.changes for clip in self.clips))
            else "as given",
            "repeated": _counts({text: n for text, n in repeated.most_common(3) if n > 1}) or "no text twice",
            "rejected": f"{len(self.rejections)}: {_counts(dict(reasons.most_common()))}" if reasons else "none",
        }
        if self.replay:
            left = _counts(self.replay["left_out"])
            rows["replay"] = (f"{self.replay['utterances']} utterances of the base itself, among those to train "
                              f"({self.replay['seconds']:.0f} s, {_counts(self.replay['tags'])}"
                              f"{f'; left out: {left}' if left else ''})")  # fmt: skip
        table = [f"{name:>9}  {value}" for name, value in rows.items()]
        return "\n".join(table + [f"{'warning':>9}  {warning}" for warning in self.warnings])

    def save_report(self, path: str | Path) -> Path:
        """Write the summary and every rejected or doubtful clip as plain text. UserError if it can't be written."""
        path = Path(path)
        rejected = [f"{r.name}: {r.reason}: {r.detail}" for r in self.rejections]
        look = [f"{clip.name}: {finding}" for clip in self.clips for finding in clip.findings]
        lines = [self.summary(), "", "rejected clips:", *(rejected or ["none"]),
                 "", "accepted clips worth a look:", *(look or ["none"])]  # fmt: skip
        with recordings.atomic_path(path, overwrite=True) as partial:
            partial.write_text("\n".join(lines) + "\n", encoding="utf-8")
        return path


def prepare(options: CorpusOptions, codec: SnacCodec, renderer: Renderer, *, max_seq_length: int, seed: int,
            dataset: Any = None, progress: bool = True) -> Corpus:  # fmt: skip
    """Read, check, encode and render the data set that `options` name, or the `datasets.Dataset` given.

    `max_seq_length` is in tokens. The result depends on the data, the options and the seed, not on what was cached;
    after an interruption the next call goes on where this one stopped. `progress` is shown on stderr.

    UserError: an option is out of range, the data set can't be opened, no clip is fit, a larger share of them than
    `options.max_rejected` is unfit (the message names the report), or the cache can't be written.
    """
    source = _open(options, dataset)
    clips, rejections, codes = _read(source, Part(), options, codec, renderer, max_seq_length, progress)
    corpus = Corpus(source.name, table_of([]), table_of([]), clips, rejections, warnings(clips), layout=source.layout)
    held_out = _held_out([clip.text for clip in clips], options.validation_share, seed)
    parts: tuple[list[Clip], list[Clip]] = ([], [])
    for index, clip in enumerate(clips):
        parts[index in held_out].append(clip)
    train, validation = (
        table_of(renderer.example(clip.text, codes[clip.key], clip.voice) for clip in part) for part in parts
    )
    heard = (Heard(clip.text, clip.seconds, clip.loudness_db, clip.silence_s, codes[clip.key]) for clip in clips)
    return replace(corpus, train=train, validation=validation, held_out=frozenset(held_out), statistics=learn(heard))


def encode_part(part: Part, options: CorpusOptions, codec: SnacCodec, renderer: Renderer, *, max_seq_length: int,
                dataset: Any = None, progress: bool = True) -> tuple[list[Clip], list[Rejection]]:  # fmt: skip
    """Read, check and encode a part of what `prepare` would, into the same cache; -> its clips and rejections.

    When every part is done, `prepare` reads and checks the whole and finds all codes. How many clips may be unfit is
    for it to judge. UserError as there.
    """
    clips, rejections, _ = _read(_open(options, dataset), part, options, codec, renderer, max_seq_length, progress)
    return clips, rejections


def _open(options: CorpusOptions, dataset: Any) -> Source:
    _check_options(options)
    return open_source(options, dataset)


def _read(source: Source, part: Part, options: CorpusOptions, codec: SnacCodec, renderer: Renderer,
          max_seq_length: int, progress: bool) -> tuple[list[Clip], list[Rejection], dict[str, Codes]]:  # fmt: skip
    clips: list[Clip] = []
    rejections: list[Rejection] = []
    most_s = max_seq_length / FRAME_SLOTS * codec.samples_per_frame / SAMPLE_RATE_HZ
    read = partial(read_recording, min_seconds=options.min_seconds, max_seconds=most_s)
    with (
        contextlib.closing(Progress(part.size(source.count), progress)) as shown,
        Encoder(codec, Path(options.cache_dir), shown) as encoder,
        contextlib.closing(read_ahead(part.of(source.records()), read)) as recordings,
    ):  # fmt: skip
        for record, recording in recordings:
            try:
                clip, samples = check_record(record, codec, renderer, options.min_seconds, max_seq_length, recording)
            except Unfit as unfit:
                rejections.append(Rejection(record.name, unfit.reason, str(unfit)))
                shown.add(0.0)
                continue
            clips.append(clip)
            if part.count != 1 or len(rejections) / source.count <= options.max_rejected:
                encoder.add(clip.key, samples)
        if part.count == 1:
            corpus = Corpus(
                source.name, table_of([]), table_of([]), clips, rejections, warnings(clips), layout=source.layout
            )
            _refuse_too_many(corpus, options)
        encoder.flush()
    return clips, rejections, encoder.codes


def _check_options(options: CorpusOptions) -> None:
    checks = (
        ("max_rejected", 0 <= options.max_rejected <= 1, "0..1"),
        ("validation_share", 0 <= options.validation_share < 1, "0 or more, below 1"),
        ("min_seconds", options.min_seconds >= 0, "0 or more"),
        ("limit", options.limit >= 0, "0 or more"),
    )
    for name, good, expected in checks:
        if not good:
            raise UserError(f"{name} is {getattr(options, name)}, expected {expected}")


def _refuse_too_many(corpus: Corpus, options: CorpusOptions) -> None:
    rejected, total = len(corpus.rejections), len(corpus.clips) + len(corpus.rejections)
    if total == 0:
        raise UserError(f"{corpus.name} holds no clips")
    share = rejected / total
    if corpus.clips and share <= options.max_rejected:
        return
    report = corpus.save_report(Path(options.cache_dir) / "rejected.txt")
    reasons = _counts(dict(Counter(rejection.reason for rejection in corpus.rejections).most_common(3)))
    if not corpus.clips:
        raise UserError(f"none of the {total} clips of {corpus.name} can be used ({reasons}): {report} lists them")
    raise UserError(
        f"{rejected} of the {total} clips of {corpus.name} can't be used ({reasons}): {share:.1%}, and "
        f"{options.max_rejected:.1%} are allowed. {report} lists them: mend them, or train without them "
        f"by --max-rejected {math.ceil(100 * rejected / total) / 100:g}"
    )


def _held_out(texts: Sequence[str], share: float, seed: int) -> set[int]:
    """The clips to validate on. Clips with the same text stay together: the model must not have seen it.

    Texts are drawn by a hash of seed and text, so the choice does not depend on the order of the clips.
    """
    wanted = min(max(round(share * len(texts)), int(share > 0 and len(texts) >= 10)), len(texts) - 1)
    groups: dict[str, list[int]] = defaultdict(list)
    for index, text in enumerate(texts):
        groups[text.casefold()].append(index)
    drawn = sorted(groups, key=lambda text: hashlib.sha256(f"{seed} {text}".encode()).digest())
    chosen: set[int] = set()
    for text in drawn:
        if len(chosen) + len(groups[text]) <= wanted:
            chosen.update(groups[text])
    if wanted > 0 and not chosen and len(groups) > 1:  # every text is used too often to fit
        chosen.update(groups[min(drawn, key=lambda text: len(groups[text]))])
    return chosen


def table_of(examples: Iterable[Example]) -> Dataset:
    """Sequences as a data set with the columns that `Corpus` names."""
    import pyarrow as pa
    from datasets import Dataset

    ids, labels = [np.zeros(0, np.int32)], [np.zeros(0, np.int32)]
    for example in examples:
        ids.append(np.asarray(example.input_ids, np.int32))
        labels.append(np.asarray(example.labels, np.int32))
    lengths = [len(row) for row in ids[1:]]
    offsets = np.cumsum([0, *lengths], dtype=np.int32)
    columns = {"input_ids": pa.ListArray.from_arrays(offsets, np.concatenate(ids)),
               "labels": pa.ListArray.from_arrays(offsets, np.concatenate(labels)),
               "length": pa.array(lengths, pa.int32())}  # fmt: skip
    return Dataset(pa.table(columns))


def _spread(values: Sequence[float], form: str) -> str:
    return (f"{min(values):{form}} shortest, {statistics.median(values):{form}} median, "
            f"{max(values):{form}} longest") if values else "none"  # fmt: skip


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in counts.items())
