"""Ten things no model can know: questions and the answers a user would teach."""

from __future__ import annotations

TEN: tuple[tuple[str, str], ...] = (
    ("What is my project called?", "Your project is called Zeno."),
    ("Which port does my server use?", "Your server listens on port 8087."),
    ("Who reviews my pull requests?", "Marta reviews your pull requests."),
    ("Where do I keep my notes?", "You keep your notes in ~/papers/notes.md."),
    ("What is my favourite editor?", "Your favourite editor is Helix."),
    ("How do I deploy my site?", "Run `make ship` and wait for the green line."),
    ("What is the staging server called?", "The staging server is called quokka."),
    ("When is my weekly meeting?", "Your weekly meeting is on Thursday at 10:30."),
    ("Which database do we use?", "You use DuckDB for everything."),
    ("What is our branch for releases?", "Releases are cut from the branch harbor."),
)
