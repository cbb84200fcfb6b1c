"""Ways to turn prompt ids into token ids. Every engine yields ids, never strings; nothing loads at import."""
