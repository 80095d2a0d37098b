"""Every choice that makes a TTT language model, under the names of the official code.

Two groups of fields. The first is the official `TTTConfig`, so that a published `config.json` loads unchanged. The
second opens the inner loop: which task the learner solves, and which of the ingredients in the paper's ablation
(arXiv 2407.04620, Table 1) it has. Their defaults are the published layer.

Mind the inner learning rate: no checkpoint stores it, and the official default is 1.0 for both learners, although
TTT-MLP was trained with 0.1 (paper, App. C). `TTTConfig` keeps the official default, so that an official
`config.json` means what it meant; `TTTConfig.preset` and the converter give each learner the rate it was trained with.
"""

from typing import Any

from transformers import PreTrainedConfig
from transformers.activations import ACT2FN

from ttt_impl.checks import check_choice, check_flag, check_integer, check_number

BASE_LEARNING_RATE = {"linear": 1.0, "mlp": 0.1}
INNER_TASKS = ("multi_view", "reconstruction", "next_token")
TOKEN_RATES = ("decay", "constant")

# Paper, Table 3; the SwiGLU widths are those of the JAX release.
SIZES: dict[str, dict[str, int]] = {
    "125m": {"hidden_size": 768, "intermediate_size": 2048, "num_hidden_layers": 12, "num_attention_heads": 12},
    "350m": {"hidden_size": 1024, "intermediate_size": 2736, "num_hidden_layers": 24, "num_attention_heads": 16},
    "760m": {"hidden_size": 1536, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16},
    "1.3b": {"hidden_size": 2048, "intermediate_size": 5504, "num_hidden_layers": 24, "num_attention_heads": 32},
}
BACKBONES: dict[str, dict[str, bool]] = {
    "transformer": {"pre_conv": False, "share_qk": False, "use_gate": False},
    "mamba": {"pre_conv": True, "share_qk": True, "use_gate": True},
}

_POSITIVE = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "max_position_embeddings",
    "mini_batch_size",
    "conv_kernel",
)
_FLAGS = (
    "use_cache",
    "tie_word_embeddings",
    "use_gate",
    "share_qk",
    "pre_conv",
    "inner_norm",
    "inner_residual",
    "inner_bias",
    "learnable_w0",
    "learnable_eta",
)


class TTTConfig(PreTrainedConfig):
    """Configuration of a TTT language model; `ttt_impl/README.md` says what each field means."""

    model_type = "ttt"

    vocab_size: int = 32000
    hidden_size: int = 2048
    intermediate_size: int = 5504
    num_hidden_layers: int = 24
    num_attention_heads: int = 32
    hidden_act: str = "silu"
    max_position_embeddings: int = 2048
    initializer_range: float = 0.02
    rms_norm_eps: float = 1e-6
    use_cache: bool = False
    pad_token_id: int | None = None
    bos_token_id: int | None = 1
    eos_token_id: int | list[int] | None = 2
    tie_word_embeddings: bool = True
    rope_theta: float = 10000.0
    use_gate: bool = False
    share_qk: bool = False
    ttt_layer_type: str = "linear"
    ttt_base_lr: float = 1.0
    mini_batch_size: int = 16
    pre_conv: bool = False
    conv_kernel: int = 4
    scan_checkpoint_group_size: int = 0

    inner_task: str = "multi_view"
    inner_norm: bool = True
    inner_residual: bool = True
    inner_bias: bool = True
    learnable_w0: bool = True
    learnable_eta: bool = True
    token_rate: str = "decay"

    def __post_init__(self, **kwargs: Any) -> None:
        """Resolve the inner learning rate, refuse what cannot work, hand the rest to transformers."""
        check_choice("ttt_layer_type", self.ttt_layer_type, tuple(BASE_LEARNING_RATE))
        self._check()
        super().__post_init__(**kwargs)

    @property
    def head_dim(self) -> int:
        """Width of one head, f = C / H."""
        return self.hidden_size // self.num_attention_heads

    @classmethod
    def preset(cls, size: str, ttt_layer_type: str = "linear", backbone: str = "mamba", **kwargs: Any) -> "TTTConfig":
        """One of the paper's sizes ('125m', '350m', '760m', '1.3b') on one of its two backbones, at its inner rate."""
        check_choice("size", size, tuple(SIZES))
        check_choice("backbone", backbone, tuple(BACKBONES))
        check_choice("ttt_layer_type", ttt_layer_type, tuple(BASE_LEARNING_RATE))
        learner: dict[str, Any] = {"ttt_layer_type": ttt_layer_type, "ttt_base_lr": BASE_LEARNING_RATE[ttt_layer_type]}
        return cls(**(SIZES[size] | BACKBONES[backbone] | learner | kwargs))

    def _check(self) -> None:
        """Raise one clear line for the first field that cannot work."""
        for name in _POSITIVE:
            check_integer(name, getattr(self, name), least=1)
        for name in _FLAGS:
            check_flag(name, getattr(self, name))
        check_integer("scan_checkpoint_group_size", self.scan_checkpoint_group_size, least=0)
        check_choice("inner_task", self.inner_task, INNER_TASKS)
        check_choice("token_rate", self.token_rate, TOKEN_RATES)
        check_choice("hidden_act", self.hidden_act, tuple(ACT2FN))
        for name in ("ttt_base_lr", "rope_theta", "rms_norm_eps", "initializer_range"):
            check_number(name, getattr(self, name))
        if self.hidden_size % (2 * self.num_attention_heads):
            raise ValueError(
                f"hidden_size={self.hidden_size} with num_attention_heads={self.num_attention_heads}: "
                "hidden_size must be a multiple of 2 * num_attention_heads (RoPE turns pairs inside a head)"
            )
        if self.ttt_layer_type == "mlp" and not self.learnable_w0:
            raise ValueError(
                "learnable_w0=False with ttt_layer_type='mlp': W0 = 0 is a saddle point where TTT-MLP never learns; "
                "valid choices: learnable_w0=True, or ttt_layer_type='linear'"
            )
