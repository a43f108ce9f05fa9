"""Handwritten digits, and what becomes of the signal during training, in TensorBoard: with LSUV and without, side by side.

python examples/tensorboard_digits.py
tensorboard --logdir runs

Needs goodinit[tensorboard,data]. Under Scalars each layer's std and gradient have a curve from step to step, under Histograms its
outputs and weights, under Text the tables of the measurements and of the initialization.
"""

import argparse
from pathlib import Path

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.tensorboard import SummaryWriter

from goodinit import lsuv_, measure
from goodinit.integrations.tensorboard import to_tensorboard


def load() -> tuple[Tensor, Tensor]:
    """Images of unit variance, and their labels."""
    pixels, digits = load_digits(return_X_y=True)
    images = torch.as_tensor(pixels, dtype=torch.float32)
    return (images - images.mean()) / images.std(), torch.as_tensor(digits)


def train(folder: Path, *, with_lsuv: bool) -> float:
    """200 steps, the signal measured at every 50th. Returns the accuracy on held-out images."""
    images, labels = load()
    torch.manual_seed(0)
    hidden = [layer for _ in range(19) for layer in (nn.Linear(64, 64), nn.Tanh())]
    model = nn.Sequential(*hidden, nn.Linear(64, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    first = images[:256], labels[:256]

    with SummaryWriter(folder) as writer:
        if with_lsuv:
            to_tensorboard(lsuv_(model, first[0]), writer, tag="lsuv", model=model)
        for step in range(201):
            if step % 50 == 0:
                to_tensorboard(measure(model, first, loss=F.cross_entropy), writer, step, tag="signal", model=model)
            batch = torch.randint(1400, (64,))
            loss = F.cross_entropy(model(images[batch]), labels[batch])
            writer.add_scalar("loss", loss, step)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        accuracy = float((model(images[1400:]).argmax(1) == labels[1400:]).float().mean())
        writer.add_scalar("accuracy", accuracy, step)
    return accuracy


def main(folder: Path) -> None:
    """Both, in folders of their own."""
    for name, with_lsuv in (("default", False), ("lsuv", True)):
        print(f"{name}: accuracy {train(folder / name, with_lsuv=with_lsuv):.1%}")
    print(f"tensorboard --logdir {folder}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path, default=Path("runs"), help="where the two runs are written to")
    main(parser.parse_args().folder)
