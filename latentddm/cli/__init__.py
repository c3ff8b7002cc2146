"""The command line: one file per verb, listed in registry.py; `main` runs one of them.

A verb parses, calls one plain function and says what came of it. Its file imports what is heavy
inside its `run`, so that help and completion are instant.
"""

from latentddm.cli.entry import main

__all__ = ["main"]
