"""Where it runs: one module per value of the scheduler."""
