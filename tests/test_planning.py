"""A plan's bytes, files and time against the run that follows."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import write_folder
from labelling import tiny_teacher, write_weights

from labelgen import generate
from labelgen.basis import CropSample
from labelgen.cli import main
from labelgen.planning import plan_run, rough
from labelgen.probe import sample_folder
from labelgen.run_targets import plan_for_run
from labelgen.settings import build_spec
from labelgen.target_options import TargetOptions
from storage.errors import StoreError, TeachonceError
from storage.images import scan_folder
from storage.layout import constant_objects
from storage.store import LabelStore
from storage.views import RandomResizedCrop


def plan(folder: Path, teacher: Any, out: Path, crops: int, **options: Any) -> Any:
    images = scan_folder(folder)
    spec = build_spec(images, teacher, crops=crops, top_k=None, seed=0,
                      sampler=RandomResizedCrop(), batch_size=8, block_images=None)  # fmt: skip
    return plan_run(teacher, images, spec, out, workers=1, **options)


def test_a_plan_states_the_size_of_the_store_that_is_written(tmp_path: Path) -> None:
    folder, teacher = write_folder(tmp_path / "images", per_class=16), tiny_teacher(tmp_path)
    out = tmp_path / "store.zarr"
    found = plan(folder, teacher, out, crops=40, probe_crops=256)
    assert not out.exists() and found.fits
    assert found.probe.images * found.probe.views < 48 * 40 / 4
    generate(teacher, folder, out, crops=40, batch_size=8, workers=1, teacher_check=False)
    store = LabelStore.open(out)
    files = [path for path in out.rglob("*") if path.is_file()]
    assert found.files == len([path for path in files if not path.name.startswith(".")])
    assert found.bytes == pytest.approx(sum(path.stat().st_size for path in files), rel=0.2)
    for array in found.arrays:
        names = [n for b in range(store.blocks) for n in store.block_objects(b)
                 if n.startswith(f"{array.path}/")]  # fmt: skip
        assert array.files == len(names)
        real = sum((out / name).stat().st_size for name in names)
        if array.per == "crop" and real > 1920:  # a byte a crop: the rest is mostly frames
            assert array.bytes == pytest.approx(real, rel=0.2), array.path


def test_a_probe_of_everything_is_exact_for_what_views_hold(tmp_path: Path) -> None:
    folder, teacher = write_folder(tmp_path / "images"), tiny_teacher(tmp_path)
    out = tmp_path / "store.zarr"
    found = plan(folder, teacher, out, crops=4)
    assert (found.probe.images, found.probe.views) == (12, 4)
    generate(teacher, folder, out, crops=4, batch_size=8, workers=1, teacher_check=False)
    store = LabelStore.open(out)
    for array in found.arrays:
        names = [n for n in store.block_objects(0) if n.startswith(f"{array.path}/")]
        assert array.bytes == sum((out / name).stat().st_size for name in names), array.path
    assert found.device_hours == pytest.approx(48 / found.probe.crops_per_second / 3600)


def test_the_sample_is_spread_over_the_folder(image_folder: Path) -> None:
    folder = scan_folder(image_folder)
    sample = sample_folder(folder, 3)
    assert sample.keys == (folder.keys[0], folder.keys[4], folder.keys[8])
    assert sample.targets == (0, 1, 2) and sample.classes == folder.classes
    assert sample_folder(folder, 12).keys == folder.keys


def test_a_full_disk_is_foreseen(
    tmp_path: Path, image_folder: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    real = shutil.disk_usage
    asked = []

    def small(path: Path) -> Any:
        asked.append(Path(path))
        return real(path)._replace(free=1000)

    monkeypatch.setattr(shutil, "disk_usage", small)
    weights = write_weights(tmp_path / "w.safetensors")
    out = tmp_path / "not" / "there" / "store.zarr"
    monkeypatch.setattr(sys, "argv", ["labelgen", "plan", "--teacher", str(weights), "--data",
                                      str(image_folder), "--out", str(out), "--crops", "4",
                                      "--batch-size", "4", "--workers", "1"])  # fmt: skip
    for more in ([], ["--json"]):
        monkeypatch.setattr(sys, "argv", [*sys.argv, *more])
        with pytest.raises(SystemExit) as caught:
            main()
        assert caught.value.code == 1
    assert asked[0] == tmp_path and not out.parent.exists()
    text, _, values = capsys.readouterr().out.partition("{")
    assert "DOES NOT FIT" in text
    found = json.loads("{" + values)
    assert found["disk"] == {"free": 1000, "present": 0, "fits": False}
    assert found["crops"] == 48 and found["bytes"] > 1000


def test_what_is_there_already_need_not_fit_again(tmp_path: Path, image_folder: Path) -> None:
    teacher, out = tiny_teacher(tmp_path), tmp_path / "store.zarr"
    generate(teacher, image_folder, out, crops=4, batch_size=8, workers=1, teacher_check=False)
    found = plan(image_folder, teacher, out, crops=4)
    names = LabelStore.open(out).block_objects(0)
    assert found.present == sum((out / name).stat().st_size for name in names)
    with pytest.raises(StoreError, match="num_views"):
        plan(image_folder, teacher, out, crops=5)


def test_a_folder_of_bad_images_has_no_plan(tmp_path: Path, image_folder: Path) -> None:
    for path in image_folder.rglob("*.jpg"):
        path.write_bytes(b"bad")
    with pytest.raises(TeachonceError, match="none of 12 images sampled"):
        plan(image_folder, tiny_teacher(tmp_path), tmp_path / "store.zarr", crops=4)


def test_targets_are_planned_as_they_are_written(tmp_path: Path) -> None:
    folder, teacher = write_folder(tmp_path / "images", per_class=6), tiny_teacher(tmp_path)
    out, images = tmp_path / "store.zarr", scan_folder(folder)
    options = TargetOptions(features="f", feature_rank=8, feature_views=4, dense="d", heads="h",
                            head_views=3, rotations=1)  # fmt: skip
    sample = rough(CropSample(folder=images, sampler=RandomResizedCrop(), seed=0, num_views=6,
                              batch_size=8, workers=1))  # fmt: skip
    planned = plan_for_run(teacher, out, options, sample, 6)
    spec = build_spec(images, teacher, crops=6, top_k=None, seed=0, sampler=RandomResizedCrop(),
                      batch_size=8, block_images=None, targets=planned)  # fmt: skip
    found = plan_run(teacher, images, spec, out, workers=1, probe_crops=54, targets=planned)
    assert not out.exists()
    generate(teacher, folder, out, crops=6, batch_size=8, workers=1, teacher_check=False,
             targets=options)  # fmt: skip
    store = LabelStore.open(out)
    files = [path for path in out.rglob("*") if path.is_file()]
    assert found.files == len([path for path in files if not path.name.startswith(".")])
    assert found.bytes == pytest.approx(sum(path.stat().st_size for path in files), rel=0.2)
    arrays = {array.path: array for array in found.arrays}
    for path, record in store.spec.targets.items():
        shared = sum((out / name).stat().st_size for name in constant_objects(record))
        assert arrays[f"{path} (shared)"].bytes == pytest.approx(shared, rel=0.1)
        real = sum(f.stat().st_size for f in (out / path).rglob("*")
                   if f.is_file() and f.name != "zarr.json") - shared  # fmt: skip
        views = [a for a in found.arrays if a.path.startswith(f"{path}/")]
        assert {a.per for a in views} == {"view"}
        assert sum(a.bytes for a in views) == pytest.approx(real, rel=0.25)
    again = plan_for_run(teacher, out, options, sample, 6)
    assert {p.record.path: p.record for p in again} == store.spec.targets
