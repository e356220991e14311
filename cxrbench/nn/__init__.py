"""Floor 2: torch blocks without Lightning."""
