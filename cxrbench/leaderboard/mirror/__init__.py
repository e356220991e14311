"""The leaderboard at Weights & Biases: tables, curves, the site, and a report."""
