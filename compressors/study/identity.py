"""What an object does, as a hash: equal in every process, different where settings, state or code differ."""

from __future__ import annotations

import functools
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from types import BuiltinFunctionType, CodeType, FunctionType, MappingProxyType, MethodType, ModuleType
from typing import Any

import numpy as np
from torch import Tensor, nn

from compressors.common.files import digest
from compressors.common.text import is_installed

_CONSTANTS = (type(None), type(...), bool, int, float, complex, str, bytes)
_WRAPPERS = (staticmethod, classmethod, functools._lru_cache_wrapper)
_PROPERTIES = (property, functools.cached_property)
# What nn.Module keeps in each module; all else is the state of a user's class.
_BOOKKEEPING = frozenset(vars(nn.Module()))
_HOOKS = sorted(name for name in _BOOKKEEPING if name.endswith("hooks"))


@dataclass(frozen=True)
class Identity:
    """The hash of what could be read of some objects, and the types of what could not."""

    digest: str
    unknown: tuple[str, ...]


def identify(*values: Any) -> Identity:
    """Return the identity of objects, from all that their behaviour depends on as far as Python shows it.

    Tensors and arrays count with their values; objects with their attributes; modules with parameters, buffers, hooks
    and plain attributes; functions with their code, defaults, closures, and the globals that they name; classes with
    their functions and constants. Of Python, of installed packages and of this one classes count by name, and functions
    without their globals.
    """
    reader = _Reader()
    return Identity(digest(map(reader.read, values)), tuple(dict.fromkeys(reader.unknown)))


class _Reader:
    """Hashes objects, each once: they may be shared, and refer to themselves."""

    def __init__(self) -> None:
        self.unknown: list[str] = []
        # The objects are kept along with their hashes, so that no other object gets their id.
        self._read: dict[int, tuple[str, Any]] = {}

    def read(self, value: Any) -> str:
        if type(value) in _CONSTANTS:
            return f"{type(value).__name__} {value!r}"
        if id(value) not in self._read:
            self._read[id(value)] = "itself", value
            try:
                parts = [self.read(part) for part in _parts(value)]
                found = digest(sorted(parts) if isinstance(value, set | frozenset) else parts)
            except Exception:  # Whatever the methods of a foreign object raise.
                found = f"unknown {type(value).__qualname__}"
                self.unknown.append(type(value).__qualname__)
            self._read[id(value)] = found, value
        return self._read[id(value)][0]


def _parts(value: Any) -> Iterable[Any]:
    """Return what an object consists of: constants, and objects to be read in turn."""
    if isinstance(value, Tensor):
        return "tensor", digest([value])
    if isinstance(value, np.ndarray) and value.dtype != object:
        return "array", value.dtype.str, value.shape, np.ascontiguousarray(value).tobytes()
    if isinstance(value, ModuleType):
        return "module", value.__name__
    if isinstance(value, type):
        return _parts_of_class(value)
    if isinstance(value, FunctionType):
        return _parts_of_function(value)
    if isinstance(value, CodeType):
        names = value.co_names, value.co_varnames, value.co_freevars
        return "code", value.co_code, value.co_consts, names, value.co_argcount, value.co_flags
    if isinstance(value, MethodType):
        return "method", value.__func__, value.__self__
    if isinstance(value, BuiltinFunctionType):
        return "function", value.__module__, value.__qualname__, value.__self__
    if isinstance(value, property):
        return "property", value.fget, value.fset, value.fdel
    if isinstance(value, functools.cached_property):
        return "cached property", value.func
    if isinstance(value, _WRAPPERS):
        return type(value).__name__, value.__wrapped__
    if isinstance(value, nn.Module):
        return _parts_of_module(value)
    if type(value) in (list, tuple, set, frozenset):
        return type(value).__name__, *value
    if type(value) in (dict, MappingProxyType):
        return "dict", *_flat(value)
    return _parts_by_pickle(value)


def _parts_of_class(value: type) -> Iterator[Any]:
    yield from ("class", value.__module__, value.__qualname__)
    module = sys.modules.get(value.__module__)
    if value.__module__.partition(".")[0] in sys.stdlib_module_names or _has_installed_file(module):
        return
    # Constants of modules are left out: outputs tell more, and a class may count the calls of its forward there.
    kept = (FunctionType, *_PROPERTIES, *_WRAPPERS, *(() if issubclass(value, nn.Module) else _CONSTANTS))
    for name, item in sorted(vars(value).items()):
        if isinstance(item, kept) and name not in ("__doc__", "__firstlineno__"):
            yield from (name, item)
    yield value.__bases__


def _parts_of_function(value: FunctionType) -> Iterator[Any]:
    yield from ("function", value.__module__, value.__qualname__)
    yield from (value.__code__, value.__defaults__, value.__kwdefaults__, vars(value))
    yield tuple(cell.cell_contents for cell in value.__closure__ or ())
    if not is_installed(value.__code__.co_filename):
        yield {name: value.__globals__[name] for name in sorted(_names(value.__code__)) if name in value.__globals__}


def _names(code: CodeType) -> set[str]:
    """Return the names that code looks up, that of the functions defined in it included."""
    inner = (_names(constant) for constant in code.co_consts if isinstance(constant, CodeType))
    return set(code.co_names).union(*inner)


def _parts_of_module(value: nn.Module) -> Iterator[Any]:
    own = vars(value)
    yield from (type(value), value.training, own["_parameters"], own["_buffers"], own["_modules"])
    # The keys of hooks are numbers that differ from process to process.
    yield [hook for name in _HOOKS for hook in own[name].values()]
    yield {name: own[name] for name in sorted(own.keys() - _BOOKKEEPING)}


def _parts_by_pickle(value: Any) -> Iterator[Any]:
    """Yield what `pickle` would make an object of; raises where it could not."""
    reduced: Any = value.__reduce_ex__(4)
    yield type(value).__qualname__
    if isinstance(reduced, str):
        yield from (getattr(value, "__module__", None), reduced)
        return
    make, arguments, state, items, pairs = [*reduced, None, None, None][:5]
    yield from (make, arguments, state, None if items is None else list(items))
    yield None if pairs is None else [part for pair in pairs for part in pair]


def _flat(mapping: Mapping[Any, Any]) -> Iterator[Any]:
    return (part for item in mapping.items() for part in item)


def _has_installed_file(module: ModuleType | None) -> bool:
    file = getattr(module, "__file__", None)
    return file is not None and is_installed(file)
