"""Floor 3: data sets, splits and pixels."""
