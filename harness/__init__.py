"""The instrument: composes a comparison, trains or loads models, gates, scores and times them, and reports."""
