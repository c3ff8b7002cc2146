"""Reports: the demo's page with its report.json (here), an autoencoder's (reconstruction.py)."""

from latentddm.report.page import write_report

__all__ = ["write_report"]
