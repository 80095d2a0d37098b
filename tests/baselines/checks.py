"""What is asked of every family alike, on a small model of it."""

from __future__ import annotations

import copy
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM

from baselines.interface import SequenceModel

VOCAB = 61
SPLITS = [[29], [1] * 29, [13, 1, 15], [2, 3, 24], [28, 1], [1, 28]]


def tokens(rows: int, length: int) -> Tensor:
    """The same random token ids [rows, length] each time."""
    return torch.randint(VOCAB, (rows, length), generator=torch.Generator().manual_seed(rows * 1000 + length))


def disturb(model: SequenceModel) -> SequenceModel:
    """`model` in evaluation mode with every parameter off its initial value, so that none can hide."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.model.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    model.model.eval()
    return model


@torch.no_grad()
def any_split_is_one_pass(model: SequenceModel, dtype: torch.dtype, bound: float) -> None:
    """Logits of prompts fed in pieces are those of one forward."""
    model = copy.deepcopy(model)
    model.model.to(dtype)
    ids = tokens(3, 29)
    whole = model.forward(ids)
    assert whole.dtype == dtype
    for split in SPLITS:
        state, parts, start = None, [], 0
        for size in split:
            logits, state = model.prefill(ids[:, start : start + size], state, logits_to_keep=0)
            parts.append(logits)
            start += size
        torch.testing.assert_close(torch.cat(parts, 1), whole, rtol=0, atol=bound, msg=lambda m, s=split: f"{s}: {m}")


def float64_is_kept(model: SequenceModel) -> None:
    """A step too small for float32 moves the loss by what its gradient says: nothing on the way rounds to float32."""
    model, ids, step = copy.deepcopy(model), tokens(2, 23), 1e-8
    parameters = list(model.model.double().parameters())
    generator = torch.Generator().manual_seed(0)
    directions = [torch.randn(p.shape, generator=generator, dtype=p.dtype) for p in parameters]

    def loss() -> Tensor:
        return model.forward(ids).logsumexp(-1).mean()

    slope = sum((g * d).sum() for g, d in zip(torch.autograd.grad(loss(), parameters), directions, strict=True))
    with torch.no_grad():
        ends = []
        for signed in (step, -2 * step):
            for parameter, direction in zip(parameters, directions, strict=True):
                parameter.add_(direction, alpha=signed)
            ends.append(loss())
    torch.testing.assert_close((ends[0] - ends[1]) / (2 * step), slope, rtol=1e-5, atol=1e-6)


@torch.no_grad()
def rows_are_independent(model: SequenceModel) -> None:
    """Each row of a batch gets, within rounding, the logits that it gets alone."""
    ids = tokens(4, 17)
    alone = torch.cat([model.forward(row[None]) for row in ids])
    torch.testing.assert_close(model.forward(ids), alone, rtol=0, atol=1e-5)


@torch.no_grad()
def generate_follows_forward(model: SequenceModel) -> None:
    """Greedy: each new token is the argmax of a plain forward; sampling and beams run and keep the prompt."""
    prompt = tokens(2, 7)
    greedy = model.model.generate(prompt, max_new_tokens=9, do_sample=False)
    assert greedy.shape == (2, 16)
    torch.testing.assert_close(greedy[:, 7:], model.forward(greedy[:, :-1])[:, 6:].argmax(-1), rtol=0, atol=0)
    for options in ({"do_sample": True}, {"num_beams": 3, "do_sample": False}):
        drawn = model.model.generate(prompt, max_new_tokens=5, **options)
        assert drawn.shape == (2, 12)
        torch.testing.assert_close(drawn[:, :7], prompt, rtol=0, atol=0)


@torch.no_grad()
def stock_transformers_loads_it(model: SequenceModel, folder: Path) -> None:
    """A saved model gives the same logits through `AutoModelForCausalLM`."""
    model.save(folder)
    stock = AutoModelForCausalLM.from_pretrained(folder).eval()
    ids = tokens(2, 20)
    torch.testing.assert_close(stock(ids).logits, model.forward(ids), rtol=0, atol=1e-5)


def counted_flops(model: SequenceModel, length: int) -> dict[str, int]:
    """What torch's counter sees of one row in each mode of `flops`: matrix products and convolutions."""
    counts, ids, in_place = {}, tokens(1, length + 1), {torch.ops.aten.baddbmm_: _products}
    with FlopCounterMode(display=False, custom_mapping=in_place) as counter:
        model.model(ids[:, :-1], use_cache=False).logits.sum().backward()
    counts["train"] = counter.get_total_flops()
    with torch.no_grad():
        with FlopCounterMode(display=False, custom_mapping=in_place) as counter:
            _, state = model.prefill(ids[:, :-1])
        counts["prefill"] = counter.get_total_flops()
        with FlopCounterMode(display=False, custom_mapping=in_place) as counter:
            model.step(ids[:, -1:], state)
        counts["step"] = counter.get_total_flops()
    return counts


def _products(_: torch.Size, left: torch.Size, right: torch.Size, **shapes: torch.Size) -> int:
    """Operations of left [b, n, k] @ right [b, k, m], which torch does not count where the result is added in place."""
    return 2 * left.numel() * right[-1]
