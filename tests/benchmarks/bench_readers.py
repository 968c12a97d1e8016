"""Resident memory and time of reading a table of 200 MB with base64 images. Linux only, where /proc tells the size."""

from __future__ import annotations

import base64
import io
import os
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Event, Thread

import numpy as np
from PIL import Image
from timing import heading, verdict

import vlm_horizon as vh

MEGABYTES = 200
SIDE = 600  # pixels; noise, which no encoder makes small
ALLOWED = 32.0  # MB


def resident_megabytes() -> float:
    """Resident size of this process."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def write_table(path: Path, megabytes: int) -> int:
    """A table in VLMEvalKit's format: every fourth image is an alias of the one before; the number of rows."""
    rng = np.random.default_rng(0)
    written = rows = 0
    with path.open("w") as file:
        file.write("index\timage\tquestion\tanswer\n")
        while written < megabytes * 1e6:
            if rows % 4 == 3:
                cell = str(rows - 1)
            else:
                held = io.BytesIO()
                Image.fromarray(rng.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)).save(held, "PNG")
                cell = base64.b64encode(held.getvalue()).decode()
            written += file.write(f"{rows}\t{cell}\twhat is written in image {rows}?\t['word {rows}']\n")
            rows += 1
    return rows


class Watch(Thread):
    """The largest resident size while it runs."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.before = self.most = resident_megabytes()
        self._done = Event()

    def run(self) -> None:
        """Look every millisecond."""
        while not self._done.wait(0.001):
            self.most = max(self.most, resident_megabytes())

    def __enter__(self) -> Watch:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self.join()

    @property
    def growth(self) -> float:
        """Largest size above that at the start, in MB."""
        return self.most - self.before


def main() -> None:
    """Measure and print."""
    heading(f"Reading a table of {MEGABYTES} MB")
    with TemporaryDirectory() as folder:
        small, large = Path(folder, "small.tsv"), Path(folder, "large.tsv")
        write_table(small, 10)
        n = write_table(large, MEGABYTES)
        for sample in vh.read_samples(small):  # imports, allocators
            sample.load_image()
        started = time.process_time()
        with Watch() as listing:
            samples = list(vh.read_samples(large))
        seconds = time.process_time() - started
        assert len(samples) == n
        assert not any(sample.error for sample in samples)
        with Watch() as decoding:
            for sample in samples:
                assert sample.load_image().size == (SIDE, SIDE)
        size = large.stat().st_size / 1e6
        longest = max(map(len, large.open("rb"))) / 1e6
    print(f"{n} rows, {size:.0f} MB, longest row {longest:.1f} MB")
    print(f"read into a list: {seconds:.1f} s of processor time, {size / seconds:.0f} MB/s")
    print(f"resident growth while reading: {listing.growth:.1f} MB, {verdict(listing.growth, ALLOWED, at_least=False)}")
    print(f"resident growth while decoding every image: {decoding.growth:.1f} MB")


if __name__ == "__main__":
    main()
