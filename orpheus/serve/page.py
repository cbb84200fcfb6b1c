"""The web page of the server: the files of `orpheus/serve/web/` joined into one, and the policy it is served with.

The page needs nothing but itself and the server's own routes. Its Content-Security-Policy allows exactly that: the
styles and scripts that are in it, by their hashes, and requests to where it came from.
"""

from __future__ import annotations

import base64
import hashlib
import re
from functools import cache
from pathlib import Path

WEB_DIR = Path(__file__).resolve().parent / "web"
_ASSET = re.compile(r'<link rel="stylesheet" href="(?P<style>[\w.]+)">|<script src="(?P<script>[\w.]+)"></script>')


@cache
def page() -> bytes:
    """The whole page, UTF-8: index.html with its style sheet and scripts written into it."""

    def inline(match: re.Match[str]) -> str:
        tag = str(match.lastgroup)
        content = (WEB_DIR / match[tag]).read_text(encoding="utf-8")
        assert f"</{tag}" not in content, f"{match[tag]} would end its own element"
        return f"<{tag}>\n{content}</{tag}>"

    return _ASSET.sub(inline, (WEB_DIR / "index.html").read_text(encoding="utf-8")).encode()


@cache
def headers() -> dict[str, str]:
    """The headers that belong to the page: its type, and what it may do and load."""
    return {
        "Content-Type": "text/html; charset=utf-8",
        "Content-Security-Policy": _policy(page().decode()),
        "Referrer-Policy": "no-referrer",
        "X-Content-Type-Options": "nosniff",
        "Cache-Control": "no-cache",  # a newer server has a newer page
    }


def _policy(html: str) -> str:
    def hashes(tag: str) -> str:
        contents = re.findall(rf"<{tag}>(.*?)</{tag}>", html, re.DOTALL)
        digests = (base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in contents)
        return " ".join(f"'sha256-{digest}'" for digest in digests)

    return "; ".join((
        "default-src 'none'",
        f"script-src {hashes('script')}",
        f"style-src {hashes('style')}",
        "img-src data:",  # the icon
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
    ))  # fmt: skip
