"""How a rival says that it cannot take part here."""


class NotInstalled(Exception):
    """What is missing and how to get it, in one line."""
