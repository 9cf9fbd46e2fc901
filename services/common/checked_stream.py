"""A stream that tells its reader at the end where the bytes were not those of its digest."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable
from typing import Any, BinaryIO


class CheckedStream(io.BufferedIOBase):
    """Hashes what is read from start to end; a seek to anywhere else ends the hashing.

    `damaged` is called at the end of bytes that do not have the digest, and raises.
    """

    def __init__(self, file: BinaryIO, digest: str, damaged: Callable[[], object]) -> None:
        self._file, self._digest, self._damaged = file, digest, damaged
        self._sha, self._hashed = hashlib.sha256(), 0

    def read(self, size: int | None = -1, /) -> bytes:
        at = self._file.tell()
        data = self._file.read(-1 if size is None else size)
        if at == self._hashed:
            self._sha.update(data)
            self._hashed += len(data)
            is_end = size is None or size < 0 or (size > 0 and not data)
            if is_end and self._sha.hexdigest() != self._digest:
                self._damaged()
        return data

    def read1(self, size: int = -1, /) -> bytes:
        return self.read(size)

    def readinto(self, buffer: Any, /) -> int:
        view = memoryview(buffer).cast("B")
        data = self.read(len(view))
        view[: len(data)] = data
        return len(data)

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return self._file.seekable()

    def close(self) -> None:
        self._file.close()
        super().close()
