"""Files of tensors in the safetensors format: a length, a header of JSON, and the bytes. Nothing in them is run.

The format is small enough to be read here, strictly: sizes that do not fit, gaps and overlaps are errors. bfloat16 is that of
ml_dtypes, which comes with JAX.
"""

import hashlib
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

DTYPES: dict[str, Any] = {
    "F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16, "I64": np.int64, "I32": np.int32,
    "I16": np.int16, "I8": np.int8, "U8": np.uint8, "BOOL": np.bool_,
}  # fmt: skip
NAMES = {np.dtype(dtype): name for name, dtype in DTYPES.items()}
LARGEST_HEADER = 100_000_000  # bytes


class Tensors(NamedTuple):
    """What a file holds; arrays are mapped from the disk and read when they are used."""

    arrays: dict[str, np.ndarray]
    metadata: dict[str, str]


def read(path: str | Path) -> Tensors:
    """Read a file.

    Raises:
        ValueError: it is no such file, or was cut short.
    """
    path = Path(path)
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > min(LARGEST_HEADER, size - 8):
            raise ValueError(f"{path} is no safetensors file, or was cut short: its header would be {length} bytes")
        try:
            header = json.loads(file.read(length))
            metadata = header.pop("__metadata__", {})
            places = sorted((*map(int, x["data_offsets"]), name, x["dtype"], tuple(x["shape"])) for name, x in header.items())
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{path} is no safetensors file: its header is not what the format says ({error})") from error
    arrays, reached = {}, 0
    data = np.memmap(path, np.uint8, "r", 8 + length) if size > 8 + length else np.zeros(0, np.uint8)
    for begin, end, name, kind, shape in places:
        if kind not in DTYPES:
            raise ValueError(f"{path}: tensor {name!r} has type {kind}; {', '.join(DTYPES)} are known")
        dtype = np.dtype(DTYPES[kind])
        if begin != reached or end - begin != math.prod(shape) * dtype.itemsize or end > len(data):
            raise ValueError(f"{path}: tensor {name!r} of shape {shape} is not where the header says, or was cut short")
        arrays[name], reached = data[begin:end].view(dtype).reshape(shape), end
    if reached != len(data):
        raise ValueError(f"{path} has {len(data) - reached} bytes behind its tensors")
    return Tensors(arrays, metadata)


def write(path: str | Path, arrays: Mapping[str, Any], metadata: Mapping[str, str] | None = None) -> None:
    """Write a file under a name of its own first, so that there is a whole one or none."""
    path = Path(path)
    found, header = _header(arrays)
    if metadata:
        header = {"__metadata__": dict(metadata), **header}
    content = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    content += b" " * (-len(content) % 8)  # data begins at a multiple of 8
    part = path.with_name(f"{path.name}.part")
    with part.open("wb") as file:
        file.write(len(content).to_bytes(8, "little") + content)
        for array in found.values():
            file.write(array.tobytes())
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)


def digest(arrays: Mapping[str, Any]) -> str:
    """SHA-256 of names, types, shapes and bytes, in hexadecimal digits: what a manifest in the metadata can speak of.

    The digest of the file would be one of the manifest too.
    """
    found, header = _header(arrays)
    digested = hashlib.sha256(json.dumps(header, separators=(",", ":"), sort_keys=True).encode())
    for array in found.values():
        digested.update(array.tobytes())
    return digested.hexdigest()


def _header(arrays: Mapping[str, Any]) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    found, header, reached = {}, {}, 0
    for name in sorted(arrays):
        array = np.asarray(arrays[name])
        if array.dtype not in NAMES:
            raise TypeError(f"tensor {name!r} has type {array.dtype}, which safetensors files cannot hold")
        found[name] = array
        header[name] = {
            "dtype": NAMES[array.dtype],
            "shape": list(array.shape),
            "data_offsets": [reached, reached + array.nbytes],
        }
        reached += array.nbytes
    return found, header
