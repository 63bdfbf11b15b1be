"""Parquet files with a column of encoded images, as on the Hugging Face hub.

A page of parquet is compressed: no image in it can be read alone. So the image and label columns are written once as
Arrow files in the cache, bytes unchanged, and read from there (arrow.py, which says how columns are found). Ids follow
the files in the order of their paths, each in its own.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from fastaug.console import Console
from fastaug.data.index import cache_dir
from fastaug.data.packed import arrow
from fastaug.data.packed.places import files_of
from fastaug.data.packed.records import Found, Keys
from fastaug.data.sources.materialized import make_once
from fastaug.errors import DataError

VERSION = 1  # of what is written
AGAIN = "download or write it again"
_ROWS = 64  # that are in memory at once


def find(place: str) -> Found:
    """The parquet files that `place` names."""
    return files_of(place, "parquet", lambda name: name.lower().endswith((".parquet", ".pq")))


def prepare(found: Found, keys: Keys, progress: bool) -> Found:
    """The Arrow files that the parquet files were made into, now or earlier, under the names of the parquet files.

    They appear complete or not at all (materialized.make_once). DataError for a broken file or none of images,
    StorageError when the cache cannot be written.
    """
    package = arrow.pyarrow()
    if not found.files:
        return found
    schema = _schema(package, found.files[0].path, keys)
    rows = [_opened(package, file.path).metadata.num_rows for file in found.files]  # all are whole, before one is made
    stats = [(str(file.path), seen.st_size, seen.st_mtime_ns) for file in found.files for seen in [file.path.stat()]]
    identity = hashlib.sha256(repr((VERSION, schema.names, stats)).encode()).hexdigest()[:16]

    def write(folder: Path) -> None:
        with Console(progress).bar("parquet to arrow, once", sum(rows)) as bar:
            for number, file in enumerate(found.files):
                out = package.OSFile(str(folder / f"{number:05d}.arrow"), "wb")
                with out, package.ipc.new_stream(out, schema) as writer:
                    for batch in _batches(package, file.path, schema):
                        writer.write_batch(batch)
                        bar.advance(batch.num_rows)

    target = make_once(cache_dir() / "packed" / f"parquet-{identity}", write)
    made = (file._replace(path=target / f"{number:05d}.arrow") for number, file in enumerate(found.files))
    return replace(found, files=tuple(made))


def _schema(package: Any, path: Path, keys: Keys) -> Any:
    """The image and the label column, with what the file declares of them."""
    schema = _opened(package, path).schema_arrow
    columns = arrow.columns_of(path, schema, {}, keys)
    fields = [schema.field(name) for name in (columns.image, columns.label) if name is not None]
    return package.schema(fields, metadata=schema.metadata)


def _opened(package: Any, path: Path) -> Any:
    try:
        return package.parquet.ParquetFile(str(path))
    except (package.ArrowException, OSError) as error:
        raise DataError(f"data.root: {path}: truncated or no parquet file ({error}); {AGAIN}") from error


def _batches(package: Any, path: Path, schema: Any) -> Iterator[Any]:
    """Its rows, some at once; DataError for broken bytes, and for other columns than `schema` has."""
    opened = _opened(package, path)
    try:
        for batch in opened.iter_batches(_ROWS, columns=schema.names):
            columns = [batch.column(name) for name in schema.names]
            yield package.RecordBatch.from_arrays(columns, schema=schema)
    except (package.ArrowException, OSError, KeyError) as error:
        text = (
            f"data.root: {path}: broken, or without the columns {', '.join(schema.names)} of the first file ({error})"
        )
        raise DataError(f"{text}; {AGAIN}") from error
