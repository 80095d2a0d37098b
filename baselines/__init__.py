"""Sequence-model families behind one interface: one file a family, found by name, listed nowhere."""
