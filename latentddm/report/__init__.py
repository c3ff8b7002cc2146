"""The demo's report: report.json and one self-contained report.html beside its pictures."""

from latentddm.report.page import write_report

__all__ = ["write_report"]
