"""Values, rules and tools for all other rooms: no torch, and no library of the host's."""
