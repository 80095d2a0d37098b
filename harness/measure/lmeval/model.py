"""A `SequenceModel` as a language model of lm-eval (EleutherAI's evaluation harness).

Log-likelihoods are exact at any length: nothing is cut to a window, long texts run through the model's state. Text is
given as it is, without a chat template. What has no context (the start of a text) is scored after a prefix token: the
tokenizer's BOS, else its EOS, else a line break.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from baselines.interface import SequenceModel

TOKENS_AT_ONCE = 8192
"""Rows of a batch are padded to the longest and hold about so many tokens together."""

Pair = tuple[tuple[str, str] | None, list[int], list[int]]
"""(texts, ids of the context, ids of the continuation), as lm-eval hands them over."""


class HarnessLM(TemplateLM):
    """What lm-eval asks of a model, answered by `SequenceModel`."""

    backend = "causal"
    max_gen_toks = 256

    def __init__(self, baseline: SequenceModel, tokenizer: PreTrainedTokenizerBase, batch_size: int = 16) -> None:
        super().__init__()
        self.baseline, self.tokenizer, self.batch_size = baseline, tokenizer, batch_size
        self._device = next(baseline.model.parameters()).device

    @property
    def eot_token_id(self) -> int | None:
        """The token that ends a text, where there is one."""
        return self.tokenizer.eos_token_id

    @property
    def prefix_token_id(self) -> int:
        """The token before the first of a text."""
        for known in (self.tokenizer.bos_token_id, self.tokenizer.eos_token_id):
            if known is not None:
                return int(known)
        return int(self.tokenizer.encode("\n", add_special_tokens=False)[0])

    @property
    def tokenizer_name(self) -> str:
        """For lm-eval's caches."""
        return str(self.tokenizer.name_or_path)

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """Ids of a text, without special tokens."""
        return list(self.tokenizer.encode(string, add_special_tokens=False))

    @torch.inference_mode()
    def _loglikelihood_tokens(self, requests: Sequence[Pair], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """Log-likelihood of each continuation, and whether it is what greedy decoding gives."""
        found: list[tuple[float, bool]] = [(0.0, True)] * len(requests)
        for places in self._batches([len(context) + len(target) for _, context, target in requests]):
            rows = [requests[i][1] + requests[i][2] for i in places]
            logits = self._next_token_logits(rows, max(len(requests[i][2]) for i in places))
            for row, i in enumerate(places):
                targets = torch.tensor(requests[i][2], device=self._device)
                last = logits.shape[1] - (max(map(len, rows)) - len(rows[row]))
                given = logits[row, last - len(targets) : last].log_softmax(-1)
                score = given.gather(1, targets[:, None]).double().sum()
                found[i] = (float(score), bool((given.argmax(-1) == targets).all()))
        return found

    def _next_token_logits(self, rows: list[list[int]], targets: int) -> Tensor:
        """Float logits [B, n, V] for the last n tokens of the rows, padded on the right where nobody looks.

        n reaches `targets` tokens before the end of the shortest row.
        """
        longest, shortest = max(map(len, rows)), min(map(len, rows))
        padded = torch.tensor([row + [0] * (longest - len(row)) for row in rows], device=self._device)
        wanted = min(longest - 1, longest - shortest + targets)
        logits, _ = self.baseline.prefill(padded[:, :-1], logits_to_keep=wanted)
        return logits.to(torch.promote_types(logits.dtype, torch.float32))

    def _batches(self, lengths: list[int]) -> Iterator[list[int]]:
        """Indices by falling length, in batches that stay within `batch_size` rows and `TOKENS_AT_ONCE`."""
        batch: list[int] = []
        for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
            if batch and (len(batch) == self.batch_size or (len(batch) + 1) * lengths[batch[0]] > TOKENS_AT_ONCE):
                yield batch
                batch = []
            batch.append(i)
        if batch:
            yield batch

    @torch.inference_mode()
    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """Log-likelihood of whole texts: every token given all before it, at any length, through the state."""
        found = []
        for request in requests:
            ids = [self.prefix_token_id, *self.tok_encode(request.args[0])]
            nll = self.baseline.score(torch.tensor([ids], device=self._device))
            found.append(-float(nll.double().sum()))
        return found

    @torch.inference_mode()
    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Greedy continuations up to a stop string, the end-of-text token or `max_gen_toks`."""
        return [self._generate(context, options) for context, options in (request.args for request in requests)]

    def _generate(self, context: str, options: dict[str, Any]) -> str:
        if options.get("do_sample") or options.get("temperature"):
            raise ValueError("generate_until decodes greedily here; give a task without do_sample and temperature")
        until = options.get("until") or []
        stops = [until] if isinstance(until, str) else list(until)
        ids = self.tok_encode(context) or [self.prefix_token_id]
        logits, state = self.baseline.prefill(torch.tensor([ids], device=self._device))
        made: list[int] = []
        for _ in range(int(options.get("max_gen_toks") or self.max_gen_toks)):
            token = logits[:, -1:].argmax(-1)
            if int(token) == self.eot_token_id:
                break
            made.append(int(token))
            text = str(self.tokenizer.decode(made))
            if any(stop and stop in text for stop in stops):
                break
            logits, state = self.baseline.step(token, state)
        text = str(self.tokenizer.decode(made))
        return min((text.split(stop)[0] for stop in stops if stop), key=len, default=text)
