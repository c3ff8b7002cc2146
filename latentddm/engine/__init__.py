"""What training anything needs: config, run folder, checkpoints, EMA, processes, guard rails."""
