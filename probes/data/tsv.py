"""Tables with base64 images (VLMEvalKit's TSV): rows one at a time, images as places in the file (no torch here).

Only the row at hand is in memory. An image is where its base64 text lies in the file, decoded when a sample is
measured; a short image cell is the index of the row whose image it shares, wherever that row is. The characters of
every image are checked on the way. Quoted cells follow RFC 4180: they may hold tabs, newlines and doubled quotes.
"""

from __future__ import annotations

import base64
import binascii
import io
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from analyses.runs import HorizonError
from probes.data.rows import Row
from probes.data.samples import SampleError

INDEX = "index"
ALIAS = 64  # bytes: an image cell this short is the index of another row, in VLMEvalKit's tables and here
LONGEST_ROW = 2**26  # bytes; a quote that never closes must not swallow a file
BLANKS = b" \t\r\n"
_BASE64 = re.compile(rb"[A-Za-z0-9+/=\s]+")
_DATA_URI = re.compile(rb"data:image/[\w.+-]+;base64,")
_BASE64_LIST = re.compile(rb"""\[\s*(?:['"]+[A-Za-z0-9+/=]*['"]+\s*,?\s*)+\]""")
_PATH = re.compile(rb"[ -~]{1,1000}\.(?:png|jpe?g|webp|bmp|gif|tiff?)", re.IGNORECASE)  # base64 has no dot
_ELEMENT = re.compile(rb"""['"]+([A-Za-z0-9+/=]*)['"]+""")


@dataclass(frozen=True)
class Base64Image:
    """An image as base64 text between two bytes of a file."""

    path: Path
    start: int
    stop: int

    def open(self) -> Image.Image:
        """The image; raises OSError where the text is no longer one."""
        with self.path.open("rb") as file:
            file.seek(self.start)
            content = file.read(self.stop - self.start)
        return Image.open(io.BytesIO(base64.b64decode(content)))

    def __str__(self) -> str:
        return f"at byte {self.start} of {self.path.name}"


class Cell(NamedTuple):
    """One cell of a record: bytes from start to stop, inside its quotes."""

    start: int
    stop: int
    quoted: bool


class TableRow(NamedTuple):
    """One record of the file: its first line's number, where it begins, its bytes and cells."""

    line: int
    offset: int
    content: bytes
    cells: list[Cell] | None  # None where a quote never closes

    def raw(self, cell: Cell) -> bytes:
        """A cell's bytes; doubled quotes of a quoted one become single."""
        content = self.content[cell.start : cell.stop]
        return content.replace(b'""', b'"') if cell.quoted else content


def table_columns(path: Path) -> tuple[str, ...]:
    """Names of a table's columns.

    Raises:
        HorizonError: its first line is no header: empty, not UTF-8, or with a name twice.
    """
    first = next(_records(path, _separator(path)), None)
    if first is None or first.cells is None:
        raise HorizonError(f"{path} has no header line")
    try:
        names = tuple(first.raw(cell).decode("utf-8-sig").strip() for cell in first.cells)
    except UnicodeDecodeError as error:
        raise HorizonError(f"the header of {path} is not UTF-8 ({error})") from error
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise HorizonError(f"{path} has the column {twice[0]!r} more than once")
    return names


def table_rows(path: Path, image: str = "image") -> Iterator[Row]:
    """The rows of a table; a broken one carries the reason and whatever columns could be read.

    Args:
        path: the file.
        image: the column of base64 texts, row indices or paths.

    Raises:
        HorizonError: it has no usable header.
    """
    names = table_columns(path)
    images = _Images(path, names, image)
    records = _records(path, _separator(path), len(names))
    next(records)
    for record in records:
        where, name = f"{path.name} line {record.line}", f"{path.stem}:{record.line}"
        if record.cells is None:
            yield Row(where, name, {}, f"a quote opens a cell and never closes, or the row exceeds {LONGEST_ROW} bytes")
            continue
        if len(record.cells) != len(names):
            reason = f"{len(record.cells)} cells in a table of {len(names)} columns"
            yield Row(where, name, {}, reason)
            continue
        columns, errors = _columns(record, names, images)
        yield Row(where, name, columns, "; ".join(errors))


def _columns(record: TableRow, names: tuple[str, ...], images: _Images) -> tuple[dict[str, Any], list[str]]:
    columns: dict[str, Any] = {}
    errors = []
    for name, cell in zip(names, record.cells or (), strict=True):
        if name == images.name:
            continue
        try:
            columns[name] = record.raw(cell).decode()
        except UnicodeDecodeError as error:
            errors.append(f"{name} is not UTF-8 ({error.reason} at byte {error.start})")
    try:
        images.note(record, columns.get(INDEX))
        if images.name in names:
            columns[images.name] = images.find(record)
    except SampleError as error:
        errors.append(str(error))
    return columns, errors


class _Images:
    """Where the images of a table lie: by index for those seen so far, of the whole file once a later one is needed."""

    def __init__(self, path: Path, names: tuple[str, ...], name: str) -> None:
        self._path, self._names, self.name = path, names, name
        self._column = names.index(name) if name in names else None
        self._lines: dict[str, int] = {}
        self._places: dict[str, tuple[int, int]] = {}
        self._complete = False

    def note(self, record: TableRow, index: str | None) -> None:
        """Remember a row's index and where its image lies.

        Raises:
            SampleError: the index was there before.
        """
        if index is None:
            return
        first = self._lines.setdefault(index, record.line)
        if first != record.line:
            raise SampleError(f"index {index!r} is that of line {first} again")
        cell = self._cell(record)
        if cell is not None and cell.stop - cell.start > ALIAS:
            self._places[index] = record.offset + cell.start, record.offset + cell.stop

    def find(self, record: TableRow) -> Base64Image | list[Base64Image] | str | None:
        """The image of a record, its images, their path, or None where the cell is blank.

        Raises:
            SampleError: the cell is neither base64, nor the index of a row with an image, nor the name of an image.
        """
        cell = self._cell(record)
        assert cell is not None
        content = record.raw(cell).strip(BLANKS)
        if not content:
            return None
        if _PATH.fullmatch(content):
            return content.decode()
        if len(content) <= ALIAS:
            return self._alias(content)
        begin = record.offset + cell.start
        if content.startswith(b"["):
            return self._several(record.content[cell.start : cell.stop], begin)
        prefix = _DATA_URI.match(content)
        _check_base64(content[prefix.end() :] if prefix else content)
        return Base64Image(self._path, begin + (prefix.end() if prefix else 0), record.offset + cell.stop)

    def _alias(self, content: bytes) -> Base64Image | list[Base64Image]:
        index = content.decode(errors="replace")
        if index not in self._places and not self._complete:
            self._read_all()
        if index not in self._places:
            raise SampleError(f"its image is {index!r}, which is neither base64 nor the index of a row with an image")
        start, stop = self._places[index]
        with self._path.open("rb") as file:
            file.seek(start)
            first = file.read(1)
            if first == b"[":
                return self._several(first + file.read(stop - start - 1), start)
        return Base64Image(self._path, start, stop)

    def _several(self, content: bytes, begin: int) -> list[Base64Image]:
        if not _BASE64_LIST.fullmatch(content.strip(BLANKS)):
            raise SampleError("its image begins like a list and is no list of base64 texts")
        for element in _ELEMENT.finditer(content):
            _check_base64(element[1])
        return [Base64Image(self._path, begin + e.start(1), begin + e.end(1)) for e in _ELEMENT.finditer(content)]

    def _read_all(self) -> None:
        """One pass for the places of all images; the first row of an index holds."""
        at = self._names.index(INDEX) if INDEX in self._names else None
        for record in _records(self._path, _separator(self._path), len(self._names)):
            cell = self._cell(record)
            if at is not None and cell is not None and cell.stop - cell.start > ALIAS:
                index = record.raw((record.cells or [])[at]).decode(errors="replace")
                self._places.setdefault(index, (record.offset + cell.start, record.offset + cell.stop))
        self._complete = True

    def _cell(self, record: TableRow) -> Cell | None:
        if self._column is None or record.cells is None or len(record.cells) != len(self._names):
            return None
        return record.cells[self._column]


def _check_base64(content: bytes) -> None:
    strange = _BASE64.match(content)
    if strange is None or strange.end() != len(content):
        at = strange.end() if strange else 0
        raise SampleError(f"its image is not base64: {content[at : at + 8]!r} at character {at}")
    try:
        binascii.a2b_base64(content.translate(None, BLANKS), strict_mode=True)
    except binascii.Error as error:
        raise SampleError(f"its image is not base64, or was cut off: {error}") from error


def _separator(path: Path) -> bytes:
    """Tab or comma, whichever the header has."""
    with path.open("rb") as file:
        return b"\t" if b"\t" in file.readline(2**16) else b","


def _records(path: Path, separator: bytes, width: int | None = None) -> Iterator[TableRow]:
    """The records of a file. One that never ends, or swallows whole rows, gives up its first line only."""
    with path.open("rb") as file:
        number, offset = 1, 0
        while line := file.readline(LONGEST_ROW + 1):
            record = _record(file, number, offset, line, separator)
            lines = record.content.count(b"\n") + (not record.content.endswith(b"\n"))
            if lines > 1 and _swallows(record, separator, width):
                file.seek(offset + len(line))
                record, lines = TableRow(number, offset, line, None), 1
            elif record.cells is None and lines == 1 and not line.endswith(b"\n"):
                _skip_line(file)
            if record.content.strip(BLANKS):
                yield record
            number, offset = number + lines, file.tell()


def _record(file: io.BufferedReader, number: int, offset: int, line: bytes, separator: bytes) -> TableRow:
    """The record that begins with a line, read on while a quote is open."""
    content = bytearray(line)
    cells = _split(line, separator)
    while cells is None and len(content) <= LONGEST_ROW and (more := file.readline(LONGEST_ROW + 1)):
        content += more
        if b'"' in more:
            cells = _split(bytes(content), separator)
    return TableRow(number, offset, bytes(content), cells or None if len(content) <= LONGEST_ROW else None)


def _swallows(record: TableRow, separator: bytes, width: int | None) -> bool:
    """Whether a record of several lines is really a stray quote: it never ends, or holds a line that is a row."""
    if record.cells is None:
        return True
    if width is None or len(record.cells) == width:
        return False
    later = record.content.split(b"\n")[1:]
    return any(len(_split(line, separator) or ()) == width for line in later)


def _split(content: bytes, separator: bytes) -> list[Cell] | None:
    """Cells of a record without its line end; None while a quote is open; none where it only seemed to be one."""
    end = len(content.rstrip(b"\r\n"))
    cells, at = [], 0
    while True:
        close = _closing_quote(content, at + 1) if content[at : at + 1] == b'"' else at
        if close is None:
            return None
        quoted = close > at and (close + 1 >= end or content[close + 1 : close + 2] == separator)
        stop = content.find(separator, close + 1 if quoted else at, end)  # other quotes are characters like any
        last = end if stop < 0 else stop
        cells.append(Cell(at + 1, close, True) if quoted else Cell(at, last, False))
        if not quoted and b"\n" in content[at:last]:
            return []
        if stop < 0:
            return cells
        at = stop + 1


def _closing_quote(content: bytes, at: int) -> int | None:
    while (close := content.find(b'"', at)) >= 0:
        if content[close + 1 : close + 2] != b'"':
            return close
        at = close + 2
    return None


def _skip_line(file: io.BufferedReader) -> None:
    while (more := file.readline(LONGEST_ROW)) and not more.endswith(b"\n"):
        pass
