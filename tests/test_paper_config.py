"""The settings of runs, and what is refused."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import pytest

from goodinit import OptionError
from goodinit.paper.config import Timing, Training, Walk, run_of

BASE = {"data": "mnist", "network": "fitnet1"}


@pytest.mark.parametrize("run", [Training(**BASE, milestones=(3, 4)), Timing(measure="init", network="caffenet")])
def test_settings_survive_json(run):
    plain = json.loads(json.dumps(run.plain()))
    kind = plain.pop("kind")
    assert run_of(kind, plain, "here") == run
    assert run_of(kind, plain, "here").key == run.key


def test_the_key_stands_for_all_settings():
    keys = {
        Training(**{**BASE, **change}).key
        for change in ({}, {"seed": 1}, {"lr": 0.2}, {"network": "fitnet4"}, {"milestones": (1,)}, {"train_images": 5})
    }
    assert len(keys) == 6
    assert Training(**BASE).key == Training(**BASE).key


def test_runs_say_what_they_are():
    assert str(Training(**BASE, norm="after", iterations=7)) == "mnist-fitnet1-maxout-norm-after-lsuv-7-seed0"
    assert str(Timing(measure="init", network="caffenet")) == "init-caffenet-relu-seed0"


def test_differences_are_named():
    run = Training(**BASE, lr=0.1)
    other = {**Training(**BASE, lr=0.2, milestones=(5,)).plain(), "warmup": 3}
    assert run.differences(other) == ["lr was 0.2, is 0.1", "milestones was [5], is []", "warmup was 3, is None"]
    assert not run.differences(run.plain())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"netwrk": "fitnet1"}, "here: unknown key 'netwrk' (did you mean 'network'"),
        ({"network": "fitnet2"}, "here: network must be one of fitnet1, fitnet4, "),
        ({"init": "xavier"}, "here: init must be one of default, lecun, glorot, "),
        ({"lr": 0}, "here: lr must be positive; got 0"),
        ({"lr": "0.1"}, "here: lr must be a number; got '0.1'"),
        ({"iterations": 1.5}, "here: iterations must be a whole number; got 1.5"),
        ({"iterations": True}, "here: iterations must be a whole number; got True"),
        ({"train_images": "all"}, "here: train_images must be a whole number or nothing; got 'all'"),
        ({"milestones": 5}, "here: milestones must be a list of whole numbers; got 5"),
        ({"milestones": [5, 7.5]}, "here: milestones must be a list of whole numbers; got (5, 7.5)"),
        ({"milestones": [5, 3]}, "here: milestones must not fall; got [5, 3]"),
        ({"mirror": 1}, "here: mirror must be bool; got 1"),
        ({"pad": -2}, "here: pad must be 0 or more; got -2"),
        ({"milestones": [-5, 3]}, "here: milestones must be 0 or more; got [-5, 3]"),
        ({"power": float("nan")}, "here: power must be 0 or more; got nan"),
        ({"gate_bias": float("-inf")}, "here: gate_bias must be finite; got -inf"),
        ({"network": "caffenet"}, "here: caffenet is published with activation='relu'; got 'maxout'"),
        ({"init": "bvlc"}, "here: init='bvlc' is CaffeNet's or GoogLeNet's; got network='fitnet1'"),
        (
            {"network": "googlenet", "activation": "relu", "init": "gradinit"},
            "here: init='gradinit' knows no auxiliary classifiers, which googlenet has",
        ),
        (
            {"method": "hints", "teacher": "teacher-mnist", "hint_iterations": 9, "iterations": 8, "schedule": "poly"},
            "here: the hints have the schedule of iterations=8, which for schedule='poly' ends there; got hint_iterations=9",
        ),
        (
            {"method": "distillation", "teacher": "caffenet", "activation": "tanh"},
            "here: caffenet is published with activation='relu'; got 'tanh'",
        ),
        ({"stop": -1}, "here: stop must be 0 or more; got -1"),
        ({"stop": 10, "iterations": 5}, "here: stop=10 is behind the end of the schedule, iterations=5"),
        ({"temperature": 0}, "here: temperature must be positive; got 0"),
        ({"init": "lsuv", "init_gain": 2.0}, "here: init='lsuv' knows no gain; got init_gain=2.0"),
        ({"init": "gradinit", "init_gain": 2.0}, "here: init='gradinit' knows no gain; got init_gain=2.0"),
        (
            {"method": "distillation", "teacher": "fitnet1", "loss": "hinge"},
            "here: distillation is by softmax; got loss='hinge'",
        ),
        (
            {"method": "hints", "teacher": "teacher-mnist", "hint_iterations": 3, "network": "mlp"},
            "here: hints need stages of convolutions; the network 'mlp' has none",
        ),
    ],
)
def test_bad_settings(settings, message):
    with pytest.raises(OptionError, match=re.escape(message)):
        run_of("training", {**BASE, **settings}, "here")


def test_settings_without_a_default_must_be_given():
    with pytest.raises(OptionError, match="here: data, network must be given"):
        run_of("training", {}, "here")
    with pytest.raises(OptionError, match="caffenet is published with activation='relu'; got 'maxout'"):
        Timing(measure="iteration", network="caffenet", activation="maxout")


def test_a_new_setting_changes_no_key(monkeypatch):
    """Rows and checkpoints of older versions are still those of the same runs."""
    before = Training(**BASE).key
    monkeypatch.setattr(Training, "plain", lambda self: {**original(self), "later": 7})
    monkeypatch.setattr(Training, "defaults", classmethod(lambda _cls: {**defaults, "later": 7}))
    assert Training(**BASE).key == before
    old = Training(**BASE)
    assert not old.differences({key: v for key, v in original(old).items() if key not in ("gamma", "pad")})


original, defaults = Training.plain, Training.defaults()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"method": "hints", "hint_iterations": 5}, "method='hints' and teacher='': hints and distillation need a teacher"),
        ({"teacher": "fitnet1"}, "method='plain' and teacher='fitnet1'"),
        ({"teacher": "fitnet1", "method": "hints"}, "method='hints' and hint_iterations=0: hints need some, nothing else"),
        ({"teacher": "fitnet1", "method": "distillation", "hint_iterations": 5}, "hint_iterations=5"),
    ],
)
def test_methods_and_what_they_need(settings, message):
    with pytest.raises(OptionError, match=re.escape(message)):
        Training(**BASE, **settings)


def test_what_a_teacher_begins_with_makes_no_difference_where_there_is_none():
    assert Training(**BASE, teacher_init="he") == Training(**BASE)
    taught = {"method": "distillation", "teacher": "teacher-mnist"}
    assert Training(**BASE, **taught, teacher_init="he").teacher_run != Training(**BASE, **taught).teacher_run


def test_the_teacher_s_run():
    run = Training(
        **BASE, method="hints", teacher="teacher-mnist", hint_iterations=7, iterations=9, seed=3, init="he", temperature=5.0
    )
    assert run.total == 16
    assert run.teacher_run == Training(**{**BASE, "network": "teacher-mnist"}, iterations=9, init="glorot")
    other = Training(**BASE, method="distillation", teacher="teacher-mnist", iterations=9, seed=1, distill_from=2.0, init="lsuv")
    assert other.teacher_run == run.teacher_run  # one teacher for all
    assert replace(run, init_gain=2.0).teacher_run == run.teacher_run


def test_walks_need_some_layers():
    with pytest.raises(OptionError, match="a walk needs depth=, the number of layers, of 4 or more; got 2"):
        Walk(data="mnist", depth=2)


def test_walks_are_of_layers():
    with pytest.raises(OptionError, match="activation must be one of relu, vlrelu, tanh, sigmoid; got 'maxout'"):
        Walk(data="mnist", activation="maxout")


def test_whole_numbers_are_fractions_too():
    whole = run_of("training", {**BASE, "lr": 1}, "here")
    assert whole == Training(**BASE, lr=1.0)
    assert whole.key == Training(**BASE, lr=1.0).key  # one checkpoint, one lock
