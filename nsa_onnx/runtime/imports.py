"""Calls a function when other code imports a given module; says where an import runs.

Python has no public function for any of it. Needs nothing but Python (see hook/sitecustomize.py).
"""

from __future__ import annotations

import importlib.abc
import sys
from collections.abc import Callable, Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType


class _Loader(importlib.abc.Loader):
    """The module's own loader, and the call after it."""

    def __init__(self, loader: importlib.abc.Loader, call: Callable[[], object]) -> None:
        self._loader, self._call = loader, call

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        if module.__spec__ is not None:  # nothing of us stays in the module
            module.__spec__.loader = module.__loader__ = self._loader
        self._loader.exec_module(module)
        self._call()


class _Finder(importlib.abc.MetaPathFinder):
    """Finds one module as the other finders do."""

    def __init__(self, name: str, call: Callable[[], object]) -> None:
        self.name, self._call = name, call

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != self.name:
            return None
        for finder in sys.meta_path:
            spec = None if finder is self else finder.find_spec(fullname, path, target)
            if spec is not None:
                if spec.loader is not None:
                    spec.loader = _Loader(spec.loader, self._call)
                return spec
        return None


def when_imported(name: str, call: Callable[[], object]) -> None:
    """Call ``call`` each time that module ``name`` has been imported. It is not looked whether it already is.

    Importing the module ourselves would cost everybody who never uses it.
    """
    sys.meta_path.insert(0, _Finder(name, call))


def is_being_imported(package: str) -> bool:
    """Whether a module in a package is running its own import right now. ``sys.modules`` has whole and half ones."""
    modules = [module for name, module in list(sys.modules.items()) if name.startswith(f"{package}.")]
    return any(getattr(getattr(module, "__spec__", None), "_initializing", False) for module in modules)


def in_main_interpreter() -> bool:
    """Whether this is Python's main interpreter and not a sub-interpreter, as some web servers make them."""
    import ctypes  # a part of Python that may be missing, and that few callers need

    asked = ctypes.PYFUNCTYPE(ctypes.c_void_p)
    names = ("PyInterpreterState_Get", "PyInterpreterState_Main")
    this, main = (int(asked((name, ctypes.pythonapi))()) for name in names)
    return this == main
