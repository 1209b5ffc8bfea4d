"""Showing it: summary and report."""
