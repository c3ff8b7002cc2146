"""One vocabulary: words that latentddm does without, and the words in their place."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROOMS = ("latentddm", "autoencoder", "configs", "tools")
SUFFIXES = {".py", ".md", ".yaml", ".html", ".js", ".css"}
INSTEAD = {
    r"particles?": "draws",
    r"hears?|deaf": "reads, depends on",
    r"(is|are|be) told": "given",
    r"wants?": "needs, requires",
    r"laws? of": "distribution of",
    r"does not suffice": "out of memory",
    r"keeper": "checkpoint manager",
    r"rehears\w*": "dry run",
    r"symptoms?": "diagnostics",
    r"sitters?": "face parameters",
    r"adversary": "discriminator",
    r"likeness|unlikeness": "reconstruction loss",
    r"RequestError|WorkError": "UserError, JobError",
}


@pytest.mark.parametrize("word", INSTEAD)
def test_a_word_is_not_used(word: str) -> None:
    pattern = re.compile(rf"\b({word})\b", re.IGNORECASE)
    found = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
        for room in ROOMS
        for path in sorted((ROOT / room).rglob("*"))
        if path.suffix in SUFFIXES and "results" not in path.parts
        for number, line in enumerate(path.read_text("utf-8").splitlines(), 1)
        if pattern.search(line)
    ]
    assert not found, f"write {INSTEAD[word]!r}:\n" + "\n".join(found)
