"""The loop: optimisers, schedules, checkpoints, one run."""
