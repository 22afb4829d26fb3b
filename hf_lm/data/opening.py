"""Files as bytes: decompressed, complete, and in UTF-8, or refused by their name."""

import codecs
import csv
import gzip
import io
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

CHUNK = 2**20  # bytes read at a time


def open_bytes(path: Path) -> BinaryIO | gzip.GzipFile:
    """A file for reading, decompressed where its ending says so. Raises ImportError for .zst without zstandard."""
    if path.suffix == ".gz":
        return gzip.open(path, "rb")
    if path.suffix == ".zst":
        try:
            import zstandard
        except ImportError:
            raise ImportError(f"{path} needs the package zstandard: pip install 'hf-lm[zst]'.") from None
        return io.BufferedReader(_Zstd(path.open("rb"), zstandard.ZstdDecompressor), CHUNK)
    return path.open("rb")


class _Zstd(io.RawIOBase):
    """All frames of a .zst file. Raises EOFError where one is truncated, which zstandard's own reader hides."""

    def __init__(self, file: BinaryIO, decompressor: Callable[[], Any]) -> None:
        self.file, self.decompressor = file, decompressor
        self.frame, self.compressed, self.text = None, b"", b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: bytearray | memoryview) -> int:
        while not self.text:
            data = self.compressed or self.file.read(2**16)
            self.compressed = b""
            if not data:
                if self.frame is not None:
                    raise EOFError("it ends in the middle of a frame; it was not copied or downloaded completely")
                return 0
            self.frame = self.frame or self.decompressor().decompressobj()
            self.text = self.frame.decompress(data)
            if self.frame.eof:
                self.compressed, self.frame = self.frame.unused_data, None
        size = min(len(buffer), len(self.text))
        buffer[:size], self.text = self.text[:size], self.text[size:]
        return size

    def close(self) -> None:
        self.file.close()
        super().close()


def check_encoding(data: bytes, path: Path) -> None:
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise ValueError(f"{path} is UTF-16, not UTF-8: convert it first (iconv -f UTF-16 -t UTF-8).")
    if data.count(0) > len(data) // 4 and len(data) > 8:
        raise ValueError(f"{path} is not UTF-8 text: a quarter of it is NUL. UTF-16? (iconv -f UTF-16LE -t UTF-8)")
    text = data.decode("utf-8", "replace")
    bad = text.count("\ufffd")
    if bad > 3 and 2 * bad > sum(character > "\x7f" for character in text) and _is_gbk(data):
        raise ValueError(f"{path} is GBK, not UTF-8: convert it first (iconv -f GB18030 -t UTF-8).")
    if bad > len(text) // 10:
        raise ValueError(f"{path} is not UTF-8 text: more than a tenth of its first megabyte cannot be decoded.")


def _is_gbk(data: bytes) -> bool:
    """Whether bytes are Chinese text in GBK, but for a character that their end may cut.

    An accented letter of Latin-1 and the letter after it are a character of GBK too, but one with a byte of ASCII.
    """
    try:
        text = codecs.getincrementaldecoder("gb18030")().decode(data)
    except UnicodeDecodeError:
        return False
    foreign = [character for character in text if character > "\x7f"]
    chinese = sum("\u3000" <= character <= "\u9fff" or character > "\uff00" for character in foreign)
    above_ascii = sum(byte > 0x7F for byte in data)
    return chinese > 0.9 * len(foreign) and above_ascii > 1.5 * len(foreign)


def check_utf8(path: Path) -> None:
    with reading(path) as file:
        check_encoding(file.read(2**16), path)


class reading:
    """Open a file, and turn what the decompressors raise into one line that names it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> BinaryIO | gzip.GzipFile:
        self.file = open_bytes(self.path)
        return self.file

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        self.file.close()
        damaged = (gzip.BadGzipFile, zlib.error, EOFError)
        if kind is csv.Error:
            raise ValueError(f"{self.path} cannot be read as a table: {error}.") from None
        if kind is not None and (issubclass(kind, damaged) or kind.__name__ == "ZstdError"):
            raise ValueError(f"{self.path} is damaged: {error}") from None
