"""What was asked: the spec, its site profile and its prompts."""
