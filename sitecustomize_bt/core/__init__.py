"""Values, rules and tools for everybody above: no torch, and no library of the host's."""
