"""Measurements: they turn a model and data into records and know no architecture by name."""
