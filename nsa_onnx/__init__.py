"""Native Sparse Attention's operators in ONNX: export, run, check.

``nsa_compress`` and the other functions of an operator's name compute on NumPy arrays and torch tensors.
``nsa_onnx.exporters`` (a separate import, which needs torch) exports models that use them. ``create_session`` runs the
exported file with onnxruntime. ``check`` finds mistakes in it.

Each name here is imported when it is first used. pytest imports this package in every run wherever it is installed,
because of the pytest plugin: such a run must not wait for onnx, nor fail where onnx does. Nor for pathlib or
importlib.abc, which load half of Python's library.
"""

from __future__ import annotations

import os
import sys
from importlib import import_module
from importlib.util import spec_from_file_location
from types import ModuleType

TYPE_CHECKING = False  # for type checkers, which know the name, it is true
if TYPE_CHECKING:
    from importlib.machinery import ModuleSpec

    from .checker import Report as Report
    from .checker import check as check
    from .operators.nsa_compress.call import nsa_compress as nsa_compress
    from .operators.nsa_compress.contract import compressed_length as compressed_length
    from .operators.nsa_compress_attention.call import nsa_compress_attention as nsa_compress_attention
    from .operators.nsa_compress_attention_infer.call import (
        nsa_compress_attention_infer as nsa_compress_attention_infer,
    )
    from .operators.nsa_compress_infer.call import nsa_compress_infer as nsa_compress_infer
    from .operators.nsa_selected_attention.call import nsa_select_attention as nsa_select_attention
    from .operators.nsa_selected_attention_infer.call import nsa_select_attention_infer as nsa_select_attention_infer
    from .operators.schema import register as register
    from .runtime.everywhere import everywhere as everywhere
    from .runtime.everywhere import reference_ops as reference_ops
    from .runtime.session import create_session as create_session
    from .runtime.session import get_library_path as get_library_path
    from .runtime.session import session_options as session_options
    from .runtime.values import from_ortvalue as from_ortvalue
    from .runtime.values import to_ortvalue as to_ortvalue

__version__ = "0.1.0"


class _Exporters:
    """Finds nsa_onnx.exporters in the folder exporters/ beside this one."""

    def find_spec(self, fullname: str, path: object, target: object = None) -> ModuleSpec | None:
        if fullname != "nsa_onnx.exporters":
            return None
        return spec_from_file_location(
            fullname, os.path.join(_EXPORTERS, "__init__.py"), submodule_search_locations=[_EXPORTERS]
        )


# A Python that is started in a checkout imports the package from there, even if it is installed: exporters/ is beside
# it, and an installed copy is searched last, for its native library.
_CHECKOUT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
_EXPORTERS = os.path.join(_CHECKOUT, "exporters")
_FILES = os.path.join(_EXPORTERS, "__init__.py"), os.path.join(_CHECKOUT, "CMakeLists.txt")
if __name__ == "nsa_onnx" and all(map(os.path.isfile, _FILES)):
    from pkgutil import extend_path

    __path__ = extend_path(__path__, __name__)
    sys.meta_path.insert(0, _Exporters())

_MODULES = {
    "Report": "checker",
    "check": "checker",
    "compressed_length": "operators.nsa_compress.contract",
    "create_session": "runtime.session",
    "everywhere": "runtime.everywhere",
    "from_ortvalue": "runtime.values",
    "get_library_path": "runtime.session",
    "nsa_compress": "operators.nsa_compress.call",
    "nsa_compress_attention": "operators.nsa_compress_attention.call",
    "nsa_compress_attention_infer": "operators.nsa_compress_attention_infer.call",
    "nsa_compress_infer": "operators.nsa_compress_infer.call",
    "nsa_select_attention": "operators.nsa_selected_attention.call",
    "nsa_select_attention_infer": "operators.nsa_selected_attention_infer.call",
    "reference_ops": "runtime.everywhere",
    "register": "operators.schema",
    "session_options": "runtime.session",
    "to_ortvalue": "runtime.values",
}
__all__ = list(_MODULES)


class _Package(ModuleType):
    def __getattr__(self, name: str) -> object:
        if name not in _MODULES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        import_module(f"{__name__}.operators.schema")  # whoever uses us finds the operators registered
        value = getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
        setattr(self, name, value)
        return value

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *_MODULES})


sys.modules[__name__].__class__ = _Package
