"""The tokenizer's ids are the bytes of the text, in this process and in one that loads it from a folder."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from harness.data.tokenizer import byte_tokenizer

TRICKY = "Hé  llo\r\n\t .  , 'tis n't <s> </s> <|endoftext|> 日本 \x00\x7f\u00ad\u00a0 é 🎉\n"


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return byte_tokenizer()


@settings(deadline=None, max_examples=200)
@given(text=st.text())
@example(text=TRICKY)
def test_ids_are_the_bytes_and_decode_to_the_text(tokenizer: Any, text: str) -> None:
    ids = tokenizer(text)["input_ids"]
    assert ids == list(text.encode())
    assert tokenizer.decode(ids) == text


def test_every_byte_is_a_token(tokenizer: Any) -> None:
    assert len(tokenizer) == 256
    assert sorted(tokenizer.get_vocab().values()) == list(range(256))


def test_auto_tokenizer_loads_it_in_a_fresh_process(tokenizer: Any, tmp_path: Path) -> None:
    tokenizer.save_pretrained(tmp_path)
    code = (
        "import sys\n"
        "from transformers import AutoTokenizer\n"
        "tokenizer, text = AutoTokenizer.from_pretrained(sys.argv[1]), sys.argv[2]\n"
        "ids = tokenizer(text)['input_ids']\n"
        "print(ids == list(text.encode()), tokenizer.decode(ids) == text)"
    )
    command = [sys.executable, "-c", code, str(tmp_path), TRICKY.replace("\x00", "")]
    environment = os.environ | {"HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    assert done.stdout.strip() == "True True"
