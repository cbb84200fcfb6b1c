"""The check-up on recordings of people with sixty faults planted in them: most are named by their cause."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

import pytest

from orpheus.config import CorpusOptions
from orpheus.data.checkup.examine import examine
from orpheus.tools.checkup import MAX_SECONDS, DoctorOptions, listen_with
from tests.support.planted import judged, plant, read_corpus
from tests.support.real_recordings import corpus

pytestmark = pytest.mark.real


@pytest.mark.parametrize(("language", "others", "seed"), [("en", "it", 1), ("en", "fr", 2), ("fr", "it", 1),
                                                          ("it", "en", 2)])  # fmt: skip
def test_nine_of_ten_planted_faults_are_named_by_their_cause(language, others, seed, tmp_path):
    pytest.importorskip("resemblyzer", reason="strangers are found by Resemblyzer")
    folders = [corpus(language), corpus(others)]
    if None in folders:
        pytest.skip("no real recordings: make test-real fetches them")
    planted = plant(tmp_path, *(read_corpus(folder) for folder in folders), seed=seed)
    recogniser = "auto" if language == "en" else "none"  # tiny.en knows English only
    ears = listen_with(DoctorOptions(recogniser=recogniser, language=language))
    if language == "en" and ears.recogniser is None:
        pytest.skip("no recogniser: requirements-dev.txt")
    up = examine(CorpusOptions(dataset=str(tmp_path), cache_dir=tmp_path), ears, MAX_SECONDS, progress=False)
    found = defaultdict(set)
    for finding in up.faults():
        for named in finding.clips:
            found[Path(named.clip.name).name].add(finding.kind)
    result = judged(planted, found, [Path(clip.name).name for clip in up.clips])
    print(language, seed, result)
    assert result["found"] >= 0.9 and result["false"] <= 0.03, result
