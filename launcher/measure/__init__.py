"""What was measured: spans and the shares made of them."""
