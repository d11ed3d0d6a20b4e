"""What is done to one model: looked at, decided on, applied to, reverted."""
