"""The matrix products of a model's linear layers and nothing else: the time that no scan or fusion can go below."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from baselines.interface import SequenceModel
from harness.measure.clock import Clock

Product = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]


class GemmWork:
    """Every `nn.Linear` of a model on `rows` rows; in training also both products of its gradients.

    The output layer sees every row in training, the last one otherwise. A turn does it all `repeats` times.
    """

    def __init__(self, baseline: SequenceModel, rows: int, train: bool, repeats: int = 1) -> None:
        self.train, self.repeats = train, repeats
        output = baseline.model.get_output_embeddings()
        linear = [module for module in baseline.model.modules() if isinstance(module, nn.Linear)]
        self.products = [_operands(module, rows if train or module is not output else 1) for module in linear]
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


def _operands(module: nn.Linear, rows: int) -> Product:
    """Inputs [rows, in], weight, outputs (also taken for their gradient), and room for both gradients."""
    x, y = torch.randn(rows, module.in_features), torch.zeros(rows, module.out_features)
    weight = module.weight.detach()
    return x, weight, y, torch.empty_like(x), torch.empty_like(weight)
