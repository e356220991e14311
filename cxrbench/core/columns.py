"""The names in a `predictions.parquet`, which `predict` writes and scores, tables and pages read."""

FILE = "predictions.parquet"
TARGET, PROBABILITY = "target:", "probability:"  # + a label's name
# What may be known of a patient or an image besides, for scores of subgroups.
ATTRIBUTES = ("sex", "age", "view_position")
