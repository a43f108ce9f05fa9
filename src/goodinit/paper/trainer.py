"""A network, its solver and its data at one iteration of a training: forward, backward, update, test, save, take up."""

from __future__ import annotations

import hashlib
import math
import time
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn

from goodinit.paper import newer
from goodinit.paper.blocks import Style, prepare_
from goodinit.paper.checkpoint import CheckpointError, State
from goodinit.paper.config import Training, nonlinearity_of
from goodinit.paper.data import ImageSet
from goodinit.paper.networks import make_network
from goodinit.paper.objectives import Classification, Distillation, Hint, Objective
from goodinit.paper.optimize import LOSSES, Solver
from goodinit.paper.outcome import Evaluation, Outcome, Progress
from goodinit.paper.pixels import Augmentation, Batches, Preprocessing, Share, in_order, seed_of
from goodinit.paper.world import World
from goodinit.report import Report
from goodinit.schemes import init_

_TEST_BATCH = 500
_TRACKED = 40


def seen_size(run: Training, images: ImageSet) -> int:
    """Height and width of the images that the network sees."""
    return run.crop or images.shape[1]


class Trainer:
    """Network, solver and data of one run, at one iteration."""

    def __init__(
        self,
        run: Training,
        images: ImageSet,
        device: torch.device,
        world: World,
        teacher: nn.Module | None,
        *,
        compiled: bool,
    ) -> None:
        self.run = run
        self.device = device
        self.world = world
        self.progress = Progress()
        torch.manual_seed(seed_of(run.seed, "weights"))
        model = make_network(
            run.network,
            activation=run.activation,
            norm=run.norm,
            classes=run.classes or images.classes,
            depth=run.depth,
            pixels=seen_size(run, images),
        )
        self.model: nn.Module = model.to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # not in its stubs
        self._teacher = None if teacher is None else teacher.to(device)
        self._compiled = compiled
        self._data = [images.train.facts.sha256, images.test.facts.sha256]
        self._train = images.train.first(run.train_images).to(device)
        self._test = images.test.first(run.test_images).to(device)
        self._preprocessing = Preprocessing.fitted(run.pixels, self._train, device)
        self._batches = self._batches_of(run.batch, seed_of(run.seed, "batches"), world.share)
        self._tracked = _tracked(run.iterations) if run.updates else frozenset()
        self._begin_stage(hints=run.method == "hints")

    def _batches_of(self, size: int, seed: int, share: Share) -> Batches:
        augmentation = Augmentation(self.run.pad, self.run.mirror, self.run.crop)
        return Batches(self._train, self._preprocessing, augmentation, size=size, seed=seed, device=self.device, share=share)

    def _begin_stage(self, *, hints: bool) -> None:
        """A new objective, and a solver that knows nothing of the stage before."""
        run = self.run
        if hints:
            assert self._teacher is not None
            x, _ = self._batches_of(1, 0, Share())[0]
            objective: Objective = Hint(self.model, self._teacher, Style(run.activation, run.norm), x).to(self.device)
        elif run.method != "plain":
            assert self._teacher is not None
            objective = Distillation(self.model, self._teacher, run)
        else:
            objective = Classification(self.model, LOSSES[run.loss], run.auxiliary)
        self._hints = hints
        self._objective = objective
        self._solver = Solver(run, objective)
        together = self.world.together(objective, self.device)
        self._called = torch.compile(together) if self._compiled else together

    def initialize(self) -> Report:
        """Give the network its first weights."""
        run, start = self.run, time.perf_counter()
        generator = torch.Generator().manual_seed(seed_of(run.seed, "init"))
        batches = self._batches_of(run.init_batch, seed_of(run.seed, "init batch"), Share())  # the same in all processes
        report = initialize_(self.model, run, batches, generator)
        prepare_(self.model, gate_bias=run.gate_bias)
        self.world.copy_from_first_(self.model)
        self.progress.init_seconds = time.perf_counter() - start
        torch.manual_seed(seed_of(run.seed, "dropout", *([self.world.rank] if self.world.rank else [])))
        return report

    def advance(self, stop: int) -> float:
        """Train up to an iteration; returns the last loss. Where one is not finite, its iteration is noted and the last."""
        progress, start, hints = self.progress, time.perf_counter(), self.run.hint_iterations
        if self._hints and progress.iteration >= hints:
            self._begin_stage(hints=False)
            progress.losses = 0.0
        self._objective.train()
        begin, length = (0, hints) if self._hints else (hints, self.run.iterations)
        losses = []
        for iteration in range(progress.iteration, stop):
            x, y = self._batches[iteration]
            done = torch.tensor((iteration - begin) / length, device=self.device)
            with self._autocast():
                loss = self._called(x, y, done)
            loss.backward()
            self._step(iteration - begin)
            losses.append(loss.detach())
        values = self.world.mean_(torch.stack(losses).double()).tolist()
        finite = [math.isfinite(value) for value in values]
        if not all(finite):
            progress.diverged_at = progress.iteration + finite.index(False) + 1
            stop = progress.diverged_at
        progress.losses += sum(values[: stop - progress.iteration])
        progress.iteration = stop
        progress.seconds += time.perf_counter() - start
        return float(values[-1])

    def _step(self, iteration: int) -> None:
        if iteration not in self._tracked or self._hints:
            self._solver.step(iteration)
            return
        weights = {name: p for name, p in self.model.named_parameters() if p.dim() > 1}
        before = {name: p.detach().clone() for name, p in weights.items()}
        self._solver.step(iteration)
        for name, p in weights.items():
            size = torch.linalg.vector_norm(p.detach() - before[name]) / torch.linalg.vector_norm(before[name])
            self.progress.updates.setdefault(name, []).append([iteration + 1, size.item() if size.isfinite() else -1.0])

    @torch.inference_mode()
    def evaluate(self) -> Evaluation:
        """Test the network on all test images."""
        self.model.eval()
        self.world.copy_from_first_(self.model)  # statistics of batch normalization, which differ by rounding
        right = torch.zeros((), dtype=torch.int64, device=self.device)
        parts = in_order(
            self._test,
            self._preprocessing,
            size=_TEST_BATCH,
            device=self.device,
            crop=self.run.crop,
            share=self.world.share,
        )
        for x, y in parts:
            with self._autocast():
                right += (self.model(x).argmax(1) == y).sum()
        self.world.sum_(right)
        progress = self.progress
        last = int(progress.evaluations[-1][0]) if progress.evaluations else self.run.hint_iterations
        evaluation = Evaluation(progress.iteration, right.item() / len(self._test), progress.losses / (progress.iteration - last))
        progress.evaluations.append([evaluation.iteration, evaluation.accuracy, evaluation.loss])
        progress.losses = 0.0
        return evaluation

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.run.precision == "bfloat16")

    def state(self) -> State:
        """All that the rest of the training depends on; where the batches stand follows from the iteration."""
        cuda = torch.cuda.get_rng_state(self.device) if self.device.type == "cuda" else None
        return {
            "progress": asdict(self.progress),
            "data": self._data,
            "hints": self._hints,
            "model": self.model.state_dict(),
            "regressor": self._objective.regressor.state_dict() if isinstance(self._objective, Hint) else None,
            "optimizer": self._solver.optimizer.state_dict(),
            "random": self.world.gathered((torch.get_rng_state(), cuda)),
        }

    def take_up(self, state: State) -> None:
        """Be where the state was taken."""
        if state["data"] != self._data:
            raise CheckpointError(
                f"the checkpoint is of a run on other images of {self.run.data} (SHA-256 {state['data'][0][:12]}…, now "
                f"{self._data[0][:12]}…); give it the same ones, or delete the checkpoint to begin anew"
            )
        self.progress = Progress(**state["progress"])
        self.progress.interruptions += 1
        if self._hints and not state["hints"]:
            self._begin_stage(hints=False)
        self.model.load_state_dict(state["model"])
        if isinstance(self._objective, Hint):
            self._objective.regressor.load_state_dict(state["regressor"])
        self._solver.optimizer.load_state_dict(state["optimizer"])
        if len(state["random"]) != self.world.size:
            raise CheckpointError(
                f"the checkpoint is of {len(state['random'])} processes, this training has {self.world.size}; go on with as "
                "many, or delete the checkpoint to begin anew"
            )
        cpu, cuda = state["random"][self.world.rank]
        torch.set_rng_state(cpu)
        if self.device.type == "cuda" and cuda is not None:
            torch.cuda.set_rng_state(cuda, self.device)

    def outcome(self) -> Outcome:
        """What the training came to."""
        largest = self._test.labels.bincount().max().item() / len(self._test)
        guessing = largest + 3 * math.sqrt(largest * (1 - largest) / len(self._test))
        return Outcome(self.progress, self.run.batch, guessing, _sha256(self.model), self.model.state_dict())


def initialize_(model: nn.Module, run: Training, batches: Batches, generator: torch.Generator) -> Report:
    """The initialization of a run. Schemes that measure see its first batches."""
    x, _ = batches[0]
    if run.init == "krahenbuhl":
        return newer.krahenbuhl_(model, x, generator=generator)
    if run.init == "gradinit":
        return newer.gradinit_(model, batches, LOSSES[run.loss], run, generator=generator)
    if run.init == "bvlc":
        return newer.bvlc_(model, generator=generator)
    # The paper has ReLU's factor for all non-linearities.
    nonlinearity = nonlinearity_of(run.activation) if run.init == "random-walk" else "relu"
    scheme: Any = run.init
    # All processes give it the same images: each by itself finds the same weights.
    return init_(model, scheme, x, nonlinearity=nonlinearity, gain=run.init_gain, generator=generator, distributed=False)


def _tracked(iterations: int) -> frozenset[int]:
    """The iterations, from 0, whose updates are recorded: the first ones, and then ever fewer."""
    spread = (round(iterations ** (i / (_TRACKED - 1))) - 1 for i in range(_TRACKED))
    return frozenset(spread)


def _sha256(model: nn.Module) -> str:
    digest = hashlib.sha256()
    for tensor in model.state_dict().values():
        digest.update(_bytes(tensor))
    return digest.hexdigest()


def _bytes(tensor: Tensor) -> Any:
    return tensor.detach().cpu().contiguous().numpy().tobytes()
