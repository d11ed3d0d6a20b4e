"""What is done to one model."""
