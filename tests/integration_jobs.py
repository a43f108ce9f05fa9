"""Trainings with Accelerate and transformers' Trainer for the tests: what one of several processes does, or the only one."""

from __future__ import annotations

from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

import goodinit
from goodinit.images import digits
from torchvision_ops import define_missing_schemas

define_missing_schemas()  # the packages import torchvision, if a test of the zoo has made it be found
SAMPLES = 256
IMAGES = digits()


@contextmanager
def own_state():
    """Accelerate keeps what it finds at its first use for all later ones in the process, the number of processes too."""
    from accelerate.state import AcceleratorState, GradientState

    def forget():
        AcceleratorState._reset_state(reset_partial_state=True)
        GradientState._reset_state()

    forget()
    try:
        yield
    finally:
        forget()


def whole(model):
    """The weights, by the names that they had before the model was prepared; all of those of which each process holds a part."""
    return {
        name.removeprefix("_orig_mod.").removeprefix("module."): getattr(p, "full_tensor", lambda p=p: p)().detach().clone()
        for name, p in model.named_parameters()
    }


def seeded():
    return torch.Generator().manual_seed(0)


def seen(batch):
    """What a training sees: the batch, and where the random numbers stand."""
    return batch.double().sum().item(), torch.get_rng_state().sum().item()


# Accelerate.


def net():
    torch.manual_seed(0)
    hidden = [nn.Linear(64, 32), nn.ReLU(), nn.Dropout(0.1), nn.Linear(32, 32), nn.Tanh()]
    return nn.Sequential(nn.Flatten(), *hidden, nn.Linear(32, 10))


def as_one_would(model, x, **options):
    """The weights that plain `goodinit.lsuv_` gives with all the data in one batch."""
    goodinit.lsuv_(model, x, generator=seeded(), distributed=False, **options)
    return whole(model)


def accelerated(rank, *, sharded=False, with_lsuv=True, **prepared_with):
    """A loop of two epochs with a learning rate of 0: the weights, the report, and all that it saw."""
    from accelerate import Accelerator, FullyShardedDataParallelPlugin

    from goodinit.integrations.accelerate import lsuv_

    with own_state():
        if sharded:
            prepared_with["fsdp_plugin"] = FullyShardedDataParallelPlugin(fsdp_version=2)
        accelerator = Accelerator(cpu=True, **prepared_with)
        torch.manual_seed(1)
        data = TensorDataset(IMAGES.train[:SAMPLES], IMAGES.train_labels[:SAMPLES])
        loader = DataLoader(data, batch_size=32, shuffle=True)
        plain = net()
        model, optimizer, loader = accelerator.prepare(plain, torch.optim.SGD(plain.parameters(), lr=0.0), loader)
        report = None
        torch.manual_seed(2 + rank)  # random numbers of its own in each process
        if with_lsuv:
            report = lsuv_(accelerator, model, loader, batches=len(loader), tol=1e-5, generator=seeded())
        steps = []
        for _ in range(2):
            for x, y in loader:
                steps.append((*seen(x), accelerator.gradient_state.end_of_dataloader))
                accelerator.backward(F.cross_entropy(model(x), y))
                optimizer.step()
                optimizer.zero_grad()
        return whole(model), None if report is None else report.to_json(), steps, accelerator.gradient_state.in_dataloader


# transformers' Trainer.


class Sentences(Dataset):
    """Random tokens, and whether the first of them is a high one."""

    def __len__(self):
        return 32

    def __getitem__(self, i):
        ids = torch.randint(60, (8,), generator=torch.Generator().manual_seed(i))
        return {"input_ids": ids, "labels": int(ids[0] > 30)}

    def all(self):
        """As one batch."""
        items = [self[i] for i in range(len(self))]
        return {"input_ids": torch.stack([i["input_ids"] for i in items]), "labels": torch.tensor([i["labels"] for i in items])}


def classifier():
    from transformers import BertConfig, BertForSequenceClassification

    torch.manual_seed(0)
    return BertForSequenceClassification(
        BertConfig(
            vocab_size=60,
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=48,
            max_position_embeddings=16,
        )
    )


def trainer(folder, model, *callbacks, **options):
    """Of a training that changes nothing: its learning rate is 0."""
    from transformers import Trainer, TrainingArguments

    usual = {"per_device_train_batch_size": 16, "max_steps": 2, "save_strategy": "no"}
    arguments = TrainingArguments(
        output_dir=str(folder), report_to=[], use_cpu=True, disable_tqdm=True, learning_rate=0.0, **{**usual, **options}
    )
    return Trainer(model, arguments, train_dataset=Sentences(), callbacks=list(callbacks))


def trained(rank, folder, *, sharded=False):
    """A training by two processes: the weights at its end, the report."""
    from goodinit.integrations.transformers import LSUVCallback

    with own_state():
        options = {"fsdp": True, "fsdp_config": {"version": 2}} if sharded else {}
        callback = LSUVCallback(batches=2, tol=1e-5, generator=seeded())
        used = trainer(folder, classifier(), callback, per_device_train_batch_size=8, **options)
        used.train()
        return whole(used.model_wrapped), callback.report.to_json()
