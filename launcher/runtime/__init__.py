"""The processes of a run: agent, rank, watchdog, coordinator."""
