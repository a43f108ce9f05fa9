"""Finding a model by name: ``package.module:name`` of the caller's, or of a library that makes it from a description."""

from __future__ import annotations

import importlib.util
import inspect
import pkgutil
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

from goodinit.command.libraries import LIBRARIES
from goodinit.console import code_error
from goodinit.errors import ModelError, OptionError, did_you_mean, some_of

Maker = Callable[[], nn.Module]
_FORMS = "net:make_model for make_model in net.py, transformers:FOLDER or timm:NAME"


def find_model(source: str, keywords: Mapping[str, Any]) -> Maker:
    """Find what makes a model, so that it needs only be called.

    Args:
        source: ``"package.module:name"`` of a Module subclass, a function that returns a Module, or a Module; modules of the
            current folder are found too, by file name as well (``"nets/mine.py:Net"``). ``"transformers:folder"``,
            ``"timm:name"``: see `goodinit.command.libraries`.
        keywords: arguments of the class or function.

    Raises:
        OptionError: it cannot be found, or takes other arguments.
        CodeError: the module raised while it was imported.
        MissingExtraError: the library is not installed.
    """
    head, colon, name = source.partition(":")
    if not head or not name:
        raise OptionError(f"the model {source!r} should be MODULE:NAME{_meant(source, colon)}: {_FORMS}")
    if head in LIBRARIES:
        return LIBRARIES[head](name, keywords)
    found = find_object(source)
    if isinstance(found, nn.Module):
        if keywords:
            raise OptionError(f"{source} is a model already, so it takes no --arg {next(iter(keywords))}=…")
        return lambda: found
    if not callable(found):
        raise OptionError(
            f"{source} is no model but of type {type(found).__name__}; a model is a torch.nn.Module, or what "
            "returns one when called"
        )
    _check_arguments(source, found, keywords)
    return lambda: _made(source, found, keywords)


def find_object(source: str) -> Any:
    """Whatever ``"package.module:name"`` means.

    Raises:
        OptionError: there is no such module, or nothing of that name in it.
        CodeError: the module raised while it was imported.
    """
    head, _, name = source.partition(":")
    return _attribute(_imported(head), name)


def _meant(source: str, colon: str) -> str:
    """The dot that should have been a colon, or what there is in the module."""
    if colon or not source:
        return ""
    try:
        return f"; {source} has {some_of(_models_in(_imported(source)))}"
    except OptionError:
        module, dot, name = source.rpartition(".")
        return f" (did you mean {f'{module}:{name}'!r}?)" if dot else ""


def _imported(name: str) -> ModuleType:
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    importlib.invalidate_caches()
    try:
        return _of_file(Path(name)) if name.endswith(".py") or "/" in name else importlib.import_module(name)
    except OptionError:
        raise
    except ModuleNotFoundError as error:
        if error.name is not None and f"{name}.".startswith(f"{error.name}."):
            raise OptionError(_not_found(error.name)) from error
        raise code_error(f"importing {name}", error) from error
    except (Exception, SystemExit) as error:
        raise code_error(f"importing {name}", error) from error


def _of_file(path: Path) -> ModuleType:
    """The module of a file: ``"nets.mine"`` of nets/mine.py; by itself, without a package, if that is another module."""
    path = (path if path.name.endswith(".py") else path.with_name(f"{path.name}.py")).resolve()
    if not path.is_file():
        siblings = [file.stem for file in path.parent.glob("*.py")] if path.parent.is_dir() else []
        raise OptionError(f"there is no file {str(path)!r}{did_you_mean(path.stem, siblings)}")
    root = path.parent
    while (root / "__init__.py").exists():
        root = root.parent
    if root.is_relative_to(Path.cwd()):
        root = Path.cwd()  # folders without __init__.py are packages too
    parts = path.relative_to(root).with_suffix("").parts
    if str(root) not in sys.path:
        sys.path.insert(1, str(root))  # behind the current folder
    is_part = len(parts) > 1 or root == Path.cwd()
    if is_part and all(part.isidentifier() for part in parts) and _finds(".".join(parts), path):
        return importlib.import_module(".".join(parts))
    return _by_itself(path)


def _finds(name: str, path: Path) -> bool:
    """Whether an import of this name gives this file."""
    try:
        spec = importlib.util.find_spec(name)
    except ModuleNotFoundError as error:  # what is in front of a dot is no package
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise
        return False
    except ValueError:  # of __main__
        return False
    return spec is not None and spec.origin is not None and Path(spec.origin).resolve() == path


def _by_itself(path: Path) -> ModuleType:
    name = f"{path.stem}, a file"  # no import has such a name
    known = sys.modules.get(name)
    if known is not None and known.__file__ == str(path):
        return known
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    if str(path.parent) not in sys.path:  # what lies beside it can be imported
        sys.path.insert(1, str(path.parent))
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _not_found(name: str) -> str:
    parent, _, last = name.rpartition(".")
    if parent:
        paths = list(getattr(sys.modules[parent], "__path__", []))
        inside = f"the package {parent}" if paths else f"{parent}, which is no package"
        return f"there is no module {last!r} in {inside}{did_you_mean(last, _modules(paths))}"
    here = str(Path.cwd())
    return f"there is no module {name!r} in the current folder {here!r} or installed{did_you_mean(name, _modules([here]))}"


def _modules(paths: list[str]) -> list[str]:
    return [module.name for module in pkgutil.iter_modules(paths)]


def _attribute(module: ModuleType, name: str) -> Any:
    """What a dotted name means in a module."""
    found: Any = module
    for part in name.split("."):
        if not hasattr(found, part):
            known = [key for key in dir(found) if not key.startswith("_")]
            hint = did_you_mean(part, known) or f"; it has {some_of(_models_in(module) or known)}"
            raise OptionError(f"{getattr(found, '__name__', type(found).__name__)} has no {part!r}{hint}")
        found = getattr(found, part)
    return found


def _models_in(module: ModuleType) -> list[str]:
    """Names of what a module itself defines that may make a model."""
    return [
        name
        for name, value in vars(module).items()
        if isinstance(value, nn.Module) or (callable(value) and getattr(value, "__module__", None) == module.__name__)
    ]


def _check_arguments(source: str, made_by: Callable[..., Any], keywords: Mapping[str, Any]) -> None:
    try:
        parameters = inspect.signature(made_by).parameters.values()
    except (TypeError, ValueError):  # some that are written in C say nothing of their arguments
        return
    named = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    names = [p.name for p in named]
    unknown = [key for key in keywords if key not in names]
    if unknown and not any(p.kind == p.VAR_KEYWORD for p in parameters):
        takes = f"it takes {', '.join(names)}" if names else "it takes none"
        raise OptionError(f"{source} takes no argument {unknown[0]!r}{did_you_mean(unknown[0], names)}; {takes}")
    if any(p.kind == p.POSITIONAL_ONLY and p.default is p.empty for p in parameters):
        raise OptionError(f"{source} takes arguments by their position alone; write a function that calls it, and name that")
    missing = [p.name for p in named if p.default is p.empty and p.name not in keywords]
    if missing:
        needed = " and ".join(filter(None, [", ".join(missing[:-1]), missing[-1]]))
        options = " ".join(f"--arg {name}=…" for name in missing)
        raise OptionError(f"{source} needs {needed}: add {options}")


def _made(source: str, made_by: Callable[..., Any], keywords: Mapping[str, Any]) -> nn.Module:
    try:
        model = made_by(**keywords)
    except (Exception, SystemExit) as error:
        raise code_error(f"calling {source}", error) from error
    if not isinstance(model, nn.Module):
        inside = f" of {', '.join(type(x).__name__ for x in model)}" if isinstance(model, (tuple, list)) else ""
        raise ModelError(f"{source} returned a {type(model).__name__}{inside}; it should return a torch.nn.Module")
    return model
