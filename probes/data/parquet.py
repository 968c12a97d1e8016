"""Parquet shards with images in them, as Hugging Face datasets store them (no torch here).

Rows come without their images, which are read again from the shard when a sample is measured, in file order and a few
rows at a time; what is in memory is the page that holds them (writers often make one page of a row group). Where the
questions' shards hold no image but an id of one (GQA), the images' shards are found by their columns `id` and `image`.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from analyses.runs import HorizonError
from probes.data.rows import Row

TEXT_ROWS, IMAGE_ROWS = 64, 4  # rows a batch: a page of a column is read at once in any case
ONE = -1  # a single image where a list's length would stand
BUFFER = 2**20  # bytes read ahead of a column
IMAGE_ID = ("imageId", "image_id")
NAMES_IMAGE = ("image", "img", "picture", "photo")


class ImageColumn:
    """One column of images over the shards of a set; holds a few rows and one open file."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._lock = Lock()
        self._path: Path | None = None
        self._file: pq.ParquetFile | None = None
        self._batches: Iterator[pa.RecordBatch] = iter(())
        self._first, self._batch = 0, pa.array([])

    def value(self, path: Path, row: int) -> Any:
        """What the column holds in a row of a shard: bytes, a struct or a list of either."""
        with self._lock:
            if path != self._path or self._file is None:
                self._open(path)
            group, first = self._group(row)
            if row < self._first or first > self._first + len(self._batch):
                self._start(group, first)
            while row >= self._first + len(self._batch):
                self._first += len(self._batch)
                self._batch = next(self._batches).column(0)
            return self._batch[row - self._first].as_py()

    def _open(self, path: Path) -> None:
        if self._file is not None:
            self._file.close()
        self._path, self._file = path, _open(path)
        self._start(0, 0)

    def _start(self, group: int, first: int) -> None:
        """Begin to read at a row group, whose first row is given."""
        assert self._file is not None
        later = list(range(group, self._file.num_row_groups))
        self._batches = self._file.iter_batches(IMAGE_ROWS, row_groups=later, columns=[self.name], use_threads=False)
        self._first, self._batch = first, pa.array([])

    def _group(self, row: int) -> tuple[int, int]:
        """The row group that holds a row, and its first row."""
        assert self._file is not None
        first = 0
        for group in range(self._file.num_row_groups):
            size = self._file.metadata.row_group(group).num_rows
            if row < first + size:
                return group, first
            first += size
        raise OSError(f"{self._path} has {first} rows, and row {row} was asked for")


@dataclass(frozen=True)
class ParquetImage:
    """An image in a row of a shard.

    Attributes:
        column: reads it.
        path: of the shard.
        row: in the shard, from 0.
        element: which of a list of images; None for a single one.
    """

    column: ImageColumn = field(compare=False)
    path: Path
    row: int
    element: int | None = None

    def open(self) -> Image.Image:
        """The image; raises OSError where the row holds none."""
        content = self.column.value(self.path, self.row)
        if self.element is not None:
            content = content[self.element]
        if isinstance(content, dict):
            if content.get("bytes") is None and content.get("path"):
                return Image.open(self.path.parent / content["path"])
            content = content.get("bytes")
        if not content:
            raise OSError("there is none in the row")
        return Image.open(io.BytesIO(content))

    def __str__(self) -> str:
        return f"in column {self.column.name!r} of row {self.row} of {self.path.name}"


@dataclass(frozen=True)
class Shard:
    """One parquet file and its columns by kind.

    Attributes:
        path: the file.
        texts: columns that are read with the row.
        images: columns of images.
        n_rows: rows.
    """

    path: Path
    texts: tuple[str, ...]
    images: tuple[str, ...]
    n_rows: int


def read_shard(path: Path) -> Shard:
    """Columns of a parquet file, without its rows.

    Raises:
        HorizonError: it is no parquet file.
    """
    with _open(path) as file:
        schema = file.schema_arrow
        images = tuple(column.name for column in schema if _holds_images(column))
        texts = tuple(name for name in schema.names if name not in images)
        return Shard(path, texts, images, file.metadata.num_rows)


def shard_rows(paths: Iterable[Path], picture_paths: Sequence[Path] = ()) -> Iterator[Row]:
    """The rows of shards, in order.

    Args:
        paths: of the shards with the questions; each is opened when its turn comes.
        picture_paths: of shards with columns `id` and an image, where those with the questions hold an image's id.

    Raises:
        HorizonError: one is no parquet file, or no shard has the images that the questions name.
    """
    columns: dict[str, ImageColumn] = {}
    pictures: dict[str, ParquetImage] | None = None
    for path in paths:
        shard = read_shard(path)
        key = next((name for name in IMAGE_ID if name in shard.texts), None)
        joined = key if not shard.images and picture_paths else None
        if joined and pictures is None:
            pictures = _pictures_by_id(picture_paths)
        for number, (record, counts) in enumerate(_records(shard)):
            where, name = f"{path.name} row {number}", f"{path.stem}:{number}"
            if joined and pictures is not None:
                found = pictures.get(str(record[joined]))
                error = "" if found else f"no image has the id {record[joined]!r}"
                yield Row(where, name, {**record, "image": found}, error)
                continue
            for column, count in counts.items():
                record[column] = _pictures(columns.setdefault(column, ImageColumn(column)), path, number, count)
            yield Row(where, name, record)


def _pictures(column: ImageColumn, path: Path, row: int, count: int | None) -> ParquetImage | list[ParquetImage] | None:
    if count is None:
        return None
    if count == ONE:
        return ParquetImage(column, path, row)
    return [ParquetImage(column, path, row, element) for element in range(count)]


def _records(shard: Shard) -> Iterator[tuple[dict[str, Any], dict[str, int | None]]]:
    """The text columns of each row; and of each image column how many there are: ONE, a list's length, None for null.

    Of structs only the paths are read, which tell as much without the bytes.
    """
    with _open(shard.path) as file:
        leaves = [file.schema.column(place).path for place in range(len(file.schema))]
        paths = list(shard.texts)
        for name in shard.images:
            below = [leaf for leaf in leaves if leaf == name or leaf.startswith(f"{name}.")]
            paths += [leaf for leaf in below if leaf.endswith(".path")] or [leaf for leaf in below if leaf != name]
        for batch in file.iter_batches(TEXT_ROWS, columns=paths, use_threads=False):
            columns = set(batch.schema.names)
            for record in batch.to_pylist():
                counts = {name: _count(record.pop(name)) if name in columns else ONE for name in shard.images}
                yield record, counts


def _count(cell: Any) -> int | None:
    if cell is None:
        return None
    return len(cell) if isinstance(cell, list) else ONE


def _pictures_by_id(paths: Sequence[Path]) -> dict[str, ParquetImage]:
    """Images of shards that hold nothing else, by their id."""
    pictures = {}
    for path in paths:
        shard = read_shard(path)
        if not shard.images or "id" not in shard.texts:
            raise HorizonError(f"{path} should hold images by id; its columns are {[*shard.texts, *shard.images]}")
        column = ImageColumn(shard.images[0])
        with _open(path) as file:
            ids = file.read(columns=["id"], use_threads=False)["id"].to_pylist()
        pictures.update({str(name): ParquetImage(column, path, row) for row, name in enumerate(ids)})
    return pictures


def _holds_images(column: pa.Field) -> bool:
    kind = column.type
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        kind = kind.value_type
    if pa.types.is_struct(kind):
        return kind.get_field_index("bytes") >= 0
    binary = pa.types.is_binary(kind) or pa.types.is_large_binary(kind)
    return binary and any(word in column.name.lower() for word in NAMES_IMAGE)


def _open(path: Path) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(path, buffer_size=BUFFER, pre_buffer=False)
    except (pa.ArrowInvalid, OSError) as error:
        raise HorizonError(f"{path} cannot be read as parquet: {error}") from error
