"""Scores and their intervals in NumPy and float64: no torch, no scikit-learn, no SciPy."""
