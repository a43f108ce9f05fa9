"""Handwritten digits with PyTorch Lightning: a plain network of 20 layers, which LSUV makes trainable.

python examples/lightning_digits.py            # learns
python examples/lightning_digits.py --without  # does not

Needs goodinit[lightning,data].
"""

import argparse

import torch
import torch.nn.functional as F
from lightning import LightningModule, Trainer, seed_everything
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset, random_split

from goodinit.integrations.lightning import LSUVCallback


class Digits(LightningModule):
    """20 layers of 64 units."""

    def __init__(self) -> None:
        super().__init__()
        hidden = [layer for _ in range(19) for layer in (nn.Linear(64, 64), nn.Tanh())]
        self.net = nn.Sequential(*hidden, nn.Linear(64, 10))

    def training_step(self, batch: list[torch.Tensor], batch_idx: int) -> torch.Tensor:
        """LSUV runs this to see the layers at work."""
        images, labels = batch
        loss = F.cross_entropy(self.net(images), labels)
        self.log("loss", loss, prog_bar=True)
        return loss

    def validation_step(self, batch: list[torch.Tensor], batch_idx: int) -> None:
        """Share of images named rightly."""
        images, labels = batch
        self.log("accuracy", (self.net(images).argmax(1) == labels).float().mean(), prog_bar=True)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """The same with and without LSUV."""
        return torch.optim.SGD(self.parameters(), lr=0.01, momentum=0.9)


def main(*, with_lsuv: bool) -> float:
    """Train for 5 epochs; returns the accuracy on held-out images."""
    seed_everything(0)
    pixels, digits = load_digits(return_X_y=True)
    images = torch.as_tensor(pixels, dtype=torch.float32)
    data = TensorDataset((images - images.mean()) / images.std(), torch.as_tensor(digits))
    train, test = random_split(data, [0.8, 0.2])

    callback = LSUVCallback(batches=4)
    trainer = Trainer(
        max_epochs=5,
        accelerator="cpu",
        callbacks=[callback] if with_lsuv else [],
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
    )
    trainer.fit(Digits(), DataLoader(train, batch_size=64, shuffle=True), DataLoader(test, batch_size=360))
    if callback.report is not None:
        callback.report.show()
    accuracy = float(trainer.callback_metrics["accuracy"])
    print(f"accuracy {accuracy:.1%}")
    return accuracy


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--without", action="store_true", help="train without LSUV")
    main(with_lsuv=not parser.parse_args().without)
