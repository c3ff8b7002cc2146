"""`python -m latentddm` is the `latentddm` command."""

import sys

from latentddm.cli import main

sys.exit(main())
