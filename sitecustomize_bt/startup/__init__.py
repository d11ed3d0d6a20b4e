"""What runs in every interpreter where the hook is on. Standard library only."""
