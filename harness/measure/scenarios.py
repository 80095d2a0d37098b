"""What is timed: a training step, a prefill, single-token decoding.

A scenario is prepared and warmed once, then gives `turn`s of raw seconds; who is next is decided outside, so that
models can take turns. Inputs are made before the clock starts, and nothing but the model's own work lies between two
marks. Token ids are random: what a model computes does not depend on them.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor

from baselines.interface import SequenceModel, State
from harness.measure.clock import Clock
from harness.measure.memory import peak_bytes
from harness.records import Decode, Prefill, TrainStep, Values
from harness.train.config import TrainConfig
from harness.train.loop import loss_of, make_optimizer


class Scenario(ABC):
    """One shape of one kind of work of one model."""

    def __init__(self, baseline: SequenceModel, device: str, batch: int, length: int) -> None:
        self.baseline, self.device, self.batch, self.length = baseline, device, batch, length
        self.seconds: list[float] = []
        self.peak: int | None = None

    @abstractmethod
    def prepare(self) -> None:
        """Make the inputs and run everything once untimed: allocations, autotuning and compilation happen here."""

    def warm(self) -> None:
        """Prepare, then run once more for what is measured beside the seconds."""
        self.prepare()

    @abstractmethod
    def turn(self, clock: Clock) -> list[float]:
        """Raw seconds of the timed calls of one turn."""

    @abstractmethod
    def values(self) -> Values:
        """The measured values, after all turns."""

    def take_turn(self, clock: Clock) -> list[float]:
        """One turn, remembered."""
        seconds = self.turn(clock)
        self.seconds += seconds
        return seconds

    def random_ids(self, length: int) -> Tensor:
        """Token ids [batch, length], the same for every model with the same vocabulary."""
        generator = torch.Generator().manual_seed(length)
        ids = torch.randint(self.baseline.vocab_size, (self.batch, length), generator=generator)
        return ids.to(self.device)

    def timed(self, work: Callable[[], object], clock: Clock) -> list[float]:
        """Seconds of one call of `work`."""
        start = clock.mark()
        work()
        return clock.seconds([start, clock.mark()])


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

    def turn(self, clock: Clock) -> list[float]:
        """One prefill."""
        return self.timed(self._work, clock)

    def values(self) -> Prefill:
        """Prefill at this length."""
        flops = self.batch * self.baseline.flops(self.length, "prefill")
        return Prefill(self.batch, self.length, self.seconds, self.peak, self.state_bytes, flops)


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
            self._steps()

    def _after_context(self) -> State:
        """A copy of the state on a CPU, where reading the context again outlasts the steps; a GPU may not hold two."""
        return self.baseline.prefill(self.context)[1] if self.state is None else copy.deepcopy(self.state)

    def _steps(self, clock: Clock | None = None) -> list[object]:
        state = self._after_context()
        marks = [clock.mark()] if clock else []
        for i in range(self.tokens):
            _, state = self.baseline.step(self.inputs[:, i : i + 1], state)
            if clock:
                marks.append(clock.mark())
        return marks

    @torch.inference_mode()
    def turn(self, clock: Clock) -> list[float]:
        """From the state after the context, time each of the single steps."""
        return clock.seconds(self._steps(clock))

    def values(self) -> Decode:
        """Decoding after this context."""
        flops = self.batch * self.baseline.flops(self.length, "step")
        return Decode(self.batch, self.length, self.seconds, self.state_bytes, flops)


class TrainStepScenario(Scenario):
    """Forward, backward and optimiser step of batch × length tokens, on a copy of the weights' own optimiser."""

    def __init__(self, baseline: SequenceModel, device: str, config: TrainConfig, autocast: bool) -> None:
        super().__init__(baseline, device, config.batch_size, config.length)
        self.config, self.autocast = config, autocast

    def prepare(self) -> None:
        """One step, which allocates gradients and moments. The rate is zero, so the weights stay."""
        self.windows = self.random_ids(self.length + 1)
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
        with torch.autocast(self.device, torch.bfloat16, enabled=self.autocast):
            loss = loss_of(self.baseline.model, self.windows)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.baseline.model.parameters(), self.config.clip_norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.baseline.model.eval()

    def turn(self, clock: Clock) -> list[float]:
        """One training step."""
        return self.timed(self._work, clock)

    def values(self) -> TrainStep:
        """Training at the recipe's batch and length."""
        flops = self.batch * self.baseline.flops(self.length, "train")
        return TrainStep(self.batch, self.length, self.seconds, self.peak, flops)
