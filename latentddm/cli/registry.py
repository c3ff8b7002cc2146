"""The verbs: their modules in this folder, in the groups and the order of `latentddm --help`.

One more verb: a file here that defines VERB, and its name on one line of GROUPS.
"""

from __future__ import annotations

from importlib import import_module

from latentddm.cli.verb import Verb

GROUPS: dict[str, list[str]] = {
    "begin here": [
        "demo",
    ],
    "images to latents": [
        "train_autoencoder",
        "evaluate_autoencoder",
        "encode",
        "import_latents",
        "verify",
    ],
    "train": [
        "train",
        "distill",
    ],
    "use a run": [
        "sample",
        "ema",
        "decode",
        "evaluate",
        "play",
        "export",
    ],
    "this program": [
        "completion",
    ],
}


def load_verbs() -> dict[str, list[Verb]]:
    """The verbs of each group, imported from their modules."""
    return {
        group: [import_module(f"latentddm.cli.{name}").VERB for name in names]
        for group, names in GROUPS.items()
    }
