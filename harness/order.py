"""What trains longest begins, so that no model trains on alone when all others are done (Graham's longest first)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from harness.worker import Outcome, Worker

LEAST_STEPS = 100
"""Below so many steps of training none is spent on finding out which model trains longest."""


def training_costs(
    names: Sequence[str], places: int, worker: Callable[[str], Worker], let_go: Callable[[str], None]
) -> dict[str, float]:
    """CPU seconds that each model's training will take, by a step of it, `places` models at a time."""
    costs: dict[str, float] = {}
    for first in range(0, len(names), places):
        group = names[first : first + places]
        for name in group:
            worker(name).ask("training_cost")
        for name in group:
            outcome: Outcome = worker(name).outcome()
            costs[name] = outcome.value if outcome.status == "ok" else 0.0
            if outcome.status != "ok":
                let_go(name)  # obtaining it will fail again, and leave a row
    return costs
