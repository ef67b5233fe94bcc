"""What a training run over HTTP fetches beside what it needs, from a server on loopback.

    python benchmarks/remote.py [--images 2048] [--views 120] [--epochs 25] [--json]

A made-up store in the default codecs is pushed to a folder that nginx serves (where it isn't
installed, the tests' own server). A run reads a plane of 4 views an epoch, as training does, the
next one fetched ahead. Needed are the chunks of those planes and the arrays that every epoch uses
(images' tables and lists); bytes are the bodies received. Then the same with a cache of two planes,
with connections that break, and what `pull --views` of a part costs in whole files beside the
chunks alone.
"""

from __future__ import annotations

import contextlib
import json
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import numpy as np
from read_plane import DICTIONARY, PLANE, TEACHER, make_spec, write_store

from storage.format import default_block_images
from storage.remote.push import push
from storage.remote.store import RemoteStore
from storage.remote.transport import Retry, Transport
from storage.sealing import seal
from storage.shards import chunks_per_shard, index_bytes, parse_index
from storage.store import LabelStore

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from web_servers import FileServer, nginx, nginx_program

FAST = Retry(first_wait=0.01, longest_wait=0.1)
GIGABYTE = 10**9


def plane_bytes(store: LabelStore, planes: range) -> int:
    """Bytes on disk of the chunks of some planes, and of files without views that training uses."""
    total = 0
    for path, layout in store.layouts.items():
        for block in range(store.blocks):
            for segment in range(layout.num_segments):
                file = store.path / layout.object_paths(block, [segment])[0]
                if layout.shard is None:
                    total += 0 if path.endswith("/spread") else file.stat().st_size
                    continue
                data, held = file.read_bytes(), chunks_per_shard(layout)
                index = parse_index(data[-index_bytes(held) :], held, len(data))
                first = segment * layout.shard[1] // PLANE
                views = layout.shard[1] // PLANE
                rows = index.reshape(-1, views, 2)  # chunks of images, planes
                total += sum(
                    int(rows[:, plane - first, 1].sum())
                    for plane in planes
                    if first <= plane < first + views
                )
    return total


def train(url: str, cache: Path, epochs: int, limit: int = GIGABYTE) -> dict[str, float]:
    """Read as a run of so many epochs does.

    Returns:
        bytes and seconds until the first plane is there, and of the whole run; the most disk that
        the cache took after an epoch.
    """
    start, most = time.perf_counter(), 0
    store = RemoteStore.connect(Transport(url, FAST), cache, limit)
    opened = store.transport.bytes_fetched
    store.read_images()
    first: dict[str, float] = {}
    for epoch in range(epochs):
        store.read_plane(epoch * PLANE, PLANE, TEACHER)
        first = first or {
            "first_plane_s": time.perf_counter() - start,
            "first_plane_bytes": store.transport.bytes_fetched,
        }
        if epoch + 1 < epochs:
            store.prefetch((epoch + 1) * PLANE, PLANE, TEACHER)
            assert store._ahead is not None
            store._ahead.join()  # an epoch of training takes longer than that
        files = (f for f in store.path.rglob("*") if f.is_file())
        most = max(most, sum(f.stat().st_blocks * 512 for f in files))
    store.close()
    return {
        **first, "opening_bytes": opened, "bytes": store.transport.bytes_fetched,
        "seconds": time.perf_counter() - start, "cache_bytes": most,
    }  # fmt: skip


@contextlib.contextmanager
def served(folder: Path, scratch: Path) -> Iterator[tuple[str, str]]:
    """(name, URL) of a web server of a folder."""
    if nginx_program():
        with nginx(folder, scratch) as (url, _):
            yield "nginx", url
    else:
        with FileServer(folder) as server:
            yield "python", server.url


def broken(folder: Path, cache: Path, epochs: int) -> dict[str, Any]:
    """The same through a server that breaks off every third answer in its middle."""
    answers = iter(range(10**9))

    def spoil(_path: str, _start: int, body: bytes) -> tuple[bytes, str]:
        return body, "drop" if len(body) > 64 and next(answers) % 3 == 0 else ""

    with FileServer(folder) as server:
        server.spoil = spoil
        url = f"{server.url}/store.zarr"
        found = train(url, cache, epochs)
        remote = RemoteStore.connect(Transport(url, FAST), cache, GIGABYTE)
        local = LabelStore.open(folder / "store.zarr")
        planes = [s.read_plane(0, PLANE, TEACHER) for s in (remote, local)]
        same = all(
            np.array_equal(getattr(planes[0], name), getattr(planes[1], name))
            for name in ("box", "flip", "index", "code", "tail")
        )
    return {"requests": next(answers), "bytes": found["bytes"], "same_values": same}


def parts(store: LabelStore, spans: list[tuple[int, int]]) -> dict[str, float]:
    """Bytes of the whole files that hold some views over those of their chunks alone."""
    found = {}
    for first, last in spans:
        whole = 0
        for layout in store.layouts.values():
            segments = layout.segments_of(first, last) if layout.shard else range(1)
            for block in range(store.blocks):
                names = layout.object_paths(block, segments)
                whole += sum((store.path / name).stat().st_size for name in names)
        planes = range(first // PLANE, -(-last // PLANE))
        found[f"{first}:{last}"] = round(whole / plane_bytes(store, planes), 3)
    return found


@click.command()
@click.option("--images", default=2048, show_default=True)
@click.option("--views", default=120, show_default=True)
@click.option("--epochs", default=25, show_default=True)
@click.option("--json", "as_json", is_flag=True)
def main(images: int, views: int, epochs: int, as_json: bool) -> None:
    """Measure training over HTTP."""
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        spec = make_spec(images, 10, default_block_images(images, views), views, DICTIONARY)
        made = write_store(root / "made.zarr", spec)
        size = sum(seal(made).sizes().values())
        push(made.path, str(root / "www/store.zarr"))
        store = LabelStore.open(root / "www/store.zarr")
        needed = plane_bytes(store, range(epochs))
        two_planes = plane_bytes(store, range(2))
        with served(root / "www", root) as (name, url):
            address = f"{url}/store.zarr"
            found = train(address, root / "cache", epochs)
            small = train(address, root / "small", epochs, limit=2 * two_planes)
        dropped = broken(root / "www", root / "dropped", min(3, epochs))
        result = {
            "images": images, "views": views, "epochs": epochs, "store_bytes": size,
            "needed_bytes": needed,
            "server": name,
            "fetched_over_needed": round(found["bytes"] / needed, 4),
            "without_opening": round((found["bytes"] - found["opening_bytes"]) / needed, 4),
            "opening_bytes": found["opening_bytes"],
            "first_plane_s": round(found["first_plane_s"], 3),
            "first_plane_over_store": round(found["first_plane_bytes"] / size, 4),
            "small_cache": {
                "limit": 2 * two_planes, "most_on_disk": small["cache_bytes"],
                "bytes_over_needed": round(small["bytes"] / needed, 4),
            },
            "dropped_connections": dropped,
            "whole_files_over_chunks": parts(store, [(0, views // 3), (0, views)]),
        }  # fmt: skip
    if as_json:
        print(json.dumps(result, indent=2))
        return
    for name, value in result.items():
        print(f"{name:26} {value}")


if __name__ == "__main__":
    main()
