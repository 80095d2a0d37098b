"""How one model is trained by several processes, or in less memory, without its results changing but by rounding.

A batch is the recipe's at any number of processes. Each takes every n-th row, `runtime.micro_batch` rows at a time;
every part's mean loss is weighted by its share of the batch, so the gradients that are summed over parts and averaged
over processes are those of the batch's mean. With the engine `ddp` every process holds the whole model; with `fsdp`
(FSDP2: `fully_shard`) a shard of every weight, gradient and moment, the weights of one block at a time being gathered.
Activation checkpointing keeps the inputs of blocks alone and computes the rest again on the way back (Chen et al.,
arXiv 1604.06174). torch.compile compiles block by block: equal blocks share the code of the first one, and what a
compiler does for a model lies within them.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch._inductor.config
from accelerate import Accelerator
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

from baselines.config import Unsupported
from harness.runtime import RuntimeConfig


class PeerLost(RuntimeError):
    """A process that trained along is gone, so this one cannot go on."""


def blocks(model: nn.Module) -> list[nn.Module]:
    """The blocks that a model stacks: what its outermost lists of modules hold."""
    found: list[nn.Module] = []
    for child in model.children():
        found += child if isinstance(child, nn.ModuleList) else blocks(child)
    return found


def recompute_blocks(model: nn.Module) -> None:
    """Checkpoint the activations of every block of `model`; Unsupported if it has none."""
    AsTrained(model, RuntimeConfig(activation_checkpointing=True)).install()


class AsTrained(contextlib.AbstractContextManager[None]):
    """Within, or once installed, the blocks of a model run as training runs them: compiled, computed twice, or plainly.

    A model without a list of blocks is compiled as a whole; that it cannot be computed twice is Unsupported.
    """

    def __init__(self, model: nn.Module, runtime: RuntimeConfig) -> None:
        found = blocks(model)
        if runtime.activation_checkpointing and not found:
            raise Unsupported(f"runtime.activation_checkpointing: {type(model).__name__} has no list of blocks")
        changed = runtime.compile or runtime.activation_checkpointing
        self.forwards = [(block, _forward(block, runtime)) for block in (found or [model])] if changed else []

    def install(self) -> None:
        """Let the blocks run so from now on."""
        for block, forward in self.forwards:
            block.forward = forward

    def __enter__(self) -> None:
        self.install()

    def __exit__(self, *_: object) -> None:
        for block, _forward in self.forwards:
            del block.forward


def _forward(block: nn.Module, runtime: RuntimeConfig) -> Callable[..., Any]:
    forward: Callable[..., Any] = block.forward
    if runtime.compile:
        torch._inductor.config.compile_threads = 1  # in this process, whose CPU seconds are counted
        forward = torch.compile(forward)
    if runtime.activation_checkpointing:
        forward = functools.partial(checkpoint, forward, use_reentrant=False)
    return forward


def spread(model: nn.Module, engine: str, accelerator: Accelerator) -> nn.Module:
    """`model` on the device, trained by all processes of `accelerator` together through what is returned."""
    if engine == "ddp" or accelerator.num_processes == 1:
        return accelerator.prepare_model(model)
    marked = [name for name, p in model.named_parameters() if getattr(p, "_no_weight_decay", False)]
    mesh = init_device_mesh(accelerator.device.type, (accelerator.num_processes,))
    model.to(accelerator.device)
    for part in [*blocks(model), model]:
        fully_shard(part, mesh=mesh)
    for name in marked:  # shards are parameters of their own
        model.get_parameter(name)._no_weight_decay = True  # type: ignore[attr-defined]
    return model


def shares(windows: Tensor, rank: int, world: int, micro_batch: int | None) -> list[tuple[Tensor, float]]:
    """The parts [b, L + 1] of the batch `windows` [B, L + 1] that process `rank` of `world` reads, with their weights.

    All have equally many parts, since each gathers the weights that others hold; where the rows of one have run out, a
    row of weight 0 stands in. Mean losses times weights, summed and averaged over processes, are the batch's mean.
    """
    rows, most = windows[rank::world], -(-len(windows) // world)
    size = micro_batch or most
    parts = [rows[start : start + size] for start in range(0, most, size)]
    return [(part if len(part) else rows[:1], len(part) * world / len(windows)) for part in parts]


def before_the_last(model: nn.Module) -> contextlib.AbstractContextManager[None]:
    """For all parts but the last: DDP averages gradients once a step; FSDP always, or whole ones would pile up."""
    return model.no_sync() if isinstance(model, DistributedDataParallel) else contextlib.nullcontext()


def whole_weights(model: nn.Module) -> dict[str, Tensor] | None:
    """All weights of a sharded model, on the CPU of the first process (others: empty); None if it is not sharded."""
    if not isinstance(model, FSDPModule):
        return None
    whole: dict[str, Any] = get_model_state_dict(
        model, options=StateDictOptions(full_state_dict=True, cpu_offload=True)
    )
    return whole


@contextlib.contextmanager
def peers() -> Iterator[None]:
    """Say in one line what a communication that broke off means."""
    try:
        yield
    except RuntimeError as error:
        if isinstance(error, torch.distributed.DistError) or "gloo" in str(error).lower():
            raise PeerLost(
                "a process that trained along has ended; the same command goes on from the last resume state"
            ) from error
        raise
