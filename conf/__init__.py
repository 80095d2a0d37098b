"""What to compare: YAML only. A package, so that the files travel with it."""
