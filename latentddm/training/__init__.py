"""Trains generators: the config, the objective, the phases, distillation."""
