"""Read the header and the tensors of a GGUF file (the usual reader needs ten seconds for one)."""

import mmap
import struct
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import dequantize
from torch import Tensor

SCALARS = {
    **{0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i"},
    **{6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"},
}
STRING, ARRAY = 8, 9


class GGUFFile:
    """A GGUF file: `fields` holds its metadata, `tensor(name)` its weights as float32."""

    def __init__(self, path: Path) -> None:
        with path.open("rb") as file:
            self._data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        magic, version, n_tensors, n_fields = struct.unpack_from("<4sIQQ", self._data, 0)
        if magic != b"GGUF" or version < 2:
            raise ValueError(f"{path} is not a GGUF file of version 2 or later")
        self._at = 24
        self.fields: dict[str, Any] = {}
        for _ in range(n_fields):
            key = self._string()
            self.fields[key] = self._value(self._scalar("I"))
        self._infos: dict[str, tuple[list[int], GGMLQuantizationType, int]] = {}
        for _ in range(n_tensors):
            name = self._string()
            shape = [self._scalar("Q") for _ in range(self._scalar("I"))]
            kind = GGMLQuantizationType(self._scalar("I"))
            self._infos[name] = (shape[::-1], kind, self._scalar("Q"))
        alignment = self.fields.get("general.alignment", 32)
        self._start = -(-self._at // alignment) * alignment

    def tensor(self, name: str) -> Tensor:
        """The tensor of this name, dequantised to float32."""
        shape, kind, offset = self._infos[name]
        block, size = GGML_QUANT_SIZES[kind]
        rows = [*shape[:-1], shape[-1] // block * size]
        raw = np.frombuffer(self._data, np.uint8, int(np.prod(rows)), self._start + offset)
        values = np.array(dequantize(raw.reshape(rows), kind), dtype=np.float32)
        return torch.from_numpy(values.reshape(shape))

    def _scalar(self, code: str) -> Any:
        (value,) = struct.unpack_from("<" + code, self._data, self._at)
        self._at += struct.calcsize("<" + code)
        return value

    def _string(self) -> str:
        length = self._scalar("Q")
        self._at += length
        return self._data[self._at - length : self._at].decode("utf-8")

    def _value(self, kind: int) -> Any:
        if kind == STRING:
            return self._string()
        if kind == ARRAY:
            item, length = self._scalar("I"), self._scalar("Q")
            return [self._value(item) for _ in range(length)]
        return self._scalar(SCALARS[kind])
