"""Reading ``.pt2`` archives (``torch.export.save``) from people you do not trust.

``torch.export.load`` is not used, because no argument makes it safe. With torch 2.13, a hostile archive
runs code of its choice (each way was made to fire; ``tests/model/test_archive.py`` keeps one archive of
every kind):

* on load: ``use_pickle`` weights, ``use_pickle`` constants and ``opaque_obj_*`` constants (``torch.load``
  with ``weights_only=False``, ``pickle.loads``), the weights of older archives (``data/weights/model.pt``),
  and the sample inputs that EVERY ordinary archive carries: they are opened with ``weights_only=True``, and
  if that fails, the same bytes are opened again without it;
* on load: symbolic sizes, which are source code that ``sympy.sympify`` evaluates; names of inputs, which
  are pasted into generated source; module names in pytree specifications, which are imported; libraries
  below ``data/aotinductor``, which are unpacked and opened with ``dlopen``, also from a memory buffer;
* on the first call: ``guards_code``, which is pasted into a generated function, and operators with side
  effects (``aten.from_file`` creates files).

Without effect there: node targets such as ``torch.os.system`` or ``builtins.eval`` (the first is looked up,
but the verifier refuses the finished graph), node names, and ``forward_arg_names`` (pasted into generated
source, which did not compile). ``custom_obj_*`` goes to a C++ unpickler that makes TorchBind objects only.
All are refused here.

What happens instead. The file is read once, and every step works on those bytes:

1. zip: records are stored, not compressed, so nothing expands; they have known names, each once, and
   together are not larger than the file. Compiled code, pickled weights and custom objects have no known
   name.
2. JSON, of bounded size: the graph is rebuilt node by node from listed operators (`archive_graph`). Sizes
   are read from tensors at run time, so no symbolic expression is ever evaluated. The only names from the
   file that reach generated code are the paths of weights, made of letters, digits, ``_`` and ``-``.
3. weights: raw numbers, with their bounds checked; nothing is unpickled.
4. what is never read here, but would run in ``torch.export.load``, is refused when torch does not write it
   that way, so that a hostile file is reported and not passed on. Pickle opcodes are listed for this, not
   executed.
5. a dry run without data bounds the memory of every intermediate result before real images run
   (`archive_batch`).

What remains: the operators are torch's own kernels, with whatever memory errors they have, and a program
can be slow on purpose. Put a limit on time and memory around files from strangers, as around any model.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import os
import pickletools
import re
import stat
import sys
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from quantinel.errors import InputError, UnsupportedError
from quantinel.model.archive_batch import free_batch
from quantinel.model.archive_graph import DTYPES, build_graph
from quantinel.model.archive_text import shown

MAX_FILE_BYTES = 4 << 30
MAX_JSON_BYTES = 128 << 20
MAX_RECORDS = 100_000

_SAVE = (
    "where you trust it, run torch.export.save(torch.export.export(model.eval(), (images,)), 'model.pt2') "
    "again, with torch 2.9 or later"
)
_RECORDS = re.compile(
    r"archive_format|archive_version|byteorder|\.data/(version|serialization_id)|version"
    r"|models/[A-Za-z0-9_.-]+\.json"
    r"|data/weights/(weight_\d+|[A-Za-z0-9_.-]+_weights_config\.json)"
    r"|data/constants/(tensor_\d+|[A-Za-z0-9_.-]+_constants_config\.json)"
    r"|data/sample_inputs/[A-Za-z0-9_.-]+\.pt"
    r"|extra/[A-Za-z0-9_./-]+"
)
_FORBIDDEN = (
    (re.compile(r"data/aotinductor/|\.(so|dll|dylib|cpp|cu|cubin|o|a)$"), "compiled code"),
    (re.compile(r"data/constants/(custom_obj|opaque_obj)_"), "pickled objects"),
    (re.compile(r"data/(weights|constants)/[^/]*\.pt$|^serialized_|\.pkl$"), "pickled weights"),
)
_SAMPLE_GLOBALS = re.compile(
    r"torch\._utils _rebuild_tensor_v2|collections OrderedDict"
    r"|torch (Float|Double|Half|BFloat16|Byte|Char|Short|Int|Long|Bool)Storage"
)
_SAMPLE_OPCODES = frozenset([
    "PROTO", "GLOBAL", "BINPUT", "LONG_BINPUT", "BINGET", "LONG_BINGET", "MEMOIZE", "MARK", "BINUNICODE",
    "BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "EMPTY_TUPLE",
    "EMPTY_LIST", "EMPTY_DICT", "APPEND", "APPENDS", "SETITEM", "SETITEMS", "BINPERSID", "REDUCE", "NEWTRUE",
    "NEWFALSE", "NONE", "STOP",
])  # fmt: skip


@dataclass(frozen=True)
class ExportedModel:
    """A program from a ``.pt2`` file.

    Attributes:
        module: eval mode; float32 (N, C, H, W) -> the program's one output, first dimension N, for any N.
        input_shape: (C, H, W) of the example that the program was exported with.
        batch_size: the batch that the file fixes, or None when its first dimension is dynamic.
        sha256: of the file.
    """

    module: nn.Module
    input_shape: tuple[int, int, int]
    batch_size: int | None
    sha256: str


def load_pt2(path: Path) -> ExportedModel:
    """Read a ``.pt2`` file without running anything that it contains.

    Raises:
        InputError: not readable, not such an archive, damaged, hostile, or not an image model.
        UnsupportedError: it calls an operator of ATen that is not listed.
    """
    return parse_pt2(read_file(path), str(path))


def read_file(path: Path, limit: int = MAX_FILE_BYTES) -> bytes:
    """All bytes of a regular file.

    Raises:
        InputError: missing, not permitted, empty, larger than ``limit`` bytes, a device, pipe or directory.
    """
    try:
        # Non-blocking: opening a pipe would wait for a writer. The checks are made on the opened file.
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
        with open(descriptor, "rb") as file:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise InputError(f"{path} is not a regular file; copy the model to a file and give that")
            if status.st_size > limit:
                raise InputError(f"{path} has {status.st_size} bytes, more than the limit of {limit}; is it a model?")
            data = file.read(limit + 1)
    except FileNotFoundError as error:
        raise InputError(f"{path} does not exist; check the path") from error
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{path} cannot be read ({reason}); check the path and its permissions") from error
    if not data:
        raise InputError(f"{path} is empty; download or export the model again")
    return data


def parse_pt2(data: bytes, name: str) -> ExportedModel:
    """The program in the bytes of a ``.pt2`` file; ``name`` is for messages.

    Raises:
        InputError, UnsupportedError: as `load_pt2`.
    """
    try:
        records = _read_records(data)
        program, tensors = _check_records(records)
        module, sizes = free_batch(lambda: build_graph(program, tensors))
    except (InputError, UnsupportedError) as error:
        raise type(error)(f"{name}: {error}") from error
    except Exception as error:  # the schema is checked by use: what is missing or of another type ends here
        raise InputError(
            f"{name}: the program is damaged ({type(error).__name__}: {shown(error)}); export it again"
        ) from error
    return ExportedModel(module, (sizes[1], sizes[2], sizes[3]), sizes[0], hashlib.sha256(data).hexdigest())


def _refuse(what: str) -> NoReturn:
    raise InputError(f"it holds {what}, which can run code when opened, so it is refused; {_SAVE}")


def _read_records(data: bytes) -> dict[str, bytes]:
    """Records of a zip archive by their path below the one root folder."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            entries = archive.infolist()
            # Stored and within the file's size: neither deflate bombs nor overlapping records can expand.
            if len(entries) > MAX_RECORDS or sum(entry.file_size for entry in entries) > len(data):
                raise InputError("its records are larger than the file (a zip bomb?); download or export it again")
            if any(entry.compress_type != zipfile.ZIP_STORED or entry.flag_bits & 1 for entry in entries):
                raise InputError("its records are compressed or encrypted, which torch does not do; export it again")
            records = {entry.filename: archive.read(entry) for entry in entries}
    except (zipfile.BadZipFile, NotImplementedError, EOFError, OSError, RuntimeError, ValueError) as error:
        raise InputError(
            f"damaged or not a torch.export archive ({shown(error)}); export or download it again"
        ) from error
    if len(records) != len(entries):
        raise InputError("two of its records have one name; export it again")
    roots = {path.split("/", 1)[0] for path in records}
    if len(roots) != 1 or not all("/" in path for path in records):
        raise InputError("its records are not in one folder, as torch.export.save writes them; export it again")
    return {path.split("/", 1)[1]: record for path, record in records.items()}


def _check_records(records: Mapping[str, bytes]) -> tuple[dict[str, Any], dict[str, tuple[Tensor, bool]]]:
    """Program and {weight name: (tensor, is it a parameter)}."""
    for path in records:
        for pattern, what in _FORBIDDEN:
            if pattern.search(path):
                _refuse(f"{what} ({shown(path)})")
        if not _RECORDS.fullmatch(path) or ".." in path:
            raise InputError(f"it holds an unknown record {shown(path)}; export it again with torch.export.save")
    if records.get("archive_format") != b"pt2" or records.get("archive_version") != b"0":
        raise InputError(f"not a torch.export archive of a version that can be read; {_SAVE}")
    if records.get("byteorder", b"little") != b"little" or sys.byteorder != "little":
        raise InputError("its numbers are big-endian; export it again on a little-endian machine")
    programs = [path for path in records if path.startswith("models/")]
    if len(programs) != 1:
        raise InputError(f"it holds {len(programs)} programs; save exactly one with torch.export.save")
    model = programs[0].removeprefix("models/").removesuffix(".json")
    _check_sample_inputs(records.get(f"data/sample_inputs/{model}.pt", b""))
    tensors = _read_tensors(records, "data/constants/", f"{model}_constants_config.json")
    tensors.update(_read_tensors(records, "data/weights/", f"{model}_weights_config.json"))
    return _json(records, programs[0]), tensors


def _json(records: Mapping[str, bytes], path: str) -> dict[str, Any]:
    if path not in records:
        raise InputError(f"{shown(path)} is missing; {_SAVE}")
    if len(records[path]) > MAX_JSON_BYTES:
        raise InputError(f"{shown(path)} is larger than {MAX_JSON_BYTES} bytes; is it a model?")
    content = json.loads(records[path].decode("utf-8"))
    if not isinstance(content, dict):
        raise TypeError(f"{path} is not an object")
    return content


def _read_tensors(records: Mapping[str, bytes], folder: str, config: str) -> dict[str, tuple[Tensor, bool]]:
    """Strided views of raw records; tensors that share a record share memory, as in the original model."""
    storages: dict[tuple[str, int], Tensor] = {}
    seen: dict[str, tuple[Tensor, bool]] = {}
    for name, payload in _json(records, folder + config)["config"].items():
        if payload["use_pickle"] is not False:
            _refuse(f"a pickled tensor ({shown(name)})")
        path, meta = payload["path_name"], payload["tensor_meta"]
        code = int(meta["dtype"])
        if code not in DTYPES or meta["layout"] != 7:
            raise InputError(f"tensor {shown(name)} has an unsupported type or layout; export a dense float32 model")
        sizes = [_count(size["as_int"]) for size in meta["sizes"]]
        strides = [_count(stride["as_int"]) for stride in meta["strides"]]
        offset = _count(meta["storage_offset"]["as_int"])
        record = records[folder + path]
        last = offset + sum((size - 1) * stride for size, stride in zip(sizes, strides, strict=True))
        numbers = len(record) // DTYPES[code].itemsize
        if len(record) % DTYPES[code].itemsize or (0 not in sizes and last >= numbers):
            raise InputError(f"tensor {shown(name)} reaches beyond its record; download or export it again")
        if math.prod(sizes) * DTYPES[code].itemsize > MAX_FILE_BYTES:
            raise InputError(f"tensor {shown(name)} is larger than {MAX_FILE_BYTES} bytes; is it a model?")
        if (path, code) not in storages:
            empty = torch.empty(0, dtype=DTYPES[code])
            storages[path, code] = torch.frombuffer(bytearray(record), dtype=DTYPES[code]) if record else empty
        tensor = torch.as_strided(storages[path, code], sizes, strides, offset if numbers else 0)
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise InputError(f"tensor {shown(name)} holds NaN or infinite numbers; give an undamaged model")
        seen[name] = (tensor, payload["is_param"] is True)
    return seen


def _count(value: Any) -> int:
    if type(value) is not int or not 0 <= value < 1 << 62:
        raise ValueError(f"{value} is not a size")
    return value


def _check_sample_inputs(data: bytes) -> None:
    """Look at the sample inputs, which are never opened: torch would unpickle them."""
    if not data:
        return
    pickles = [record for path, record in _read_records(data).items() if path.endswith(".pkl")]
    for content in pickles:
        try:
            for opcode, argument, _ in pickletools.genops(content):
                unknown = opcode.name == "GLOBAL" and not _SAMPLE_GLOBALS.fullmatch(str(argument))
                if unknown or opcode.name not in _SAMPLE_OPCODES:
                    _refuse(f"sample inputs that are more than tensors ({opcode.name} {shown(argument)})")
        except ValueError as error:
            raise InputError(f"its sample inputs are damaged ({shown(error)}); export it again") from error
    if len(pickles) != 1:
        _refuse("sample inputs that are not one pickle of tensors")
