"""A language model of one's own with transformers' Trainer: 10 layers that tell the next letter from the 16 before it.

python examples/transformers_genesis.py            # learns
python examples/transformers_genesis.py --without  # learns how frequent each letter is, no more

On Genesis, which lies in the repository; another text can be named. Needs goodinit[transformers].
"""

import argparse
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers import PretrainedConfig, PreTrainedModel, Trainer, TrainingArguments, set_seed

from goodinit.integrations.transformers import LSUVCallback

TEXT = Path(__file__).resolve().parents[1] / "benchmarks" / "trainability" / "data" / "genesis.txt"
BEFORE = 16


class LettersConfig(PretrainedConfig):
    """How many letters there are, and how deep it is."""

    model_type = "letters"

    def __init__(self, vocab_size: int = 64, num_layers: int = 10, hidden_size: int = 96, **kwargs: Any) -> None:
        self.vocab_size, self.num_layers, self.hidden_size = vocab_size, num_layers, hidden_size
        super().__init__(**kwargs)


class Letters(PreTrainedModel):
    """After Bengio et al. (2003). No normalization, no shortcuts; ``post_init`` draws weights as transformers does: std 0.02."""

    config_class = LettersConfig

    def __init__(self, config: LettersConfig) -> None:
        super().__init__(config)
        width = config.hidden_size
        self.embedding = nn.Embedding(config.vocab_size, 16)
        hidden = [layer for _ in range(config.num_layers - 2) for layer in (nn.Linear(width, width), nn.Tanh())]
        self.body = nn.Sequential(nn.Linear(BEFORE * 16, width), nn.Tanh(), *hidden)
        self.head = nn.Linear(width, config.vocab_size)
        self.post_init()  # type: ignore[no-untyped-call]  # transformers is typed in part

    def forward(self, input_ids: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """(n, 16) letters, and those that come next."""
        logits = self.head(self.body(self.embedding(input_ids).flatten(1)))
        return {"loss": F.cross_entropy(logits, labels), "logits": logits}


class Windows(Dataset[dict[str, Tensor]]):
    """Every 17 letters of a text."""

    def __init__(self, codes: Tensor) -> None:
        self.codes = codes

    def __len__(self) -> int:
        return len(self.codes) - BEFORE

    def __getitem__(self, i: int) -> dict[str, Tensor]:
        return {"input_ids": self.codes[i : i + BEFORE], "labels": self.codes[i + BEFORE]}


def main(path: Path, *, with_lsuv: bool) -> float:
    """Train for 300 steps; returns the nats a letter on the last 4000 letters."""
    set_seed(0)
    text = path.read_text(encoding="utf-8")
    letters = sorted(set(text))
    codes = torch.tensor([letters.index(letter) for letter in text])

    callback = LSUVCallback(batches=2)
    trainer = Trainer(
        Letters(LettersConfig(vocab_size=len(letters))),
        TrainingArguments(
            "build/transformers_genesis",
            max_steps=300,
            learning_rate=3e-3,
            per_device_train_batch_size=128,
            per_device_eval_batch_size=1000,
            logging_steps=100,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            use_cpu=True,
        ),
        train_dataset=Windows(codes[:-4000]),
        eval_dataset=Windows(codes[-4000:]),
        callbacks=[callback] if with_lsuv else [],
    )
    trainer.train()
    if callback.report is not None:
        callback.report.show()
    nats = float(trainer.evaluate()["eval_loss"])
    print(f"{nats:.2f} nats a letter")
    return nats


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--without", action="store_true", help="train without LSUV")
    parser.add_argument("text", nargs="?", type=Path, default=TEXT, help="a file of letters")
    given = parser.parse_args()
    main(given.text, with_lsuv=not given.without)
