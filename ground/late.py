"""Packages that are imported when something of them is first used."""

import importlib
import importlib.util
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any


def package(name: str, parts: tuple[str, ...], then: Callable[[], object]) -> ModuleType:
    """A package of which some modules are imported now, alone, and the rest when something else of it is used.

    For everybody it is the package itself: `import`, `from … import` and attributes find all that it has.

    Args:
        name: of the package.
        parts: modules inside of it, such as `a.b`; the packages around them are late, too.
        then: called once the whole package is there, unless it is there already.
    """
    if name in sys.modules:
        return sys.modules[name]
    late = _late(name, then)
    for part in parts:
        owner, whole = late, name
        for step in part.split(".")[:-1]:
            whole = f"{whole}.{step}"
            if whole not in sys.modules:
                setattr(owner, step, _late(whole))
            owner = sys.modules[whole]
        importlib.import_module(f"{name}.{part}")
    return late


def pending(module: ModuleType) -> bool:
    """Whether a module that `package` gave is not there as a whole yet."""
    return "__getattr__" in vars(module)


def _late(path: str, then: Callable[[], object] = lambda: None) -> ModuleType:
    spec = importlib.util.find_spec(path)
    if spec is None or spec.loader is None:
        raise ModuleNotFoundError(f"No module named {path!r}", name=path)
    module, loader = importlib.util.module_from_spec(spec), spec.loader

    def first_use(name: str) -> Any:
        if name.startswith("__") and name != "__all__":  # what inspection asks of every module
            raise AttributeError(f"module {path!r} has no attribute {name!r}")
        del module.__getattr__
        try:
            loader.exec_module(module)
        except BaseException:
            module.__getattr__ = first_use
            raise
        then()
        return getattr(module, name)

    module.__getattr__ = first_use
    sys.modules[path] = module
    return module
