"""How a model is split: one module per value of `parallel.strategy`."""
