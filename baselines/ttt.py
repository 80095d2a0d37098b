"""TTT-Linear and TTT-MLP (Sun et al., arXiv 2407.04620): the hidden state is a model that learns while it reads.

Adapts the library `ttt_impl` to the common interface. The state is the inner model's weights with the rows of the
mini-batch that is still open, of the same size after any number of tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

from torch import Tensor

from baselines._checkpoint import load_checkpoint
from baselines._ttt_mixer import CHOICES, TTTMixer, inner_flops, layer_arguments, rate_scale
from baselines.config import BlockConfig, FamilyConfig
from baselines.interface import Mode, SequenceModel
from ttt_impl import TTTConfig, TTTForCausalLM
from ttt_impl.diagnostics import inner_diagnostics
from ttt_impl.inner_task import TASKS

CONV_KERNEL = 4


@dataclass
class Config(BlockConfig):
    """Options of TTT; its sizes are taken from `size` where they are None."""

    family: str = "ttt"
    learner: str = "linear"
    backbone: str = "mamba"
    mini_batch_size: int = 16
    base_lr: float | None = None
    """Inner learning rate; None: the paper's, 1.0 for 'linear' and 0.1 for 'mlp' (appendix C)."""
    base_lr_init: float | None = None
    """Where the inner rate begins in training, to reach its base after `base_lr_warmup` of the steps; None: there."""
    base_lr_warmup: float = 0.1
    inner_task: str = "multi_view"
    """What the learner predicts, see `ttt_impl.inner_task`."""
    inner_norm: bool = True
    """The ingredients of the learner and its rate that the paper's Table 1 adds one by one; all on: as published."""
    inner_residual: bool = True
    inner_bias: bool = True
    learnable_w0: bool = True
    learnable_eta: bool = True
    token_rate: str = "decay"

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, choices in CHOICES.items():
            if getattr(self, name) not in choices:
                raise ValueError(f"ttt: {name}={getattr(self, name)!r} must be one of {', '.join(choices)}")
        if not 0 <= self.base_lr_warmup <= 1:
            raise ValueError(f"ttt: base_lr_warmup={self.base_lr_warmup} must lie between 0 and 1")
        for name in ("mini_batch_size", "base_lr", "base_lr_init"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise ValueError(f"ttt: {name}={value} must be positive")
        if self.learner == "mlp" and not self.learnable_w0:
            raise ValueError("ttt: learnable_w0=False needs learner='linear', an MLP never learns from W0 = 0")

    def parameters(self, vocab_size: int) -> int:
        """Tied embedding; per layer TTT's own, SwiGLU, norms and the convolution before; the last norm."""
        assert self.hidden_size is not None
        assert self.num_layers is not None
        assert self.head_dim is not None
        assert self.intermediate_size is not None
        width = self.hidden_size
        pre_conv = width * (CONV_KERNEL + 2) if self.backbone == "mamba" else 0
        layer = TTTMixer.count(self, width) + 3 * width * self.intermediate_size + 2 * width + pre_conv
        return vocab_size * width + self.num_layers * layer + width


class TTT(SequenceModel):
    """A TTT language model behind the common interface."""

    Config = Config
    Mixer = TTTMixer

    def __init__(self, model: TTTForCausalLM, options: Any = None) -> None:
        super().__init__(model)
        self.options = options or Config()

    @classmethod
    def build(cls, config: Any, vocab_size: int) -> Self:
        """A freshly initialised float32 model on the CPU from a complete config."""
        ttt = TTTConfig(
            vocab_size=vocab_size,
            hidden_size=config.hidden_size,
            num_hidden_layers=config.num_layers,
            intermediate_size=config.intermediate_size,
            bos_token_id=None,
            eos_token_id=None,
            **layer_arguments(config, config.hidden_size),
        )
        return cls(TTTForCausalLM(ttt), config)

    @classmethod
    def load(cls, config: FamilyConfig) -> Self:
        """The trained model in `config.checkpoint`, float32, in evaluation mode; it must have `config.learner`."""
        assert isinstance(config, Config)
        model = load_checkpoint(config, TTTForCausalLM)
        found = model.config.ttt_layer_type
        if found != config.learner:
            raise ValueError(
                f"checkpoint {config.checkpoint} holds learner {found!r}, ttt.learner is {config.learner!r}"
            )
        return cls(model, config)

    def before_step(self, step: int, steps: int) -> None:
        """The inner rate warms up."""
        for layer in self.model.model.layers:
            layer.seq_modeling_block.inner_lr_scale = rate_scale(self.options, step, steps)

    @property
    def kernel_path(self) -> str:
        """The path of `ttt_impl.ops` that ran last, and on a GPU why not the kernels; before any forward `scan`."""
        layer = self.model.model.layers[0].seq_modeling_block
        path, why_not = layer.kernel_path or "scan", layer.why_not_fused
        return f"{path} (not fused-cuda: {why_not})" if why_not else path

    def diagnostics(self, input_ids: Tensor) -> dict[str, Tensor]:
        """Inner losses (paper, Fig. 4) and the learned rate; how far the fast weights are from W0, relative to it.

        The last where there is a W0 to be relative to and a mini-batch has filled.
        """
        config, found = self.model.config, inner_diagnostics(self.model, input_ids)
        curves = {
            "inner loss: W0": found.loss_initial.mean(1),
            "inner loss: before the mini-batch": found.loss_before.mean(1),
            "inner loss: after the token's step": found.loss_after.mean(1),
            "inner learning rate: mean over heads": found.learning_rate.mean(1),
        }
        if config.learnable_w0 and found.weight_change.shape[-1]:
            change = (found.weight_change / found.weight_norm[..., None]).mean(1)
            filled = change.repeat_interleave(config.mini_batch_size, 1)
            curves["|W - W0| / |W0|: after the mini-batch"] = filled
        return curves

    def flops(self, length: int, mode: Mode) -> int:
        """Per token: 2 a weight of projections, SwiGLU, rates, convolutions and head, and `inner_flops` of every head.

        The inner backward is so part of every forward. Scores are counted whole, as they are computed. `train` is three
        forwards, the head at every token; `prefill` has head and what follows the last inner loop (gate, projection and
        SwiGLU) at its last token; a `step` needs what a token of a sequence needs, averaged over a mini-batch, of which
        the last token folds the gradients into W.
        """
        config = self.model.config
        width, heads, f, k = config.hidden_size, config.num_attention_heads, config.head_dim, config.mini_batch_size
        inner = inner_flops(config.ttt_layer_type, f, k)
        square = 4 if TASKS[config.inner_task].learned_label else 3
        weights = square * width * width + 3 * width * config.intermediate_size
        weights += heads * width * config.learnable_eta
        weights += config.conv_kernel * width * (2 * config.share_qk + config.pre_conv)
        body = config.num_hidden_layers * (2 * weights + heads * inner)
        head = 2 * width * config.vocab_size
        after = 2 * width * ((1 + config.use_gate) * width + 3 * config.intermediate_size)
        return {
            "train": 3 * length * (body + head),
            "prefill": length * body - (length - 1) * after + head,
            "step": body + head,
        }[mode]
