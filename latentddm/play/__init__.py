"""A local page to play with a run: the stage behind `latentddm play`."""

from latentddm.play.serving import serving

__all__ = ["serving"]
