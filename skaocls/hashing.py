"""Content hashes of bytes, files and Python objects."""

from __future__ import annotations

import dis
import os
import pickle
import sys
import sysconfig
from collections.abc import Callable, Iterable, Iterator
from functools import cached_property, lru_cache
from hashlib import blake2b
from importlib.util import find_spec
from pathlib import Path
from types import (
    BuiltinFunctionType,
    CellType,
    CodeType,
    FunctionType,
    GetSetDescriptorType,
    MappingProxyType,
    MemberDescriptorType,
    MethodType,
    ModuleType,
)
from typing import TYPE_CHECKING, Any, BinaryIO

import torch
from joblib.hashing import NumpyHasher, Pickler

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

DIGEST_BYTES = 16
READ_BYTES = 2**20  # number of bytes of a file that are read at a time


def hash_bytes(*chunks: ReadableBuffer) -> str:
    """Return the hash of concatenated bytes or C-contiguous arrays, as 32 hexadecimal digits."""
    return hash_chunks(chunks)


def hash_chunks(chunks: Iterable[ReadableBuffer]) -> str:
    """Return the same hash as :func:`hash_bytes`, without holding all chunks in memory."""
    digest = new_hash()
    for chunk in chunks:
        digest.update(chunk)
    return digest.hexdigest()


def new_hash() -> blake2b:
    """Return an empty hash object of the kind that :func:`hash_bytes` uses."""
    return blake2b(digest_size=DIGEST_BYTES)


def hash_file(path: str | os.PathLike[str]) -> str:
    """Return the hash of the content of a file."""
    with open(path, "rb") as file:
        return hash_stream(file)


def hash_stream(file: BinaryIO) -> str:
    """Return the hash of an open file from the current position to the end."""
    return hash_chunks(iter(lambda: file.read(READ_BYTES), b""))


def hash_object(*values: object) -> str:
    """Hash the content of picklable objects. The hash is the same in every process.

    The order of items matters in dictionaries, because code can depend on it: a network calls its
    layers in this order. The order of attributes and of items in sets does not matter. Equal
    tensors have equal hashes.

    A function or class is hashed by its code, and by everything that the code uses: constants,
    default values, closures, attributes and global variables, which include other functions. This
    does not apply to the global variables of installed packages. If any content is not known, the
    function raises a HashError.
    """
    try:
        digest: str = ContentHasher().hash(values)
    except Exception as exc:  # pickling an object can raise errors of any type
        raise HashError(str(exc)) from exc
    return digest


class HashError(TypeError):
    """The content of an object is not known."""


class ContentHasher(NumpyHasher):
    """Joblib's hasher, extended to tensors, functions, classes and the order of dictionaries.

    Pickles of equal tensors can differ. Pickles of functions and classes only contain their names.
    Joblib's hasher ignores the order of items.
    """

    dispatch = NumpyHasher.dispatch.copy()

    def __init__(self) -> None:
        super().__init__(hash_name="md5")
        # Numbers of the functions and classes saved so far. The objects are kept to keep their ids.
        self.saved: dict[int, tuple[int, object]] = {}

    def save(self, obj: object) -> None:
        if isinstance(obj, torch.Tensor):
            tensor = obj.detach().cpu().contiguous()
            obj = str(tensor.dtype), tuple(tensor.shape), tensor.flatten().view(torch.uint8).numpy()
        elif isinstance(obj, (set, frozenset)):
            obj = type(obj).__name__, sorted(hash_object(item) for item in obj)
        elif isinstance(obj, (FunctionType, type)):
            if id(obj) in self.saved:  # also if a function calls itself
                obj = "saved", self.saved[id(obj)][0]
            else:
                self.saved[id(obj)] = len(self.saved), obj
                obj = function_parts(obj) if isinstance(obj, FunctionType) else class_parts(obj)
        elif type(obj) in PARTS:
            obj = type(obj).__name__, PARTS[type(obj)](obj)
        super().save(obj)

    def memoize(self, obj: object) -> None:
        """Ignore whether equal tuples are one object, because Python may merge equal constants."""
        if not isinstance(obj, tuple):
            super().memoize(obj)

    def save_reduce(self, func: Any, args: Any, state: Any = None, *rest: Any, **more: Any) -> None:
        if isinstance(state, dict):
            state = sorted(state.items(), key=lambda item: str(item[0]))
        super().save_reduce(func, args, state, *rest, **more)

    def save_global(self, obj: Any, name: str | None = None, *args: object) -> None:
        """Save an object that is pickled by its name, although it is no function and no class."""
        module = pickle.whichmodule(obj, name or obj.__qualname__)  # type: ignore[attr-defined]
        if installed_version(module) is None:
            raise TypeError(f"the code of {obj!r:.200} is not known")
        super().save_global(obj, name)

    def _batch_setitems(self, *args: Any) -> None:
        Pickler._batch_setitems(self, *args)


# Functions and classes --------------------------------------------------------------------------


def function_parts(function: FunctionType) -> tuple[object, ...]:
    """Return everything that determines what a function computes."""
    # the module of the code; functools.wraps changes `__module__`
    module = function.__globals__.get("__name__", "")
    own = (
        function.__code__,
        function.__defaults__,
        function.__kwdefaults__,
        function.__closure__,
        sorted(vars(function).items()),
    )
    if (version := installed_version(module)) is not None:
        return module, function.__qualname__, version, own
    by_name = is_pickled_by_name(function, module)
    return module, function.__qualname__, by_name, own, used_globals(function)


def class_parts(cls: type) -> tuple[object, ...]:
    """Return everything that determines what a class does."""
    if (version := installed_version(cls.__module__)) is not None:
        return cls.__module__, cls.__qualname__, version
    members = [
        (name, value)
        for name, value in sorted(vars(cls).items())
        if name not in IGNORED_MEMBERS
        and not isinstance(value, (MemberDescriptorType, GetSetDescriptorType))
    ]
    by_name = is_pickled_by_name(cls, cls.__module__)
    return cls.__module__, cls.__qualname__, by_name, type(cls), cls.__bases__, members


def is_pickled_by_name(obj: Any, module: str) -> bool:
    """Return whether the pickle of a function or class contains its name instead of its code.

    The loader then returns the object that has this name, which may have other code.
    """
    found: Any = None if module == "__main__" else sys.modules.get(module)
    for name in obj.__qualname__.split("."):
        found = getattr(found, name, None)
    return found is obj


def used_globals(function: FunctionType) -> list[tuple[str, object]]:
    """Return the names and values of the global variables that a function uses."""
    instructions = list(name_instructions(function.__code__))
    for operation, name in instructions:
        if operation == "IMPORT_NAME" and installed_version(name) is None:
            raise TypeError(f"{function.__qualname__} imports {name!r} when it is called")
    attributes = sorted({name for op, name in instructions if op in ATTRIBUTE_OPERATIONS})
    names = sorted({name for op, name in instructions if op not in ATTRIBUTE_OPERATIONS})
    values = function.__globals__
    return [(name, module_values(values[name], attributes)) for name in names if name in values]


def name_instructions(code: CodeType) -> Iterator[tuple[str, str]]:
    """Yield the operation and the name of each instruction that uses a name."""
    for instruction in dis.get_instructions(code):
        if instruction.opcode in dis.hasname:
            yield instruction.opname, instruction.argval
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from name_instructions(constant)


def module_values(value: object, attributes: list[str]) -> object:
    """If a value is a module of the user, return those of its values that are in `attributes`."""
    if not isinstance(value, ModuleType) or installed_version(value.__name__) is not None:
        return value
    found = [name for name in attributes if hasattr(value, name)]
    return [(name, module_values(getattr(value, name), attributes)) for name in found]


def module_parts(module: ModuleType) -> tuple[str, str]:
    if (version := installed_version(module.__name__)) is None:
        raise TypeError(f"the content of the module {module.__name__} is not known")
    return module.__name__, version


def code_parts(code: CodeType) -> tuple[object, ...]:
    """Return the content of a code object, without file names and line numbers."""
    counts = code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount, code.co_flags
    exceptions = getattr(code, "co_exceptiontable", b"")  # since Python 3.11
    return code.co_code, code.co_consts, code.co_names, code.co_varnames, counts, exceptions


def cell_parts(cell: CellType) -> tuple[object, ...]:
    try:
        return (cell.cell_contents,)
    except ValueError:  # the variable has no value yet
        return ()


# Objects that pickle refuses, or pickles only by name, although their parts are known
PARTS: dict[type, Callable[[Any], object]] = {
    BuiltinFunctionType: lambda function: (function.__qualname__, function.__self__),
    CellType: cell_parts,
    CodeType: code_parts,
    MappingProxyType: dict,
    MethodType: lambda method: (method.__func__, method.__self__),
    ModuleType: module_parts,
    cached_property: lambda member: member.func,
    classmethod: lambda member: member.__func__,
    property: lambda member: (member.fget, member.fset, member.fdel),
    staticmethod: lambda member: member.__func__,
    type(lru_cache(len)): lambda function: function.__wrapped__,
}
ATTRIBUTE_OPERATIONS = {"LOAD_ATTR", "LOAD_METHOD", "LOAD_SUPER_ATTR", "STORE_ATTR", "DELETE_ATTR"}
ATTRIBUTE_OPERATIONS |= {"IMPORT_NAME", "IMPORT_FROM"}
# Members of a class that do not change what it does, or that Python adds when it is used
IGNORED_MEMBERS = {"__annotations__", "__annotate__", "__annotate_func__", "__annotations_cache__"}
IGNORED_MEMBERS |= {"__doc__", "__firstlineno__", "__static_attributes__", "__slotnames__"}
IGNORED_MEMBERS |= {"__orig_bases__", "__parameters__", "_abc_impl"}
STANDARD_LIBRARY = sysconfig.get_path("stdlib")


@lru_cache(None)
def installed_version(module: str) -> str | None:
    """Return the version of the installed package of a module, or None for a module of the user.

    The version is "" if it is not known, for the standard library, and for skaocls and NumPy. The
    keys of the cache contain the version of skaocls. The hash of an array must not change with the
    version of NumPy.
    """
    top = module.partition(".")[0]
    if top == "skaocls":
        return ""
    try:
        spec = find_spec(top)
    except (ImportError, ValueError):  # a module that code created
        return None
    if spec is None or top in ("__main__", "__mp_main__"):
        return None  # in joblib's workers, the spec of __main__ is that of joblib
    place = Path(spec.origin or next(iter(spec.submodule_search_locations or [""])))
    if not {"site-packages", "dist-packages"}.isdisjoint(place.parts):
        return "" if top == "numpy" else str(getattr(sys.modules.get(top), "__version__", ""))
    is_standard = spec.origin in ("built-in", "frozen") or place.is_relative_to(STANDARD_LIBRARY)
    return "" if is_standard else None
