"""Fused operators for a CPU: plain C++ compiled at first use by the machine's own compiler.

build.py     source -> shared library, cached for the user and loaded once
vector.h     vectors as wide as the machine's, their exp and sigmoid, threads
"""
