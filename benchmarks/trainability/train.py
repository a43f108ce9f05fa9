"""One run: a network initialized by a contestant, trained, and tested on its way."""

from __future__ import annotations

import math
import time
from typing import Any

import torch
from torch import Tensor, nn

from trainability.contestants import Batch, Contestant
from trainability.tasks import Task, batches

CHECKPOINTS = 10
Found = dict[str, Any]


def run(task: Task, contestant: Contestant, *, seed: int, optimizer: str, lr: float, steps: int | None = None) -> Found:
    """What a row says of it: status, errors on the test at `CHECKPOINTS` equal steps, seconds.

    Seconds are those of the process on a processor: with one thread, what a clock shows on a machine that does nothing else.
    """
    steps, batch = steps or task.steps, batches(task, seed)
    torch.manual_seed(seed)
    model = contestant.network(task).train()
    began = time.process_time()
    try:
        report = contestant.call(model, task, batch)
    except Exception as error:  # noqa: BLE001 - whatever a contestant raises is its result
        first = (str(error).splitlines() or [""])[0][:200]
        return {"status": "init-failed", "error": f"{type(error).__name__}: {first}", "init_seconds": time.process_time() - began}
    init_seconds = time.process_time() - began
    choice = getattr(report, "choice", None)
    found: Found = {
        "init_seconds": round(init_seconds, 4),
        **({} if choice is None else {"choice": [choice.target_std, choice.center, choice.target_mean, len(choice.trials)]}),
    }
    return found | _trained(model, task, batch, _solver(model, optimizer, lr), steps)


def _solver(model: nn.Module, optimizer: str, lr: float) -> torch.optim.Optimizer:
    if optimizer == "sgd":
        return torch.optim.SGD(model.parameters(), lr, momentum=0.9)
    return torch.optim.AdamW(model.parameters(), lr)


def _trained(model: nn.Module, task: Task, batch: Batch, solver: torch.optim.Optimizer, steps: int) -> Found:
    """Status and checkpoints: (step, seconds of training, mean loss of training since the last one, error on the test)."""
    checkpoints: list[tuple[int, float, float, float]] = [(0, 0.0, math.nan, tested(model, task))]
    losses: list[float] = []
    seconds, status = 0.0, "done"
    for step in range(1, steps + 1):
        began = time.process_time()
        x, y = batch(step)
        loss = task.loss(model(x), y)
        solver.zero_grad()
        loss.backward()
        solver.step()
        losses.append(loss.item())
        seconds += time.process_time() - began
        if not math.isfinite(losses[-1]):
            status = "diverged"
            break
        if step % math.ceil(steps / CHECKPOINTS) == 0 or step == steps:
            checkpoints.append((step, seconds, sum(losses) / len(losses), tested(model, task)))
            losses = []
    errors = [error for *_, error in checkpoints]
    if not math.isfinite(errors[-1]):
        status = "diverged"
    if status == "done":
        status = "trained" if min(errors) < task.trained else "untrained"
    return {
        "status": status,
        "steps": steps,
        "train_seconds": round(seconds, 3),
        "checkpoints": [[s, round(t, 3), *(_number(v) for v in values)] for s, t, *values in checkpoints],
    }


def _number(value: float) -> float | None:
    return round(value, 5) if math.isfinite(value) else None


def tested(model: nn.Module, task: Task) -> float:
    """Error on the test, batch statistics as in testing."""
    model.eval()
    data = task.data()
    with torch.no_grad():
        parts: list[Tensor] = [model(x) for x in data.test_x.split(500)]
        error = task.error(torch.cat(parts), data.test_y).item()
    model.train()
    return error
