"""Doctor: looks at the login node, or at a compute node, for what would hurt a run, and says what to do about it."""
