"""Ours against peers, side by side: data, statistics, training, planning, the command line."""
