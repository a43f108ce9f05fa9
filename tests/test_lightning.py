"""The callback for PyTorch Lightning, in real Trainers."""

from __future__ import annotations

import csv
import json
import re
import subprocess
import sys
from collections import Counter, OrderedDict, defaultdict, deque
from copy import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, Dataset

from torchvision_ops import environment_of_users

lightning = pytest.importorskip("lightning")
pytest.importorskip("sklearn")

from lightning.pytorch import LightningDataModule, LightningModule, Trainer  # noqa: E402 - skipped without the package
from lightning.pytorch.callbacks import LearningRateFinder  # noqa: E402 - skipped without the package
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger  # noqa: E402 - skipped without the package
from lightning.pytorch.strategies import SingleDeviceStrategy  # noqa: E402 - skipped without the package
from torchmetrics import MetricCollection  # noqa: E402 - skipped without the package
from torchmetrics.classification import MulticlassAccuracy, MulticlassRecall  # noqa: E402 - skipped without the package

from goodinit import ModelError, OptionError  # noqa: E402 - skipped without the package
from goodinit.images import digits  # noqa: E402 - skipped without the package
from goodinit.integrations.lightning import LSUVCallback  # noqa: E402 - skipped without the package

pytestmark = [
    pytest.mark.filterwarnings("ignore:`isinstance.treespec, LeafSpec.`:FutureWarning"),  # lightning's use of torch
    pytest.mark.filterwarnings("ignore:The '.*_dataloader' does not have many workers"),  # advice; the data is in memory
    pytest.mark.filterwarnings("ignore:The number of training batches"),  # advice on the logging interval
    pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty"),  # so it is when fit goes on
    pytest.mark.filterwarnings("ignore:You are using `torch.load` with `weights_only=False`"),  # its own checkpoints
    pytest.mark.filterwarnings("ignore:.*litlogger"),  # advertisement
]
IMAGES = digits()


class Digits(Dataset):
    """Images with labels, with a little noise from the global generator, and a note of which were asked for."""

    def __init__(self, count=256):
        self.count, self.seen = count, []

    def __len__(self):
        return self.count

    def __getitem__(self, i):
        self.seen.append(i)
        return IMAGES.train[i].flatten() + 0.01 * torch.randn(64), IMAGES.train_labels[i]


class Net(LightningModule):
    def __init__(self, depth=4):
        super().__init__()
        hidden = [layer for _ in range(depth) for layer in (nn.Linear(64, 64), nn.Tanh(), nn.Dropout(0.1))]
        self.net = nn.Sequential(*hidden, nn.Linear(64, 10))
        self.seen = []

    def training_step(self, batch, batch_idx):
        self.seen.append((batch[0].double().sum().item(), torch.get_rng_state().sum().item()))
        loss = F.cross_entropy(self.net(batch[0]), batch[1])
        self.log("loss", loss)
        return loss

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.01)


def loader(**kwargs):
    return DataLoader(Digits(), batch_size=64, shuffle=True, **kwargs)


def trainer(*callbacks, **kwargs):
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False, "logger": False}
    return Trainer(accelerator="cpu", callbacks=list(callbacks), **{"max_epochs": 1, **quiet, **kwargs})


def fit(module, *callbacks, data=None, seed=0, **kwargs):
    own = {key: kwargs.pop(key) for key in ("ckpt_path", "datamodule") if key in kwargs}
    used = trainer(*callbacks, **kwargs)
    torch.manual_seed(seed)
    used.fit(module, None if "datamodule" in own else data or loader(), **own)
    return used


class Frozen(Net):
    """Shows what it starts from."""

    def test_step(self, batch, batch_idx):
        pass

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.0)


@torch.no_grad()
def stds(module, images=IMAGES.train[:256]):
    """Of the output of every linear layer."""
    x, found = images.flatten(1), []
    for layer in module.net.eval():
        x = layer(x)
        if isinstance(layer, nn.Linear):
            found.append(x.std().item())
    return found


def test_outputs_of_all_layers_have_unit_std_when_training_starts():
    module, callback = Frozen(), LSUVCallback(batches=4)
    fit(module, callback)
    assert callback.report.ok
    assert callback.report.batches == 4
    assert [record.name for record in callback.report] == [f"net.{i}.weight" for i in (0, 3, 6, 9, 12)]
    assert stds(module) == pytest.approx([1] * 5, abs=0.02)


def test_training_is_as_without_it_but_for_the_weights():
    """The same batches, and before each the same state of the random number generator."""
    for workers in ({}, {"num_workers": 1, "persistent_workers": True}):
        one, other = Net(), Net()
        fit(one, data=loader(**workers), max_epochs=2)
        fit(other, LSUVCallback(batches=3), data=loader(**workers), max_epochs=2)
        assert len(one.seen) == 8
        assert one.seen == other.seen


class Autoencoder(Net):
    """As on Lightning's front page: forward is for inference, and not what training runs."""

    def __init__(self):
        super().__init__()
        self.net = nn.ModuleDict({"encoder": nn.Linear(64, 16), "decoder": nn.Linear(16, 64)})  # type: ignore[assignment]  # not the layers one after the other

    def forward(self, x):
        return self.net["encoder"](x)

    def training_step(self, batch):  # batch_idx may be left out
        return F.mse_loss(self.net["decoder"](self(batch[0])), batch[0])


def test_what_training_runs_is_initialized():
    callback = LSUVCallback()
    fit(Autoencoder(), callback)
    assert [(r.name, r.status) for r in callback.report] == [
        ("net.encoder.weight", "scaled"),
        ("net.decoder.weight", "scaled"),
    ]
    callback = LSUVCallback(forward=lambda module, batch: module(batch[0]))
    fit(Autoencoder(), callback)
    assert [r.status for r in callback.report] == ["scaled", "unused"]


class Inner(nn.Module):
    """Counts what it sees."""

    def __init__(self):
        super().__init__()
        self.calls, self.seen = 0, []
        self.state: object = torch.zeros(1)

    def forward(self, x):
        self.state = (x.mean(), x.std())
        self.calls += 1
        self.seen.append(x)
        self.late = True


class Busy(Net):
    """A training_step that does all that one can do."""

    def __init__(self):
        super().__init__()
        self.accuracy = MulticlassAccuracy(10)
        self.metrics = MetricCollection([MulticlassAccuracy(10, average=None), MulticlassRecall(10, average=None)])
        self.outputs, self.recent, self.steps, self.total = [], deque([7], maxlen=2), 0, torch.zeros(())
        self.sizes = {"first": 1}
        self.by_class, self.counts, self.nested = defaultdict(list), Counter(a=1), OrderedDict(losses=[1.0])
        self.inner = Inner()

    def training_step(self, batch, *_):
        logits = self.net(batch[0])
        self.by_class["late"].append(logits)
        self.counts["a"] += 1
        self.nested["losses"].append(2.0)
        self.inner(batch[0])
        self.accuracy(logits, batch[1])
        self.metrics.update(logits, batch[1])
        self.log_dict({"accuracy": self.accuracy, "mean": logits.mean()})
        self.log("std", logits.std(), on_epoch=True)
        self.logger.experiment.add_scalar("own", 1.0)
        self.outputs.append(logits)
        self.recent.append(8)
        self.sizes["second"] = 2
        self.steps += 1
        self.total += 1
        self.late = True
        return F.cross_entropy(logits, batch[1])

    def on_train_start(self):
        self.at_start = (
            [copy(vars(self).get(name)) for name in ("steps", "late", "outputs", "sizes", "log")],
            self.accuracy.tp.sum().item(),
            [metric.update_called for metric in (self.accuracy, *self.metrics.values())],
            self.total.item(),
            list(self.recent),
            dict(self.trainer.logged_metrics),
        )
        inner = self.inner
        self.rest_at_start = (
            *map(copy, (self.by_class, self.counts, self.nested["losses"])),
            *(inner.calls, list(inner.seen), hasattr(inner, "late"), inner.state),
        )


def test_training_step_leaves_no_side_effects(tmp_path):
    module, total = Busy(), None
    total = module.total
    fit(module, LSUVCallback(log=False), max_steps=1, logger=TensorBoardLogger(tmp_path), log_every_n_steps=1)
    attributes, hits, updated, summed, recent, logged = module.at_start
    assert attributes == [0, None, [], {"first": 1}, None]
    assert (hits, summed, recent, logged) == (0, 0, [7], {})
    assert updated == [False] * 3
    assert module.rest_at_start == ({}, {"a": 1}, [1.0], 0, [], False, torch.zeros(1))
    assert module.total is total
    assert module.steps == 1
    assert (module.total.item(), list(module.recent), len(module.outputs)) == (1, [7, 8], 1)
    assert "std_step" in module.trainer.logged_metrics
    tags = events(tmp_path).Tags()
    assert "own" in tags["scalars"]
    assert len(events(tmp_path).Scalars("own")) == 1


def events(folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (path,) = folder.rglob("events.out*")
    return EventAccumulator(str(path)).Reload()


def test_the_report_goes_to_the_loggers(tmp_path):
    callback = LSUVCallback()
    loggers = [TensorBoardLogger(tmp_path / "board"), CSVLogger(tmp_path / "csv", flush_logs_every_n_steps=1)]
    fit(Net(), callback, max_steps=1, logger=loggers)
    tags = events(tmp_path / "board").Tags()
    assert {"goodinit/std_before/net.0.weight", "goodinit/std_after/net.12.weight"} <= set(tags["scalars"])
    assert "goodinit/weight/net.0.weight" in tags["histograms"]
    (path,) = (tmp_path / "csv").rglob("metrics.csv")
    (row,) = csv.DictReader(path.read_text().splitlines())
    assert row["step"] == "0"
    for record in callback.report:
        assert float(row[f"goodinit/std_before/{record.name}"]) == pytest.approx(record.std_before)
        assert float(row[f"goodinit/std_after/{record.name}"]) == pytest.approx(1, abs=1e-4)


def weights(module):
    return [p.detach().clone() for p in module.parameters()]


def test_once(tmp_path):
    """Not when fit is called again, not when training goes on from a checkpoint, not for weights loaded to be tested."""
    module, callback = Frozen(), LSUVCallback()
    used = fit(module, callback, default_root_dir=tmp_path)
    first, report = weights(module), callback.report
    used.fit_loop.max_epochs = 2
    used.fit(module, loader())
    used.save_checkpoint(tmp_path / "last.ckpt")
    assert callback.report is report

    resumed, later = Frozen(), LSUVCallback()
    fit(resumed, later, max_epochs=3, ckpt_path=tmp_path / "last.ckpt", seed=1)
    assert later.report == report

    state = torch.load(tmp_path / "last.ckpt")
    del state["callbacks"]  # as of a training without any
    torch.save(state, tmp_path / "bare.ckpt")
    fit(bare := Frozen(), later, max_epochs=3, ckpt_path=tmp_path / "bare.ckpt", seed=1)

    loaded, another = Frozen(), LSUVCallback()
    used = trainer(another)
    used.test(loaded, DataLoader(Digits()), ckpt_path=tmp_path / "last.ckpt", verbose=False)
    used.fit(loaded, loader())
    for other in (module, resumed, bare, loaded):
        assert all(torch.equal(a, b) for a, b in zip(first, weights(other), strict=True))

    used = fit(trained := Frozen())
    before = weights(trained)
    used.callbacks.append(LSUVCallback())  # too late
    used.fit_loop.max_epochs = 2
    used.fit(trained, loader())
    assert all(torch.equal(a, b) for a, b in zip(before, weights(trained), strict=True))

    fit(fresh := Frozen(), callback, seed=1)  # the same callback, another model
    assert callback.report is not report
    assert stds(fresh) == pytest.approx([1] * 5, abs=0.1)


def test_a_search_for_a_learning_rate_sees_the_initialized_model():
    losses = []

    class Searched(Net):
        lr = 0.01

        def training_step(self, batch, batch_idx):
            loss = super().training_step(batch, batch_idx)
            losses.append(loss.item())
            return loss

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=self.lr)

    class Deaf(LearningRateFinder):
        def lr_find(self, trainer, pl_module):
            super().lr_find(trainer, pl_module)
            losses.append("found")

    callback = LSUVCallback(target_std={"net.12": 3.0})
    fit(
        Searched(), Deaf(num_training_steps=3, update_attr=False), callback, data=DataLoader(Digits(), batch_size=64), max_steps=1
    )
    found = losses.index("found")
    assert losses[1:found][0] > 3  # with outputs of std 3; it was about 2.3 before
    assert losses[0] > 3


class Data(LightningDataModule):
    """Two loaders, whose batches come together, on the way to the device changed by a hook."""

    def train_dataloader(self):
        return {"a": DataLoader(Digits(), batch_size=32), "b": DataLoader(Digits(128), batch_size=16)}

    def on_after_batch_transfer(self, batch, dataloader_idx):
        return {name: (10 * x, y) for name, (x, y) in batch.items()}


class Two(Frozen):
    def training_step(self, batch, batch_idx):
        self.shapes = [batch["a"][0].shape, batch["b"][0].shape]
        return self.net(torch.cat([batch["a"][0], batch["b"][0]])).mean()


def test_batches_are_those_that_training_step_gets():
    callback = LSUVCallback(batches=4, pre_init=None)
    fit(module := Two(), callback, datamodule=Data())
    assert module.shapes == [(32, 64), (16, 64)]
    assert callback.report["net.0.weight"].std_before > 3  # of a tenth of that on the digits as they are


def test_half_precision():
    callback = LSUVCallback()
    fit(Frozen(), callback, precision="bf16-mixed")
    assert callback.report.ok
    fit(module := Frozen(), callback, precision="bf16-true")
    assert module.net[0].weight.dtype == torch.bfloat16
    assert callback.report.ok


def test_a_forward_of_one_s_own_runs_in_the_trainer_s_precision():
    kinds = []

    def forward(module, batch):
        kinds.append(module.net(batch[0]).dtype)

    fit(Net(), LSUVCallback(forward=forward), precision="bf16-mixed", max_steps=1)
    assert kinds == [torch.bfloat16]


def test_a_trial_run_needs_no_tensorboard(monkeypatch):
    """Its loggers have whatever they are asked for."""
    monkeypatch.setitem(sys.modules, "goodinit.integrations.tensorboard", None)  # whoever imports it gets an ImportError
    fit(Net(), callback := LSUVCallback(), fast_dev_run=True, logger=True)
    assert callback.report.ok


def test_no_training_no_initialization():
    callback, module = LSUVCallback(), Frozen()
    before = weights(module)
    fit(module, callback, limit_train_batches=0)
    assert callback.report is None
    assert all(torch.equal(a, b) for a, b in zip(before, weights(module), strict=True))


class Manual(Net):
    def __init__(self):
        super().__init__()
        self.automatic_optimization = False


class ByItself(Net):
    def training_step(self, dataloader_iter):
        return self.net(next(dataloader_iter)[0]).mean()


class Later(Net):
    def on_train_epoch_start(self):
        self.scale = 2.0

    def training_step(self, batch, batch_idx):
        return self.net(batch[0]).mean() * self.scale


class FSDPStrategy(SingleDeviceStrategy):
    """By its name the one that puts weights into flat parameters, which needs a GPU."""


@pytest.mark.filterwarnings("ignore:You are using the `dataloader_iter` step flavor")  # so it is
@pytest.mark.parametrize(
    ("module", "options", "error", "message"),
    [
        (Manual, {}, OptionError, r"the training_step of Manual takes optimizer steps itself .* pass LSUVCallback\(forward="),
        (ByItself, {}, OptionError, r"takes batches itself \(dataloader_iter\)"),
        (
            Later,
            {},
            AttributeError,
            r"raised by training_step, which it runs without gradients and before the module's on_fit_start, on",
        ),
        (
            Net,
            {"strategy": FSDPStrategy("cpu")},
            ModelError,
            r"FSDP keeps the weights in a form of its own.*ModelParallelStrategy",
        ),
    ],
)
def test_what_it_cannot_initialize(module, options, error, message):
    model = module()
    before = weights(model)
    with pytest.raises(error) as caught:
        fit(model, LSUVCallback(), **options)
    assert re.search(message, "\n".join([str(caught.value), *getattr(caught.value, "__notes__", ())]))
    assert all(torch.equal(a, b) for a, b in zip(before, weights(model), strict=True))


def test_options_are_checked_at_once():
    with pytest.raises(OptionError, match="lsuv_ has no option 'std'"):
        LSUVCallback(std=1)


# Trains nothing (a learning rate of 0) on one or two processes, and keeps the weights of each.
SCRIPT = """
import sys
import PACKAGE as pl
import torch
import torch.nn.functional as F
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.utils.data import DataLoader, TensorDataset
from goodinit.images import digits
from goodinit.integrations.lightning import LSUVCallback

strategy, devices, out = sys.argv[1], int(sys.argv[2]), sys.argv[3]
torch.set_num_threads(1)

class Net(pl.LightningModule):
    def configure_model(self):
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 10))
        if strategy == "fsdp2":
            for layer in self.net:
                fully_shard(layer, mesh=self.device_mesh["data_parallel"])

    def training_step(self, batch, batch_idx):
        self.log("seen", batch[0].sum(), sync_dist=True)
        return F.cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.0)

images = digits()
data = TensorDataset(images.train[:256].flatten(1), images.train_labels[:256])
callback = LSUVCallback(batches=256 // 32 // devices, tol=1e-5)
chosen = pl.strategies.ModelParallelStrategy(devices, 1) if strategy == "fsdp2" else strategy
trainer = pl.Trainer(accelerator="cpu", devices=devices, strategy=chosen, max_epochs=1, logger=False, callbacks=[callback],
                     enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False)
module = Net()
torch.manual_seed(1 + trainer.global_rank)  # random numbers of its own in each process
trainer.fit(module, DataLoader(data, batch_size=32))
whole = [p.full_tensor() if isinstance(p, DTensor) else p.detach() for p in module.parameters()]
torch.save((whole, callback.report.to_json()), f"{out}.{trainer.global_rank}")
"""


def run(folder, *words, package="lightning.pytorch"):
    script = folder / "script.py"
    script.write_text(SCRIPT.replace("PACKAGE", package))
    done = subprocess.run(
        [sys.executable, "-W", "ignore", script, *map(str, words)],
        capture_output=True,
        text=True,
        env=environment_of_users(),
        cwd=folder,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_two_processes_end_with_the_weights_of_one(tmp_path):
    run(tmp_path, "auto", 1, tmp_path / "one")
    expected, _ = torch.load(tmp_path / "one.0")
    for strategy in ("ddp", "fsdp2"):
        run(tmp_path, strategy, 2, tmp_path / strategy)
        (first, report), (second, _) = (torch.load(tmp_path / f"{strategy}.{rank}") for rank in (0, 1))
        assert [r["status"] for r in json.loads(report)["records"]] == ["scaled"] * 3
        for a, b, weight in zip(first, second, expected, strict=True):
            assert torch.equal(a, b)
            assert torch.allclose(a, weight, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_the_other_name_of_the_package(tmp_path):
    pytest.importorskip("pytorch_lightning")
    run(tmp_path, "auto", 1, tmp_path / "one", package="pytorch_lightning")
    run(tmp_path, "auto", 1, tmp_path / "other")
    (weights_of_one, _), (others, _) = torch.load(tmp_path / "one.0"), torch.load(tmp_path / "other.0")
    assert all(torch.equal(a, b) for a, b in zip(weights_of_one, others, strict=True))
