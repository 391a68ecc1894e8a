"""How nets are trained: devices, steps, schedules, checkpoints, logs and evaluation."""
