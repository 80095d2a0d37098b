"""Recall on made tasks: what a model can still look up in its context, as a figure of small models trained here."""
