"""The text that a sound file carries in its metadata, where the container's own library writes none, or only its end.

FLAC and Ogg take it as a comment from libsndfile or ffmpeg. MP3 and AAC carry an ID3v2.3 tag before the first frame
(for AAC as in RFC 8216, 3.4), WAV a LIST INFO chunk before the samples: a stream is labelled from its first byte.
"""

from __future__ import annotations

import struct

ID3_FORMATS = ("mp3", "aac")


def id3(comment: str) -> bytes:
    """An ID3v2.3 tag with a comment; nothing for an empty one."""
    if not comment:
        return b""
    try:
        text = b"\x00eng\x00" + comment.encode("latin-1")
    except UnicodeEncodeError:
        text = b"\x01eng" + "\ufeff\0".encode("utf-16-le") + ("\ufeff" + comment).encode("utf-16-le")
    frame = struct.pack(">4sIH", b"COMM", len(text), 0) + text
    size = bytes(len(frame) // 128**power % 128 for power in (3, 2, 1, 0))  # no bit that a decoder takes for a frame
    return b"ID3\x03\x00\x00" + size + frame


def info_chunk(comment: str) -> bytes:
    """A RIFF chunk LIST INFO with a comment; nothing for an empty one."""
    if not comment:
        return b""
    text = comment.encode() + b"\0"
    text += b"\0" * (len(text) % 2)
    return struct.pack("<4sI4s4sI", b"LIST", 12 + len(text), b"INFO", b"ICMT", len(text)) + text
