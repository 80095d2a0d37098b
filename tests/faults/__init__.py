"""Faults that comparisons of this kind have been published with, planted here one by one, and what catches each."""
