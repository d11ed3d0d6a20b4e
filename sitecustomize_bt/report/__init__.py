"""What was decided, kept and told."""
