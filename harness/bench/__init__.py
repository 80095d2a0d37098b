"""Benchmarks on the CPU: our models against the same models elsewhere (`python -m harness.bench`).

The other measurements compare models; this one compares implementations. So it is the one place in the instrument
that names families and rivals: `cases.py` is the list.
"""
