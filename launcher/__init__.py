"""Batch generation with language models too big for one GPU, and the account of where the time went."""

__version__ = "0.1.0"
