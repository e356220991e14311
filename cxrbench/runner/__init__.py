"""Floor 4: plan, schedule, run and score stages."""
