"""Bad input ends in one clear line that names the argument, the value and the choices."""

from pathlib import Path

import pytest
import torch

from tests.ttt_impl.helpers import config, gap, model, tokens
from ttt_impl import TTTConfig, TTTForCausalLM, TTTModel


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"ttt_layer_type": "rnn"}, "ttt_layer_type='rnn'; valid choices: 'linear', 'mlp'"),
        ({"inner_task": "gpt"}, "inner_task='gpt'; valid choices: 'multi_view', 'reconstruction', 'next_token'"),
        ({"token_rate": 1}, "token_rate=1; valid choices: 'decay', 'constant'"),
        ({"mini_batch_size": 0}, "mini_batch_size=0; valid choices: an integer of at least 1"),
        ({"mini_batch_size": 1.5}, "mini_batch_size=1.5; valid choices: an integer of at least 1"),
        ({"hidden_size": 30, "num_attention_heads": 4}, "hidden_size=30 with num_attention_heads=4"),
        ({"hidden_size": 12, "num_attention_heads": 4}, "hidden_size must be a multiple of 2 * num_attention_heads"),
        ({"use_gate": "yes"}, "use_gate='yes'; valid choices: True, False"),
        ({"ttt_base_lr": -1.0}, "ttt_base_lr=-1.0; valid choices: a finite number of at least 0"),
        ({"scan_checkpoint_group_size": -1}, "scan_checkpoint_group_size=-1; valid choices: an integer of at least 0"),
        ({"ttt_layer_type": "mlp", "learnable_w0": False}, "learnable_w0=False with ttt_layer_type='mlp'"),
        ({"hidden_act": "selu2"}, "hidden_act='selu2'; valid choices:"),
    ],
)
def test_configuration(changes: dict[str, object], line: str) -> None:
    with pytest.raises(ValueError, match=r"^[^\n]*$") as refused:
        TTTConfig(**changes)
    assert line in str(refused.value)


def test_presets() -> None:
    for arguments, line in (
        (("13b",), "size='13b'; valid choices: '125m'"),
        (("125m", "linear", "gpt"), "backbone='gpt'"),
    ):
        with pytest.raises(ValueError, match=r"^[^\n]*$") as refused:
            TTTConfig.preset(*arguments)
        assert line in str(refused.value)


def test_base_learning_rate_is_the_official_default_and_the_trained_one_in_presets() -> None:
    """Nothing in a checkpoint stores it: 1.0 unless given, as officially; TTT-MLP was trained with 0.1."""
    assert TTTConfig().ttt_base_lr == TTTConfig(ttt_layer_type="mlp").ttt_base_lr == 1.0
    assert TTTConfig.preset("125m", "linear").ttt_base_lr == 1.0
    assert TTTConfig.preset("125m", "mlp").ttt_base_lr == 0.1
    assert TTTConfig.preset("125m", "mlp", ttt_base_lr=0.5).ttt_base_lr == 0.5
    assert TTTConfig.from_dict(TTTConfig(ttt_base_lr=0.1).to_dict()).ttt_base_lr == 0.1


def test_configuration_survives_a_file(tmp_path: Path) -> None:
    before = config("mlp", inner_task="next_token", token_rate="constant", rope_theta=500.0)
    before.save_pretrained(tmp_path)
    after = TTTConfig.from_pretrained(tmp_path)
    ignored = {"transformers_version", "architectures", "_name_or_path"}
    assert {k: v for k, v in after.to_dict().items() if k not in ignored} == {
        k: v for k, v in before.to_dict().items() if k not in ignored
    }


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"mini_batch_size": 8}, "mini_batch_size=8, but the checkpoint has 4; valid choices: 4"),
        ({"num_attention_heads": 2}, "num_attention_heads=2 of width 12, but the checkpoint has 3 of width 8"),
        ({"ttt_layer_type": "mlp"}, "ttt_layer_type='mlp', but the checkpoint has 'linear'"),
        (
            {"use_gate": False},
            "g_proj.weight, against the configuration (2 tensors in all); valid choices: use_gate=True",
        ),
        ({"pre_conv": False}, "valid choices: pre_conv=True"),
        ({"share_qk": False}, "valid choices: share_qk=True"),
        ({"intermediate_size": 40}, "layers.0.mlp.down_proj.weight has shape (24, 32) in the checkpoint and (24, 40)"),
        ({"num_hidden_layers": 3}, "the checkpoint lacks model.layers.2."),
        ({"num_hidden_layers": 1}, "the checkpoint has model.layers.1."),
    ],
)
def test_checkpoint_of_another_configuration(
    changes: dict[str, object], line: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    built = model("linear", "mamba")
    built.save_pretrained(tmp_path)
    caplog.clear()
    with pytest.raises(ValueError, match=r"^[^\n]*$") as refused:
        TTTForCausalLM.from_pretrained(tmp_path, **changes)
    assert line in str(refused.value)
    assert str(tmp_path) in str(refused.value)
    assert "LOAD REPORT" not in caplog.text
    other = TTTForCausalLM(TTTConfig(**(built.config.to_dict() | changes)))
    with pytest.raises(ValueError, match=r"^[^\n]*$") as refused:
        other.load_state_dict(built.state_dict())
    assert line in str(refused.value)


def test_leniency_can_be_asked_for(tmp_path: Path) -> None:
    built = model("linear", "mamba")
    built.save_pretrained(tmp_path)
    lenient, report = TTTForCausalLM.from_pretrained(
        tmp_path, num_hidden_layers=1, ignore_mismatched_sizes=True, output_loading_info=True
    )
    assert len(lenient.model.layers) == 1
    assert report["unexpected_keys"]
    body, report = TTTModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"]
    assert gap(body.embed_tokens.weight.double(), built.lm_head.weight) < 1e-6


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ({"attention_mask": torch.tensor([[1, 1, 1, 0]])}, "attention_mask has padding on the right"),
        ({"attention_mask": torch.tensor([[0, 1, 0, 1]])}, "attention_mask has padding on the right"),
        ({"attention_mask": torch.ones(1, 3)}, "attention_mask of shape (1, 3) for 4 tokens"),
        ({"attention_mask": torch.ones(1, 1, 4, 4)}, "attention_mask of shape (1, 1, 4, 4)"),
        ({"cu_seqlens": torch.tensor([0, 2, 5])}, "cu_seqlens=[0, 2, 5] for input of shape (1, 4)"),
        ({"cu_seqlens": torch.tensor([0, 2, 4]), "use_cache": True}, "without cache and attention_mask"),
        ({"position_ids": torch.tensor([[0, 1, 3, 4]])}, "position_ids must begin with 0 and count up by 1"),
        ({"labels": torch.zeros(1, 3, dtype=torch.long)}, "labels of shape (1, 3) with logits for (1, 4)"),
        ({"inputs_embeds": torch.zeros(1, 4, 24)}, "exactly one of the two must be given"),
    ],
)
def test_forward(arguments: dict[str, object], line: str) -> None:
    with pytest.raises(ValueError, match=r"^[^\n]*$") as refused:
        model()(tokens(1, 4), **arguments)
    assert line in str(refused.value)


def test_padding_after_tokens_of_an_earlier_chunk() -> None:
    built = model()
    with torch.no_grad():
        cache = built(tokens(1, 3), use_cache=True).past_key_values
        with pytest.raises(ValueError, match="padding on the right"):
            built(tokens(1, 2), attention_mask=torch.tensor([[1, 1, 1, 0, 1]]), past_key_values=cache)
