"""What strategies are made of: weights, cache, stages, gang."""
