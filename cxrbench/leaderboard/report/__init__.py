"""Model cards and reporting checklists, filled from records."""
