"""Fused operators for a CPU: plain C++ compiled at first use by the machine's own compiler.

build.py        source -> shared library, cached for the user and loaded once
vector.h        vectors as wide as the machine's, their exp and sigmoid, threads
tile.h          small matrices that stay in cache: products, tokens in lanes
problem.h, inner_step.h, gelu.h     what the two learners share
ttt_linear.cpp, ttt_mlp.cpp         the inner loop, forward and backward; arguments.py, fused_cpu.py call them
rows.h                              rows of numbers in vectors, tokens over threads
pointwise.cpp, pointwise.py         what lies between the products of a block
convolve.cpp, convolve.py           the causal convolutions, with or without their SiLU
decode.cpp, decode.py               one token through all blocks in one call
"""
