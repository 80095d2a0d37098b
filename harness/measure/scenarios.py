"""What is timed: a training step, a prefill, the first token of an answer, single-token decoding.

A scenario is prepared and warmed once, then gives `turn`s of raw seconds; who is next is decided outside, so that
models can take turns. Inputs are made before the clock starts, and nothing but the model's own work lies between two
marks. Token ids are random: what a model computes does not depend on them.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from torch import Tensor

from baselines.interface import SequenceModel, State
from harness.measure.clock import Clock
from harness.measure.drift import drift, trend_p
from harness.measure.energy import GoOn
from harness.measure.memory import peak_bytes
from harness.records import Decode, FirstToken, Prefill, Timed, TrainStep
from harness.runtime import RuntimeConfig
from harness.train.config import TrainConfig
from harness.train.engine import AsTrained, shares
from harness.train.loop import loss_of, make_optimizer


class Scenario(ABC):
    """One shape of one kind of work of one model; `joules` a token is set from outside, where it can be known."""

    ends_on_host: ClassVar[bool] = False
    """Whether the work ends when its result is on the host, so that the wall clock times it on every device."""

    def __init__(self, baseline: SequenceModel, device: str, batch: int, length: int) -> None:
        self.baseline, self.device, self.batch, self.length = baseline, device, batch, length
        self.turns: list[list[float]] = []
        self.peak: int | None = None
        self.joules: float | None = None

    @abstractmethod
    def prepare(self) -> None:
        """Make the inputs and run everything once untimed: allocations, autotuning and compilation happen here."""

    def warm(self) -> None:
        """Prepare, then run once more for what is measured beside the seconds."""
        self.prepare()

    @abstractmethod
    def _work(self) -> object:
        """What is timed, once."""

    @abstractmethod
    def row(self, seconds: list[float]) -> Timed:
        """The measured values of all turns, whose raw seconds are given."""

    def turn(self, clock: Clock) -> list[float]:
        """Raw seconds of the timed calls of one turn: of one call, unless a scenario says otherwise."""
        start = clock.mark()
        self._work()
        return clock.seconds([start, clock.mark()])

    def take_turn(self, clock: Clock) -> list[float]:
        """One turn, remembered."""
        self.turns.append(self.turn(clock))
        return self.turns[-1]

    def repeat(self, go_on: GoOn) -> int:
        """Work untimed for as long as `go_on` says; the tokens of it."""
        calls = 0
        while go_on():
            self._work()
            calls += 1
        return calls * self.batch * self.length

    def values(self) -> Timed:
        """All that was measured, after all turns."""
        values, turns = self.row([second for turn in self.turns for second in turn]), list(map(sum, self.turns))
        values.turns, values.drift, values.trend_p = len(turns), drift(turns), trend_p(turns)
        values.joules_per_token = self.joules
        return values

    def random_ids(self, length: int) -> Tensor:
        """Token ids [batch, length], the same for every model with the same vocabulary."""
        generator = torch.Generator().manual_seed(length)
        ids = torch.randint(self.baseline.vocab_size, (self.batch, length), generator=generator)
        return ids.to(self.device)


class PrefillScenario(Scenario):
    """Feed batch × length tokens to an empty state."""

    def prepare(self) -> None:
        """One prefill, whose state is counted."""
        self.ids = self.random_ids(self.length)
        self.state_bytes = self.baseline.state_bytes(self._work()[1])

    def warm(self) -> None:
        """Another one for the peak of memory."""
        self.prepare()
        self.peak = peak_bytes(self._work, self.device)

    @torch.inference_mode()
    def _work(self) -> tuple[Tensor, object]:
        return self.baseline.prefill(self.ids)

    def row(self, seconds: list[float]) -> Prefill:
        """Prefill at this length."""
        flops = self.batch * self.baseline.flops(self.length, "prefill")
        return Prefill(self.batch, self.length, seconds, self.peak, self.state_bytes, flops)


class FirstTokenScenario(Scenario):
    """What a user waits for: a prompt's ids go to the device, are read, and a token sampled from its end comes back."""

    ends_on_host = True

    def prepare(self) -> None:
        """Answer once."""
        self.prompt = self.random_ids(self.length).cpu()
        self._work()

    @torch.inference_mode()
    def _work(self) -> list[int]:
        logits, _ = self.baseline.prefill(self.prompt.to(self.device))
        tokens: list[int] = torch.multinomial(logits[:, -1].float().softmax(-1), 1).flatten().tolist()
        return tokens

    def row(self, seconds: list[float]) -> FirstToken:
        """The first token after a prompt of this length."""
        flops = self.batch * self.baseline.flops(self.length, "prefill")
        return FirstToken(self.batch, self.length, seconds, flops)


class DecodeScenario(Scenario):
    """Feed single tokens after `length` tokens of context, `tokens` of them a turn, each timed by itself."""

    def __init__(self, baseline: SequenceModel, device: str, batch: int, length: int, tokens: int) -> None:
        super().__init__(baseline, device, batch, length)
        self.tokens = tokens

    def prepare(self) -> None:
        """Warm up with one whole turn, and count the state after the context."""
        self.context, self.inputs = self.random_ids(self.length), self.random_ids(self.tokens)
        with torch.inference_mode():
            self.state = self.baseline.prefill(self.context)[1] if self.device == "cpu" else None
            self.state_bytes = self.baseline.state_bytes(self._after_context())
        self._work()

    def _after_context(self) -> State:
        """A copy of the state on a CPU, where reading the context again outlasts the steps; a GPU may not hold two."""
        return self.baseline.prefill(self.context)[1] if self.state is None else copy.deepcopy(self.state)

    @torch.inference_mode()
    def _work(self, clock: Clock | None = None) -> list[object]:
        state = self._after_context()
        marks = [clock.mark()] if clock else []
        for i in range(self.tokens):
            _, state = self.baseline.step(self.inputs[:, i : i + 1], state)
            if clock:
                marks.append(clock.mark())
        return marks

    def turn(self, clock: Clock) -> list[float]:
        """From the state after the context, time each of the single steps."""
        return clock.seconds(self._work(clock))

    @torch.inference_mode()
    def repeat(self, go_on: GoOn) -> int:
        """Step on and on, the context growing, as far as the model's own limit; reading the context is not counted."""
        state, limit, steps = self._after_context(), self.baseline.context_limit, 0
        while (limit is None or self.length + steps < limit) and go_on():
            place = steps % self.tokens
            _, state = self.baseline.step(self.inputs[:, place : place + 1], state)
            steps += 1
        return steps * self.batch

    def row(self, seconds: list[float]) -> Decode:
        """Decoding after this context."""
        flops = self.batch * self.baseline.flops(self.length, "step")
        return Decode(self.batch, self.length, seconds, self.state_bytes, flops)


class TrainStepScenario(Scenario):
    """Forward, backward and optimiser step of batch × length tokens, by one process as `runtime` has it train."""

    def __init__(self, baseline: SequenceModel, device: str, config: TrainConfig, runtime: RuntimeConfig) -> None:
        super().__init__(baseline, device, config.batch_size, config.length)
        self.config, self.runtime = config, runtime
        self.as_trained = AsTrained(baseline.model, runtime)

    def prepare(self) -> None:
        """One step, which compiles, and allocates gradients and moments. The rate is zero, so the weights stay."""
        self.parts = shares(self.random_ids(self.length + 1), 0, 1, self.runtime.micro_batch)
        self.optimizer = make_optimizer(self.baseline.model, self.config)
        for group in self.optimizer.param_groups:
            group["lr"] = 0.0
        self._work()

    def warm(self) -> None:
        """Another step for the peak of memory."""
        self.prepare()
        self.peak = peak_bytes(self._work, self.device)

    def _work(self) -> None:
        self.baseline.model.train()
        with self.as_trained:
            for windows, weight in self.parts:
                with torch.autocast(self.device, torch.bfloat16, enabled=self.runtime.dtype == "bfloat16"):
                    loss = weight * loss_of(self.baseline.model, windows)
                loss.backward()
        torch.nn.utils.clip_grad_norm_(self.baseline.model.parameters(), self.config.clip_norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.baseline.model.eval()

    def row(self, seconds: list[float]) -> TrainStep:
        """Training at the recipe's batch and length."""
        flops = self.batch * self.baseline.flops(self.length, "train")
        how = self.runtime.micro_batch, self.runtime.activation_checkpointing
        return TrainStep(self.batch, self.length, seconds, self.peak, flops, *how)
