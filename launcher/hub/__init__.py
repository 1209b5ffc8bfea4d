"""Models of the hub: resolved to a commit and fetched before anything is queued."""
