"""Files as bytes: decompressed, complete, and in UTF-8, or refused by their name."""

import codecs
import gzip
import io
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

CHUNK = 2**20  # bytes read at a time
# How .zip and .xlsx, .bz2, .xz, .7z, .gz and .zst begin
PACKED = (b"PK\3\4", b"BZh9", b"\xfd7zXZ", b"7z\xbc\xaf", b"\x1f\x8b", b"(\xb5/\xfd")


def open_bytes(path: Path) -> BinaryIO | gzip.GzipFile:
    """A file for reading, decompressed where its ending says so. A .zst file that is truncated raises OSError."""
    if path.suffix == ".gz":
        return gzip.open(path, "rb")
    if path.suffix == ".zst":
        from pyarrow import input_stream

        return io.BufferedReader(input_stream(str(path), compression="zstd"), CHUNK)
    return path.open("rb")


def check_encoding(data: bytes, path: Path) -> None:
    if data.startswith(PACKED):
        raise ValueError(
            f"{path} is an archive or a spreadsheet, not text: unpack it, or save the table as .csv. Of packed files "
            "those that end in .gz or .zst are read."
        )
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE, codecs.BOM_UTF32_BE)):
        bits = 32 if data.startswith((codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)) else 16
        raise ValueError(f"{path} is UTF-{bits}, not UTF-8: convert it first (iconv -f UTF-{bits} -t UTF-8).")
    if data.count(0) > len(data) // 4 and len(data) > 8:
        bits = 32 if data.count(0) > len(data) // 2 else 16
        raise ValueError(
            f"{path} is not UTF-8 text: a quarter of it is NUL. UTF-{bits}? (iconv -f UTF-{bits}LE -t UTF-8)"
        )
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


@contextmanager
def reading(path: Path) -> Iterator[BinaryIO | gzip.GzipFile]:
    """Open a file, and turn what the decompressors raise into one line that names it."""
    damaged = OSError if path.suffix == ".zst" else (gzip.BadGzipFile, zlib.error, EOFError)
    with open_bytes(path) as file:
        try:
            yield file
        except damaged as error:
            raise ValueError(f"{path} is damaged: {error}") from None
