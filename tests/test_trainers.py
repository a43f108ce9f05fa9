"""The integrations with Lightning, transformers' Trainer and Accelerate, against the real packages."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from goodinit import ModelError, OptionError

transformers = pytest.importorskip("transformers")
accelerate = pytest.importorskip("accelerate")

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*pin_memory.*:UserWarning"),  # torch's, of a machine without a GPU
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # of the packages among themselves
]

CONFIG = transformers.BertConfig(
    vocab_size=60, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=48, max_position_embeddings=16
)


class Sentences(torch.utils.data.Dataset):
    def __len__(self):
        return 32

    def __getitem__(self, i):
        ids = torch.randint(60, (8,), generator=torch.Generator().manual_seed(i))
        return {"input_ids": ids, "labels": int(ids[0] > 30)}


def trainer(tmp_path, model, callback, **options):
    arguments = transformers.TrainingArguments(
        output_dir=str(tmp_path), per_device_train_batch_size=16, max_steps=2, report_to=[], use_cpu=True, disable_tqdm=True,
        learning_rate=0.0, save_steps=1, **options,
    )  # fmt: skip
    return transformers.Trainer(model, arguments, train_dataset=Sentences(), callbacks=[callback])


def classifier():
    torch.manual_seed(0)
    return transformers.BertForSequenceClassification(CONFIG)


def test_a_trainer_begins_with_it_and_init_weights_does_not_undo_it(tmp_path):
    from goodinit.integrations.transformers import LSUVCallback

    model, callback = classifier(), LSUVCallback(target_std={"classifier": 0.5})
    trainer(tmp_path, model, callback).train()
    assert callback.report.ok
    assert callback.report["classifier.weight"].target == 0.5
    assert callback.report["bert.encoder.layer.0.intermediate.dense.weight"].status == "scaled"
    after = {name: p.clone() for name, p in model.named_parameters()}
    model.init_weights()
    assert all(torch.equal(p, after[name]) for name, p in model.named_parameters())


def test_not_when_a_trainer_goes_on_from_a_checkpoint(tmp_path):
    from goodinit.integrations.transformers import LSUVCallback

    trainer(tmp_path, classifier(), LSUVCallback()).train()
    callback = LSUVCallback()
    again = trainer(tmp_path, classifier(), callback)
    again.args.max_steps = 3
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert callback.report is None


def test_loaded_weights_are_left_as_they_are(tmp_path):
    from goodinit.integrations.transformers import LSUVCallback

    transformers.BertModel(CONFIG).save_pretrained(tmp_path / "base")
    model = transformers.BertForSequenceClassification.from_pretrained(tmp_path / "base")
    loaded = {name: p.clone() for name, p in model.bert.named_parameters()}
    callback = LSUVCallback()
    trainer(tmp_path / "run", model, callback).train()
    assert {r.status for r in callback.report if r.name.startswith("bert.")} == {"skipped"}
    assert callback.report["classifier.weight"].status == "scaled"
    assert all(torch.equal(p, loaded[name]) for name, p in model.bert.named_parameters())
    whole = transformers.BertForSequenceClassification(CONFIG)
    whole.save_pretrained(tmp_path / "whole")
    whole = transformers.BertForSequenceClassification.from_pretrained(tmp_path / "whole")
    with pytest.raises(ModelError, match=r"all weights of BertForSequenceClassification were loaded .* LSUVCallback\(pretrained"):
        trainer(tmp_path / "other", whole, LSUVCallback()).train()


def test_an_unknown_option():
    from goodinit.integrations.transformers import LSUVCallback

    with pytest.raises(OptionError, match=r"lsuv_ has no option 'target' \(did you mean"):
        LSUVCallback(target=1)


def test_a_loop_with_accelerate():
    from goodinit.integrations.accelerate import lsuv_

    torch.manual_seed(0)
    accelerator = accelerate.Accelerator(cpu=True)
    x, y = torch.randn(64, 8), torch.randint(4, (64,))
    net = nn.Sequential(nn.Linear(8, 32), nn.Tanh(), nn.Linear(32, 4))
    loader = DataLoader(TensorDataset(x, y), batch_size=64)
    model, optimizer, loader = accelerator.prepare(net, torch.optim.SGD(net.parameters(), lr=0.1), loader)
    report = lsuv_(accelerator, model, loader)
    assert [r.status for r in report] == ["scaled", "scaled"]
    assert model(x).std(correction=0).item() == pytest.approx(1, abs=1e-5)
    for batch, labels in loader:
        accelerator.backward(F.cross_entropy(model(batch), labels))
        optimizer.step()
    with pytest.raises(OptionError, match="lsuv_ has no option 'target'"):
        lsuv_(accelerator, model, loader, target=1)


def lightning_fit(module, callback, folder, *, epochs=1, ckpt_path=None):
    from lightning import Trainer

    x, y = torch.randn(64, 8, generator=torch.Generator().manual_seed(1)), torch.arange(64) % 4
    loader = DataLoader(TensorDataset(x, y), batch_size=32)
    trainer_ = Trainer(
        max_epochs=epochs, accelerator="cpu", callbacks=[callback], logger=False, default_root_dir=folder,
        enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False,
    )  # fmt: skip
    trainer_.fit(module, loader, ckpt_path=ckpt_path)
    return trainer_


@pytest.mark.filterwarnings("ignore:.*does not have many workers.*", "ignore:.*number of training batches.*")
@pytest.mark.filterwarnings("ignore:.*isinstance.*LeafSpec.*", "ignore:.*pkg_resources.*")
def test_lightning_begins_with_it_once(tmp_path):
    pytest.importorskip("lightning")
    from lightning import LightningModule

    from goodinit.integrations.lightning import LSUVCallback

    class Small(LightningModule):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.net = nn.Sequential(nn.Linear(8, 32), nn.Tanh(), nn.Linear(32, 4))

        def training_step(self, batch, _):
            return F.cross_entropy(self.net(batch[0]), batch[1])

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.0)

    module, callback = Small(), LSUVCallback(batches=2)
    trainer_ = lightning_fit(module, callback, tmp_path)
    assert [r.status for r in callback.report] == ["scaled", "scaled"]
    assert callback.report.batches == 2
    weight = module.net[0].weight.detach() / callback.report["net.0.weight"].factor
    assert torch.allclose(weight.T @ weight, torch.eye(8), atol=1e-5)
    trainer_.save_checkpoint(tmp_path / "one.ckpt")
    again, resumed = LSUVCallback(), Small()
    lightning_fit(resumed, again, tmp_path, epochs=2, ckpt_path=tmp_path / "one.ckpt")
    assert again.report == callback.report  # the one of the checkpoint
    assert torch.equal(resumed.net[0].weight, module.net[0].weight)


@pytest.mark.slow
def test_the_example_with_lightning():
    pytest.importorskip("lightning")
    script = Path(__file__).parents[1] / "examples" / "lightning_digits.py"
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "accuracy" in done.stdout
