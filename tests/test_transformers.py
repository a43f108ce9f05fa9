"""The callback for transformers' Trainer, in real Trainers, by one process and by two."""

from __future__ import annotations

import inspect
import logging
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn

pytest.importorskip("transformers")
pytest.importorskip("accelerate")
pytest.importorskip("sklearn")

from transformers import BertForSequenceClassification, BertModel, Trainer, TrainingArguments

import integration_jobs as jobs
from goodinit import ModelError, OptionError, Report
from goodinit.integrations.transformers import LSUVCallback, mark_initialized
from integration_jobs import classifier, trainer
from processes import Processes

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*pin_memory.*:UserWarning"),  # torch's, of a machine without a GPU
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # of the packages among themselves
]


@pytest.fixture(autouse=True)
def own_state():
    with jobs.own_state():
        yield


@pytest.fixture(scope="module")
def two():
    with Processes(2, timeout=120, limit=300) as processes:  # which import the package first
        yield processes


def unchanged(model, weights):
    return all(torch.equal(p, weights[name]) for name, p in jobs.whole(model).items())


def test_a_trainer_begins_with_it_and_init_weights_does_not_undo_it(tmp_path, caplog):
    model, callback = classifier(), LSUVCallback(batches=2, target_std={"classifier": 0.5})
    with caplog.at_level(logging.INFO, logger="goodinit"):
        trainer(tmp_path, model, callback).train()
    assert callback.report.ok
    assert callback.report.batches == 2
    assert callback.report["classifier.weight"].target == 0.5
    assert callback.report["bert.encoder.layer.0.intermediate.dense.weight"].status == "scaled"
    assert callback.report.summary() in caplog.text
    outputs = {}
    for name in ("bert.encoder.layer.0.attention.self.query", "bert.encoder.layer.1.output.dense", "classifier"):
        model.get_submodule(name).register_forward_hook(lambda _, __, out, name=name: outputs.update({name: out.std().item()}))
    model.eval()(**jobs.Sentences().all())
    assert list(outputs.values()) == pytest.approx([1, 1, 0.5], abs=0.02)
    after = jobs.whole(model)
    init_weights_of_all(model)
    assert unchanged(model, after)


def init_weights_of_all(model):
    """Also of the modules that transformers remembers to have initialized when it made the model."""
    model.apply(lambda module: setattr(module, "_is_hf_initialized", False))
    model.init_weights()


def test_without_marks_init_weights_does_undo_it():
    """Or the test above would show nothing."""
    model, x = classifier(), jobs.Sentences().all()
    weights = jobs.as_one_would(model, x)
    init_weights_of_all(model)
    assert not unchanged(model, weights)
    weights = jobs.as_one_would(model, x)
    mark_initialized(model)
    init_weights_of_all(model)
    assert unchanged(model, weights)


class Watching(Trainer):
    """Notes what a training sees."""

    def compute_loss(self, model, inputs, *args, **kwargs):
        self.notes = [*getattr(self, "notes", []), jobs.seen(inputs["input_ids"])]
        return super().compute_loss(model, inputs, *args, **kwargs)


def test_a_training_sees_what_it_would_have_seen(tmp_path):
    notes = []
    for callbacks in ([], [LSUVCallback(batches=2)]):
        usual = trainer(tmp_path, classifier())
        used = Watching(usual.model, usual.args, train_dataset=jobs.Sentences(), callbacks=callbacks)
        used.args.max_steps = 5  # two epochs and a half
        used.train()
        notes.append(used.notes)
    assert len(notes[0]) == 5
    assert notes[0] == notes[1]


def test_not_when_a_trainer_goes_on_from_a_checkpoint(tmp_path):
    trainer(tmp_path, first := classifier(), LSUVCallback(), save_strategy="steps", save_steps=1).train()
    callback = LSUVCallback()
    again = trainer(tmp_path, resumed := classifier(), callback, max_steps=3)
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert callback.report is None
    assert unchanged(resumed, jobs.whole(first))


def test_once_for_each_model(tmp_path):
    callback = LSUVCallback()
    used = trainer(tmp_path, model := classifier(), callback)
    used.train()
    weights, report = jobs.whole(model), callback.report
    used.train()
    assert callback.report is report
    assert unchanged(model, weights)

    with jobs.own_state():
        usual = trainer(tmp_path, classifier())
        used = Trainer(None, usual.args, train_dataset=jobs.Sentences(), callbacks=[callback], model_init=classifier)
        models = []
        for _ in range(2):
            used.train()
            models.append(used.model)
            assert callback.report["classifier.weight"].status == "scaled"
            assert callback.report is not report
            report = callback.report
        assert models[0] is not models[1]


def test_loaded_weights_are_left_as_they_are(tmp_path):
    BertModel(classifier().config).save_pretrained(tmp_path / "base")
    model = BertForSequenceClassification.from_pretrained(tmp_path / "base")
    loaded = jobs.whole(model.bert)
    callback = LSUVCallback()
    trainer(tmp_path / "run", model, callback).train()
    assert {r.status for r in callback.report if r.name.startswith("bert.")} == {"skipped"}
    assert callback.report["classifier.weight"].status == "scaled"
    assert unchanged(model.bert, loaded)

    model = BertForSequenceClassification.from_pretrained(tmp_path / "base")
    trainer(tmp_path / "all", model, callback := LSUVCallback(pretrained=True, skip="*.query")).train()
    assert {r.status for r in callback.report} == {"scaled", "skipped"}
    assert {r.name.split(".")[-2] for r in callback.report if r.status == "skipped"} == {"query"}


def test_nothing_to_initialize(tmp_path):
    classifier().save_pretrained(tmp_path / "whole")
    model = BertForSequenceClassification.from_pretrained(tmp_path / "whole")
    with pytest.raises(ModelError, match=r"all weights of BertForSequenceClassification were loaded .* LSUVCallback\(pretrained"):
        trainer(tmp_path / "run", model, LSUVCallback()).train()


class Regression(nn.Module):
    """Not one of transformers', and its loss is the Trainer's business."""

    def __init__(self):
        super().__init__()
        self.embedding, self.net = nn.Embedding(60, 32), nn.Sequential(nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 2))

    def forward(self, tokens):
        return self.net(self.embedding(tokens).mean(1))


class OwnLoss(Trainer):
    def compute_loss(self, model, inputs, *_, **__):
        return F.cross_entropy(model(inputs["input_ids"]), inputs["labels"])


def test_a_trainer_with_a_loss_of_its_own(tmp_path):
    callback = LSUVCallback(forward=lambda model, batch: model(batch["input_ids"]))
    arguments = trainer(tmp_path, classifier(), remove_unused_columns=False).args
    OwnLoss(Regression(), arguments, train_dataset=jobs.Sentences(), callbacks=[callback]).train()
    assert [(r.name, r.status) for r in callback.report] == [("net.0.weight", "scaled"), ("net.2.weight", "scaled")]


@pytest.mark.parametrize(
    "options",
    [{"bf16": True}, {"activation_checkpointing": True}, {"gradient_accumulation_steps": 2}, {"auto_find_batch_size": True}],
    ids=lambda options: next(iter(options)),
)
def test_ways_of_training(options, tmp_path):
    if not options.keys() <= inspect.signature(TrainingArguments).parameters.keys():
        pytest.skip("this version of transformers has no such argument")
    callback = LSUVCallback()
    trainer(tmp_path, model := classifier(), callback, **options).train()
    assert callback.report.ok
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert {r.status for r in callback.report} == {"scaled"}


def test_what_it_cannot_initialize(tmp_path, monkeypatch):
    used = trainer(tmp_path, model := classifier())
    weights = jobs.whole(model)
    used.add_callback(LSUVCallback())
    with monkeypatch.context() as patch:  # as if it were sharded
        patch.setattr("goodinit.integrations.transformers.is_sharded", lambda _: True)
        with pytest.raises(OptionError, match=r"added to a Trainer that was there already.*callbacks=\[LSUVCallback\(\)\]"):
            used.train()
    used = trainer(tmp_path, model, LSUVCallback())
    arguments = used.args
    arguments.deepspeed = "zero3.json"
    with pytest.raises(ModelError, match=r'DeepSpeed keeps the weights in a form of its own.*fsdp_config=\{"version": 2\}'):
        used.callback_handler.on_train_begin(arguments, used.state, used.control)
    assert unchanged(model, weights)


def test_options_are_checked_at_once():
    with pytest.raises(OptionError, match=r"lsuv_ has no option 'target' \(did you mean"):
        LSUVCallback(target=1)


@pytest.mark.slow
@pytest.mark.parametrize("sharded", [False, True], ids=["DistributedDataParallel", "FSDP2"])
def test_two_processes_end_with_the_weights_of_one(sharded, two, tmp_path):
    expected = jobs.as_one_would(classifier(), jobs.Sentences().all())
    (first, report), (second, other) = two.run(partial(jobs.trained, sharded=sharded), tmp_path)
    assert first.keys() == second.keys() == expected.keys()
    for name, weight in expected.items():
        assert torch.equal(first[name], second[name])
        assert torch.allclose(first[name], weight, rtol=1e-3, atol=1e-5), name
    assert {r.status for r in Report.from_json(report)} == {"scaled"}
    assert Report.from_json(report).records == Report.from_json(other).records
