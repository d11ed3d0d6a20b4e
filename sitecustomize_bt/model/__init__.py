"""What is done to one model: it is looked at, decided on, accelerated and reverted."""
