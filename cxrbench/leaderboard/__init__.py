"""Floor 4: records to tables."""
