"""What a release of somebody else's can break: private names and differences between versions."""
