"""Handwritten digits in a training loop of one's own with Accelerate: a plain network of 20 layers.

python examples/accelerate_digits.py            # learns
python examples/accelerate_digits.py --without  # does not
accelerate launch --cpu --num_processes 2 examples/accelerate_digits.py  # by two processes

Needs goodinit[accelerate,data].
"""

import argparse

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.utils import set_seed
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset, random_split

from goodinit.integrations.accelerate import lsuv_


def make_network() -> nn.Sequential:
    """20 layers, no normalization, no shortcuts."""
    hidden = [layer for _ in range(18) for layer in (nn.Conv2d(16, 16, 3, padding=1), nn.Tanh())]
    first = nn.Conv2d(1, 16, 3, stride=2, padding=1)
    return nn.Sequential(first, nn.Tanh(), *hidden, nn.AvgPool2d(2), nn.Flatten(), nn.Linear(64, 10))


def main(*, with_lsuv: bool) -> float:
    """Train for 5 epochs; returns the accuracy on held-out images."""
    set_seed(0)
    pixels, digits = load_digits(return_X_y=True)
    images = torch.as_tensor(pixels, dtype=torch.float32).view(-1, 1, 8, 8)
    data = TensorDataset((images - images.mean()) / images.std(), torch.as_tensor(digits))
    train, test = random_split(data, [0.8, 0.2])

    accelerator = Accelerator(cpu=True)
    model: nn.Module = make_network()
    model, optimizer, loader, tests = accelerator.prepare(
        model,
        torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9),
        DataLoader(train, batch_size=64 // accelerator.num_processes, shuffle=True),
        DataLoader(test, batch_size=360),
    )
    if with_lsuv:
        report = lsuv_(accelerator, model, loader, batches=4)
        accelerator.print(report)

    for epoch in range(5):
        for x, y in loader:
            loss = F.cross_entropy(model(x), y)
            accelerator.backward(loss)
            optimizer.step()
            optimizer.zero_grad()
        accelerator.print(f"epoch {epoch}: loss {loss.item():.3f}")

    with torch.no_grad():
        right = torch.cat([accelerator.gather_for_metrics(model(x).argmax(1) == y) for x, y in tests])
    accuracy = right.float().mean().item()
    accelerator.print(f"accuracy {accuracy:.1%}")
    accelerator.end_training()
    return accuracy


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--without", action="store_true", help="train without LSUV")
    main(with_lsuv=not parser.parse_args().without)
