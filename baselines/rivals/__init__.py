"""The same models in other people's implementations: what ours are timed against (`python -m harness.bench`).

A rival takes over the weights of one of our models, so both compute the same function and only the way there differs.
They are no families: nothing is trained with them.
"""
