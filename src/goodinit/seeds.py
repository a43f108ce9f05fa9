"""Random numbers for weights: each weight has a generator of its own, seeded by its place in the model.

So the matrix of a weight depends on the seed and its place alone: not on which other weights are drawn, in which order, or by how
many processes.
"""

from __future__ import annotations

import hashlib

import torch


class Seeds:
    """Generators for the weights of one initialization, all following from one number."""

    def __init__(self, base: int) -> None:
        self.base = base

    @classmethod
    def drawn_from(cls, generator: torch.Generator | None) -> Seeds:
        """The number is the next one of a generator, of torch's global one by default."""
        return cls(number_from(torch.default_generator if generator is None else generator))

    def generator(self, place: object, device: torch.device) -> torch.Generator:
        """The generator of a weight.

        Args:
            place: where the weight is in the model: its parameter's number in the order of registration, and for a part of a
                parameter what tells it from others.
            device: where the random numbers are drawn.
        """
        digest = hashlib.sha256(f"{self.base}/{place}".encode()).digest()
        return torch.Generator(device).manual_seed(int.from_bytes(digest[:8], "big") >> 1)


def number_from(generator: torch.Generator) -> int:
    """The next one that a generator draws."""
    return int(torch.randint(2**62, (), generator=generator, device=generator.device))
