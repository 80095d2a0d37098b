"""The time that no kernel can beat: what has to be moved, multiplied, and done one after the other.

For every token of a head of width f, h = 4 f the hidden layer of TTT-MLP, mini-batches of K = 16 tokens, bf16 tokens
(2 bytes a number) and float32 state:

    bytes     forward    q, k, v in, out out, lr                            8 f + 4
              backward   q, k, v, dout in, dq, dk, dv out, lr, dlr          14 f + 8
                         Ghat, saved by the forward and read again          4 f, or 4 (f + h)
              decode     W read, and written once in K tokens; the rows of half an open mini-batch read, one written
    products  forward    TTT-Linear  6 f^2 + 4 K f           TTT-MLP  14 f h + 4 K (f + h)
              backward   TTT-Linear  18 f^2 + 12 K f         TTT-MLP  44 f h
    chain     a mini-batch begins when the one before has updated W: no fewer clocks than the dependent products, sums
              over features and barriers of one mini-batch take

State in and out of each sequence is added to the bytes. Memory and tensor floors divide by what the device was measured
to copy and multiply in the same run. The clocks of a mini-batch are counted on paper; they are a prediction.
"""

from typing import NamedTuple

from ttt_impl.kernels.bench.work import Work

K = 16
CHAIN = {("linear", "forward"): 550, ("linear", "train"): 550 + 1300, ("mlp", "forward"): 2400}
"""Clocks of a mini-batch; for TTT-MLP's backward pass nobody has counted them."""
CLOCK = 1.8e9
"""Clocks a second, of an H200 at work."""


class Ceilings(NamedTuple):
    """What the device was measured to do."""

    copy: float
    """Bytes read and written a second."""
    products: float
    """bf16 floating-point operations a second."""


class Floors(NamedTuple):
    """Seconds that the work takes at least."""

    memory: float
    tensor: float
    latency: float | None
    """None: not counted."""


def floors(work: Work, ceilings: Ceilings) -> Floors:
    """All three; the largest is the one that counts."""
    latency = CHAIN.get((work.learner, work.task))
    chain = None if latency is None else -(-work.length // K) * latency / CLOCK
    return Floors(moved(work) / ceilings.copy, operations(work) / ceilings.products, chain)


def moved(work: Work) -> float:
    """Bytes."""
    f, h = work.width, 4 * work.width
    linear = work.learner == "linear"
    state = 4 * ((f + 1) * f if linear else (f + 1) * h + (h + 1) * f)
    rows = 4 * (2 * f if linear else 2 * f + 2 * h)
    if work.task == "decode":
        return work.tokens * work.heads * (8 * f + 4 + state * (1 + 1 / K) + rows * (K + 1) / 2)
    token = 8 * f + 4
    if work.task == "train":
        token += 14 * f + 8 + 4 * (f if linear else f + h)
        state *= 2
    return work.heads * (work.tokens * token + work.batch * 2 * state)


def operations(work: Work) -> float:
    """Multiplications and additions in products of matrices."""
    f, h = work.width, 4 * work.width
    if work.learner == "linear":
        forward, backward = 6 * f * f + 4 * K * f, 18 * f * f + 12 * K * f
    else:
        forward, backward = 14 * f * h + 4 * K * (f + h), 44 * f * h
    return work.tokens * work.heads * (forward + backward * (work.task == "train"))
