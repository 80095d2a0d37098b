"""Every model of the harness behind the interface of lm-eval, and a task of our own that needs no network.

lm-eval is an optional extra: this package is imported only where `tasks` are asked for.
"""
