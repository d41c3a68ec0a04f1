"""Data sets: loaded, streamed, and made into messages."""
