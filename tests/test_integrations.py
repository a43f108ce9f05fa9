"""What the integrations have in common."""

from __future__ import annotations

import pickle
import subprocess
import sys

import pytest
import torch
from torch import nn

import rank_jobs
from goodinit import ModelError, OptionError
from goodinit.integrations.shared import Once, apart, refuse
from nets import mlp

# The packages of the integrations are there for none of them.
WITHOUT = """
import importlib, sys
import goodinit.integrations
assert not {"lightning", "transformers", "accelerate", "tensorboard"} & {name.partition(".")[0] for name in sys.modules}
class Missing:
    def find_spec(self, name, *_):
        if name in ("lightning", "pytorch_lightning", "transformers", "accelerate", "tensorboard"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Missing())
for name in ("lightning", "transformers", "accelerate", "tensorboard"):
    try:
        importlib.import_module(f"goodinit.integrations.{name}")
    except ImportError as error:
        print(error)
"""


def test_each_file_asks_for_its_package_alone():
    done = subprocess.run([sys.executable, "-c", WITHOUT], capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()
    assert len(lines) == 4
    for line, extra in zip(lines, ("lightning", "transformers", "accelerate", "tensorboard"), strict=True):
        assert line.endswith(f"is not installed; it comes with the extra '{extra}': pip install 'goodinit[{extra}]'")


def test_options_that_lsuv_does_not_have():
    with pytest.raises(
        OptionError, match=r"lsuv_ has no option 'target_stds' \(did you mean 'target_std'.*\?\); it has batches, "
    ):
        Once(target_stds=1)


def test_a_model_once():
    once, model, x = Once(target_std=0.5), nn.Linear(4, 4), torch.randn(64, 4)
    assert not once.is_done(model)
    assert once.run(model, x)["weight"].target == 0.5
    assert once.is_done(model)
    left = nn.Linear(4, 4)
    once.leave(left)
    assert once.is_done(left)
    copy = pickle.loads(pickle.dumps(once))
    assert not copy.is_done(model)
    assert copy.run(model, x)["weight"].target == 0.5


def test_random_numbers_apart():
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    with apart():
        inside = torch.rand(3)
    assert torch.equal(torch.rand(3), expected)
    assert not torch.equal(inside, expected)
    torch.manual_seed(0)
    with apart():
        assert torch.equal(torch.rand(3), inside)


def test_what_keeps_weights_in_a_form_of_its_own():
    refuse(mlp(4, 4), instead="")
    with pytest.raises(ModelError, match=r"DeepSpeed keeps the weights in a form of its own, out of lsuv_'s reach; use FSDP2"):
        refuse(mlp(4, 4), "DeepSpeed", instead="use FSDP2")


def test_fsdp1(two):
    for refused in two.outcomes(rank_jobs.fsdp1):
        assert refused.kind == "ModelError"
        assert "FullyShardedDataParallel (FSDP1) keeps the weights" in refused.text
