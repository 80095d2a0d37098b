"""The one error that a checkpoint can cause, so that the command line knows what is the file's fault."""


class CheckpointError(ValueError):
    """A checkpoint that cannot be converted; the message is one line, made for the person who holds the file."""
