"""TTT-Linear and TTT-MLP as fused CUDA kernels, compiled at first use for the GPU at hand.

*.cu, *.cuh      the kernels, CUDA C++ without any header: `README.md` leads from the equations to the steps
arguments.py     what a launch hands over, and how large each kernel is
compiler.py      source -> cubin: cuda-core's NVRTC with a cache on disk, else NVRTC itself, else nvcc
loader.py        cubin -> launch on torch's current stream
emulator.h, emulation.py    the same sources compiled by g++ and run on a CPU, thread by thread
operators.py, operators_mlp.py     torch operators with fake kernels and autograd
fused_cuda.py    does a call fit, and run it
choice.py, self_check.py, bounds.py    what `ops.py` asks: whether the kernels take a call, and are right on this device
compile_report.py, machine_code.py     what the compiler made of them, beside its limits
bench/           right and how fast, on a GPU
"""
