"""The whole path on one machine in minutes; it only calls the stages that the other verbs call."""

from latentddm.demo.config import DemoConfig
from latentddm.demo.stages import run_demo

__all__ = ["DemoConfig", "run_demo"]
