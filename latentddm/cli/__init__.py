"""The command line: one file per verb, listed in registry.py; `main` runs one of them.

A verb parses its arguments, calls one plain function and returns an `Outcome`. Heavy imports are
within its `run`, so that help and completion are instant.
"""

from latentddm.cli.entry import main

__all__ = ["main"]
