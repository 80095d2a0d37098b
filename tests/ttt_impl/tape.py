"""A CUDA graph without CUDA: the operations of one run, held with their arguments, and run again where they stand.

As in a graph, what Python decided while recording is decided for good, every result lands in the memory that the
recording gave it, and asking the device for a number, or sending it one, is refused.
"""

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

REFUSED = ("aten::_local_scalar_dense", "aten::lift_fresh", "aten::lift_fresh_copy", "aten::nonzero", "aten::equal")


class Tape(TorchDispatchMode):
    """Records what runs inside the block; `replay` runs it again."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, tuple[Any, ...], dict[str, Any], Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert func.name() not in REFUSED, f"{func.name()} cannot be captured"
        result = func(*args, **(kwargs or {}))
        self.calls.append((func, args, kwargs or {}, result))
        return result

    def replay(self) -> None:
        with torch.no_grad():
            for func, args, kwargs, before in self.calls:
                after = func(*args, **kwargs)
                for old, new in zip(tree_leaves(before), tree_leaves(after), strict=True):
                    if isinstance(old, Tensor) and new.data_ptr() != old.data_ptr():
                        old.copy_(new)
