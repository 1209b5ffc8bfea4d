"""Logging set-up shared by the processes."""
