"""Finding a model by its import path: what is found, and what is said where nothing is."""

from __future__ import annotations

import pytest
from torch import nn

from goodinit.command.models import find_model
from goodinit.console import CodeError
from goodinit.errors import ModelError, OptionError


@pytest.mark.parametrize(
    ("source", "keywords", "kind"),
    [
        ("net:Net", {}, "Net"),
        ("net:Net", {"width": 4}, "Net"),
        ("net:make_model", {"width": 4, "depth": 1}, "Net"),
        ("net:model", {}, "Net"),
        ("parts.deep:Zoo.Small", {"in_features": 2, "out_features": 3}, "Small"),
        ("net.py:Net", {}, "Net"),
        ("./parts/deep.py:Zoo.Small", {"in_features": 2, "out_features": 3}, "Small"),
        ("torch.nn:Linear", {"in_features": 2, "out_features": 3}, "Linear"),
    ],
)
def test_a_model_of_the_current_folder(project, source, keywords, kind):
    assert type(find_model(source, keywords)()).__name__ == kind


def test_a_file_of_another_folder(project, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere") / "other_net.py"
    elsewhere.write_text("from torch import nn\ndef make():\n    return nn.Linear(2, 3)\n")
    assert isinstance(find_model(f"{elsewhere}:make", {})(), nn.Linear)


@pytest.mark.parametrize("name", ["net.py", "x.y.py", "random.py", "v1.0/some_net.py", "test/some_net.py"])
def test_a_file_is_that_file_whatever_else_has_its_name(project, tmp_path_factory, name):
    """Another model, one of Python's own modules; or no import has such a name."""
    path = tmp_path_factory.mktemp("elsewhere") / name
    path.parent.mkdir(exist_ok=True)
    path.write_text("from torch import nn\ndef make():\n    return nn.Linear(2, 77)\n")
    assert find_model(f"{path}:make", {})().out_features == 77
    assert type(find_model("net:Net", {})()).__name__ == "Net"


def test_a_file_in_a_package_of_another_folder_may_import_its_neighbours(project, tmp_path_factory):
    package = tmp_path_factory.mktemp("elsewhere") / "package_of_nets"
    (package / "inside").mkdir(parents=True)
    for folder in (package, package / "inside"):
        (folder / "__init__.py").touch()
    (package / "sizes.py").write_text("SIZE = 78\n")
    (package / "inside" / "model.py").write_text(
        "from torch import nn\nfrom ..sizes import SIZE\ndef make():\n    return nn.Linear(2, SIZE)\n"
    )
    assert find_model(f"{package / 'inside' / 'model.py'}:make", {})().out_features == 78


def test_arguments_reach_the_maker(project):
    assert find_model("net:make_model", {"width": 5, "depth": 1})().head.in_features == 5


@pytest.mark.parametrize(
    ("source", "keywords", "message"),
    [
        ("nett:Net", {}, r"there is no module 'nett' in the current folder '.*' or installed \(did you mean 'net'\?\)"),
        ("parts.dep:Zoo", {}, r"there is no module 'dep' in the package parts \(did you mean 'deep'\?\)"),
        ("net.deep:Zoo", {}, r"there is no module 'deep' in net, which is no package"),
        ("./nat.py:Net", {}, r"there is no file '.*nat.py' \(did you mean 'net'\?\)"),
        ("nowhere/net.py:Net", {}, r"there is no file '.*nowhere/net.py'$"),
        ("net:make_modell", {}, r"net has no 'make_modell' \(did you mean 'make_model', 'model'\?\)"),
        ("parts.deep:Zoo.Smal", {}, r"Zoo has no 'Smal' \(did you mean 'Small'\?\)"),
        ("net:Qqq", {}, r"net has no 'Qqq'; it has Net, make_model, model, tied, with_optimizer, fails, noisy, Two and 3 more"),
        (
            "net",
            {},
            r"the model 'net' should be MODULE:NAME; net has Net, make_model, .*: net:make_model for make_model in net.py",
        ),
        ("net.Net", {}, r"the model 'net.Net' should be MODULE:NAME \(did you mean 'net:Net'\?\)"),
        ("net:", {}, "the model 'net:' should be MODULE:NAME: net:make_model for"),
        (":Net", {}, "the model ':Net' should be MODULE:NAME: "),
        ("net:SIZE", {}, "net:SIZE is no model but of type int; a model is a torch.nn.Module, or what returns one when called"),
        ("net:model", {"width": 3}, "net:model is a model already, so it takes no --arg width=…"),
        ("net:make_model", {}, "net:make_model needs width and depth: add --arg width=… --arg depth=…"),
        ("net:make_model", {"width": 3}, "net:make_model needs depth: add --arg depth=…"),
        ("net:Net", {"widht": 3}, r"net:Net takes no argument 'widht' \(did you mean 'width'\?\); it takes width, depth"),
        ("net:tied", {"size": 3}, r"net:tied takes no argument 'size'; it takes none"),
        ("math:sqrt", {}, "math:sqrt takes arguments by their position alone; write a function that calls it"),
    ],
)
def test_what_cannot_be_found(project, source, keywords, message):
    with pytest.raises(OptionError, match=message):
        find_model(source, keywords)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("broken:x", r"importing broken raised ValueError: .*\nat broken.py:3, in <module>: answer = math.sqrt\(-1\)"),
        (
            "lacking:x",
            r"importing lacking raised ModuleNotFoundError: No module named 'a_package_that_is_not_there'\nat lacking.py:1",
        ),
        ("leaving:x", r"importing leaving called sys.exit\(3\)\nat leaving.py:3, in <module>: sys.exit\(3\)"),
    ],
)
def test_a_module_that_raises_on_import(project, source, message):
    with pytest.raises(CodeError, match=message):
        find_model(source, {})


def test_a_module_with_a_mistake_in_its_syntax(project):
    (project / "wrong.py").write_text("x = (\n")
    with pytest.raises(CodeError, match=r"importing wrong raised SyntaxError: '\(' was never closed \(wrong.py, line 1\)"):
        find_model("wrong:x", {})


def test_a_maker_that_raises(project):
    with pytest.raises(CodeError, match=r"calling net:fails raised RuntimeError: .*\nat net.py:\d+, in fails: return nn.Linear"):
        find_model("net:fails", {"size": 3})()


def test_a_maker_that_returns_no_module(project):
    with pytest.raises(ModelError, match=r"net:with_optimizer returned a tuple of Net, dict; it should return a torch.nn.Module"):
        find_model("net:with_optimizer", {})()
