"""The training engine of every trainer: config, run folder, checkpoints, averages, processes."""
