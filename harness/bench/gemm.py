"""The matrix products of a model's linear layers and nothing else: the time that no scan or fusion can go below."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from baselines.interface import SequenceModel
from harness.measure.clock import Clock

Product = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]


class GemmWork:
    """Every `nn.Linear` of a model on `batch` × `length` rows; in training also both products of its gradients.

    In a prefill some see the last token of each sequence alone. A turn does it all `repeats` times.
    """

    def __init__(self, baseline: SequenceModel, batch: int, length: int, train: bool, repeats: int = 1) -> None:
        self.train, self.repeats = train, repeats
        late = set() if train or length == 1 else _late(baseline)
        linear = [module for module in baseline.model.modules() if isinstance(module, nn.Linear)]
        self.products = [_operands(module, batch * (1 if module in late else length)) for module in linear]
        self._work()

    @torch.inference_mode()
    def _work(self) -> None:
        for _ in range(self.repeats):
            for x, weight, y, grad_x, grad_weight in self.products:
                torch.mm(x, weight.T, out=y)
                if self.train:
                    torch.mm(y, weight, out=grad_x)
                    torch.mm(y.T, x, out=grad_weight)

    def turn(self, clock: Clock) -> list[float]:
        """All products, timed together."""
        start = clock.mark()
        self._work()
        return clock.seconds([start, clock.mark()])


@torch.inference_mode()
def _late(baseline: SequenceModel) -> set[nn.Module]:
    """The layers that see the last token of a prefill alone."""
    late: set[nn.Module] = set()
    linear = [module for module in baseline.model.modules() if isinstance(module, nn.Linear)]
    hooks = [module.register_forward_hook(lambda m, _, y: late.add(m) if len(y[0]) == 1 else None) for module in linear]
    baseline.prefill(torch.zeros(1, 2, dtype=torch.long))
    for hook in hooks:
        hook.remove()
    return late


def _operands(module: nn.Linear, rows: int) -> Product:
    """Inputs [rows, in], weight, outputs (also taken for their gradient), and room for both gradients."""
    x, y = torch.randn(rows, module.in_features), torch.zeros(rows, module.out_features)
    weight = module.weight.detach()
    return x, weight, y, torch.empty_like(x), torch.empty_like(weight)
