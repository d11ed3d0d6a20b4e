"""What a new release of another library can break: private names, differences of versions."""
