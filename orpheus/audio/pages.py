"""Reports as one HTML file each: players, spectrograms and tables inside it, and nothing from elsewhere.

Every text is escaped by the functions here; `Html` marks what is markup already.
"""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np

from orpheus.audio.recordings import SAMPLE_RATE_HZ, atomic_path, to_bytes

STYLE = """
:root { color-scheme: light dark; --line: color-mix(in srgb, currentColor 20%, transparent); }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 64rem; margin: 2rem auto; padding: 0 1rem; }
h1 { line-height: 1.2; } h2 { margin-top: 2.5rem; } figure { margin: 0.5rem 0; }
table { border-collapse: collapse; width: 100%; } caption { text-align: left; font-weight: 600; }
th, td { text-align: left; vertical-align: top;
  padding: 0.35rem 0.75rem 0.35rem 0; border-bottom: 1px solid var(--line); }
audio { width: 16rem; height: 2rem; vertical-align: middle; } img { max-width: 100%; }
.bad { color: #c62828; } .good { color: #2e7d32; } .quiet { opacity: 0.7; }
"""
PICTURE_BANDS, PICTURE_COLUMNS = 96, 480  # of a spectrogram, in pixels
FLOOR_DB, TOP_DB = -100.0, -25.0
NFFT = 512


class Html(str):
    """Markup that is shown as such; any other string is shown letter by letter."""


def escaped(text: object) -> Html:
    """Anything as markup: `Html` as it is, the rest letter by letter."""
    return text if isinstance(text, Html) else Html(html.escape(str(text)))


def tag(name: str, *content: object, **attributes: str) -> Html:
    """An element: tag("p", "1 < 2", class_="quiet")."""
    described = "".join(f' {key.rstrip("_")}="{html.escape(value)}"' for key, value in attributes.items())
    return Html(f"<{name}{described}>{''.join(map(escaped, content))}</{name}>")


def table(head: Sequence[object], rows: Iterable[Sequence[object]], caption: str = "") -> Html:
    """A table with a row of headings."""
    above = tag("tr", *(tag("th", cell, scope="col") for cell in head))
    below = [tag("tr", *(tag("td", cell) for cell in row)) for row in rows]
    return tag("table", tag("caption", caption) if caption else "", tag("thead", above), tag("tbody", *below))


def player(samples: np.ndarray, label: str, comment: str = "") -> Html:
    """A player of a sound, float32 [N] at 24 kHz, as MP3 inside the page. `label`: what a screen reader says;
    `comment`: what the MP3 says of itself."""
    data = base64.b64encode(to_bytes(samples, "mp3", comment=comment)).decode()
    return Html(f'<audio controls preload="none" aria-label="{html.escape(label)}" '
                f'src="data:audio/mpeg;base64,{data}"></audio>')  # fmt: skip


def spectrogram(samples: np.ndarray, label: str) -> Html:
    """A picture of a sound, float32 [N] at 24 kHz: time to the right, 0 to 12 kHz upwards."""
    from matplotlib import colormaps
    from matplotlib.image import imsave

    padded = np.pad(samples, (NFFT // 2, NFFT))
    step = max(NFFT // 4, len(samples) // PICTURE_COLUMNS + 1)
    frames = np.lib.stride_tricks.sliding_window_view(padded, NFFT)[::step] * np.hanning(NFFT)
    power = np.abs(np.fft.rfft(frames)).T ** 2 / NFFT**2
    rows = np.linspace(0, len(power), PICTURE_BANDS + 1).astype(int)[:-1]
    level_db = 10 * np.log10(np.add.reduceat(power, rows) + 1e-12)
    shade = np.clip((level_db - FLOOR_DB) / (TOP_DB - FLOOR_DB), 0, 1)
    return picture(lambda file: imsave(file, colormaps["magma"](shade[::-1]), format="png"), label,
                   f"{len(samples) / SAMPLE_RATE_HZ:.1f} s")  # fmt: skip


def picture(save: Callable[[BinaryIO], object], label: str, title: str = "") -> Html:
    """A PNG inside the page. `save`: writes it into the binary file that it is given."""
    file = io.BytesIO()
    save(file)
    data = base64.b64encode(file.getvalue()).decode()
    return Html(f'<img alt="{html.escape(label)}" title="{html.escape(title)}" src="data:image/png;base64,{data}">')


def write_page(path: Path, title: str, *body: object) -> Path:
    """The whole page, in one file that replaces an earlier one only when it is complete."""
    content = "\n".join(map(escaped, body))
    with atomic_path(path) as partial:
        partial.write_text(
            f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title>\n'
            f'<meta name="viewport" content="width=device-width">\n<style>{STYLE}</style></head>\n'
            f"<body><main>\n<h1>{html.escape(title)}</h1>\n{content}\n</main></body></html>\n",
            encoding="utf-8",
        )
    return path
