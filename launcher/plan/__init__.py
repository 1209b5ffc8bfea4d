"""What will happen: shapes, memory, placement."""
