"""FKD archives: imported record by record, exported for FKD's own loader."""

import json
import shutil
import time
import zipfile

import numpy as np
import pytest
import torch
from archive_helpers import Evil, PublishedLoader, flat_images, saved, write_fkd
from click.testing import CliRunner
from PIL import Image

from storage.archives.errors import BadRecord
from storage.archives.fkd import FkdRecords, parse_fkd
from storage.archives.fkd_export import EXPORT_TYPES, export_fkd, fkd_paths
from storage.archives.importing import Declared, import_records
from storage.archives.report import ImportReport
from storage.archives.source import ArchiveSource
from storage.commands.archive_export import export_group
from storage.commands.archive_import import import_group
from storage.errors import StoreMismatch, TeachonceError, UsageError
from storage.images import ImageStatus, scan_folder
from storage.store import LabelStore
from storage.verify import verify

CLASSES = 20
TYPES = {"k5": "marginal_smoothing", "k10": "marginal_smoothing", "hard": "hard",
         "smoothing": "smoothing", "full": "full"}  # fmt: skip


def import_fkd(archive, images, out, label_type="marginal_smoothing", step=0.25, **options):
    """A store and its report."""
    folder = scan_folder(images)
    report = ImportReport("fkd", str(archive), str(out))
    names = tuple(f"n{i:04d}" for i in range(options.get("num_classes", CLASSES)))
    options.setdefault("num_classes", CLASSES)
    with ArchiveSource(archive) as source:
        records = FkdRecords(source, folder, report, label_type=label_type, **options)
        declared = Declared(classes=names, step=step)
        return import_records(records, folder, out, declared, report), report


def planes(store):
    return store.read_plane(0, store.spec.num_views, "fkd")


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """40 images in 4 classes."""
    return flat_images(tmp_path_factory.mktemp("fkd") / "train", 40)


def assert_equals_truth(store, truth, label_type):
    """Boxes, flips and classes exactly; probabilities within the codec's stated error."""
    table, plane = store.read_images(), planes(store)
    codec = store.spec.teachers["fkd"].codec
    from storage.codecs import TopKLabels

    for row, key in enumerate(table.key):
        box, flip, labels = truth[key]
        assert np.array_equal(plane.box[row], box), key
        assert np.array_equal(plane.flip[row], flip), key
        soft = codec.soft(TopKLabels(plane.index[row], plane.code[row], plane.tail[row]))
        labels = labels.astype(np.float64)
        if label_type == "hard":
            index, prob = labels[:, None], np.ones((len(labels), 1))
        elif label_type == "smoothing":
            index, prob = labels[:, :1], labels[:, 1:]
        elif label_type == "full":
            index = np.argsort(-labels, axis=1, kind="stable")[:, : codec.top_k]
            prob = np.take_along_axis(labels, index, 1)
        else:
            index, prob = labels[:, 0], labels[:, 1]
        assert np.array_equal(soft.index, index), key
        assert np.abs(soft.probs - prob).max() <= codec.max_error
        assert np.abs(soft.rest - (1 - prob.sum(axis=1))).max() <= codec.max_error


@pytest.mark.parametrize(
    ("label_type", "form"),
    [*((kind, "numpy") for kind in TYPES), ("k5", "tensors"), ("k10", "legacy"),
     ("hard", "legacy-tensors")],
)  # fmt: skip
def test_an_import_is_the_archive_record_by_record(images, tmp_path, label_type, form):
    truth = write_fkd(tmp_path / "fkd", images, label_type, legacy=form.startswith("legacy"),
                      tensors=form.endswith("tensors"))  # fmt: skip
    store, report = import_fkd(tmp_path / "fkd", images, tmp_path / "s.zarr", TYPES[label_type])
    assert report.problems == [] and report.labelled == len(truth) == 40
    assert report.agreement > 0.8
    assert_equals_truth(store, truth, label_type)
    found = verify(tmp_path / "s.zarr", full=True)
    assert found.problems == [] and found.sealed


@pytest.mark.long
def test_a_thousand_files_make_the_round_trip_exactly(tmp_path):
    images = flat_images(tmp_path / "train", 1000)
    truth = write_fkd(tmp_path / "fkd", images, "k10", views=8)
    start = time.monotonic()
    store, _ = import_fkd(tmp_path / "fkd", images, tmp_path / "a.zarr")
    print(f"imported 1000 files of 8 crops in {time.monotonic() - start:.1f} s")
    assert_equals_truth(store, truth, "k10")
    export_fkd(store, tmp_path / "out", label_type="marginal_smoothing_k10")
    again, _ = import_fkd(tmp_path / "out", images, tmp_path / "b.zarr")
    first, second = planes(store), planes(again)
    for name in ("box", "flip", "index", "tail"):
        assert np.array_equal(getattr(first, name), getattr(second, name)), name
    # one shift of all codes of a label is the same label: decoding scales to the kept mass
    moved = second.code.astype(int) - first.code.astype(int)
    assert (moved == moved[..., :1]).all() and np.abs(moved).max() <= 1
    export_fkd(again, tmp_path / "out2", label_type="marginal_smoothing_k10")
    for path in sorted((tmp_path / "out").rglob("*.tar")):
        one = torch.load(path, weights_only=True)
        two = torch.load(tmp_path / "out2" / path.relative_to(tmp_path / "out"), weights_only=True)
        assert all(torch.allclose(a.float(), b.float(), atol=1e-6)
                   for a, b in zip(one, two, strict=True))  # fmt: skip


def test_a_thousand_files_are_read_as_torch_reads_them(tmp_path):
    rng = np.random.default_rng(3)
    for number in range(1000):
        views, K = int(rng.integers(1, 9)), int(rng.choice([5, 10]))
        index = np.argsort(rng.random((views, CLASSES)), axis=1)[:, :K].astype("f4")
        prob = -np.sort(-rng.dirichlet(np.ones(K + 1), views)[:, :K].astype("f4"), axis=1)
        side = rng.random((views, 2)).astype("f4") * 0.5
        coords = np.concatenate([side, side * 0.5 + 0.1], axis=1).astype("f4")
        flips = rng.random(views) < 0.5
        state = [coords, flips, np.stack([index, prob], axis=1)]
        data = saved(state, _use_new_zipfile_serialization=bool(number % 2),
                     pickle_protocol=2 + number % 3)  # fmt: skip
        found = parse_fkd(data, "marginal_smoothing", CLASSES)
        assert found.coords.tobytes() == coords.tobytes() and (found.flips == flips).all()
        assert (found.index == index).all() and (found.prob == prob).all()


@pytest.mark.parametrize("label_type", EXPORT_TYPES)
def test_an_export_is_read_by_a_loader_of_the_published_layout(images, tmp_path, label_type):
    write_fkd(tmp_path / "fkd", images, "k10")
    store, _ = import_fkd(tmp_path / "fkd", images, tmp_path / "s.zarr")
    report = export_fkd(store, tmp_path / "out", label_type=label_type)
    assert report.files == 40
    loader = PublishedLoader(tmp_path / "out" / "imagenet", images)
    plane, table = planes(store), store.read_images()
    codec = store.spec.teachers["fkd"].codec
    from storage.codecs import TopKLabels
    from storage.pixels import cut_view, decode_rgb

    ours = {"full": ("marginal_smoothing", 10)}
    name, _, K = label_type.partition("_k")
    kind, kept = ours.get(label_type, (name, int(K) if K else None))
    for i, path in enumerate(loader.paths):
        row = table.key.index(path.relative_to(images).as_posix())
        soft = codec.soft(
            TopKLabels(plane.index[row], plane.code[row], plane.tail[row]), kind, kept
        )
        dense = codec.dense(soft)
        image = decode_rgb(path.read_bytes())
        for view, (pixels, (top, left, bottom, right), label) in enumerate(loader.crops(i)):
            box = plane.box[row, view]
            assert [top, left, bottom - top, right - left] == box.tolist()
            expected = cut_view(image, box, bool(plane.flip[row, view]), 8)
            assert np.array_equal(pixels, expected)
            found = loader.recover(label, name, CLASSES).numpy()
            assert np.abs(found - dense[view]).max() < 2e-6


def test_bad_files_are_listed_and_masked_and_nothing_else_is_lost(images, tmp_path):
    archive = tmp_path / "fkd"
    truth = write_fkd(archive, images)
    folder = archive / "imagenet" / "train"
    files = sorted(folder.rglob("*.tar"))
    good = torch.load(files[20], weights_only=False)
    coords, flips, labels = good
    rising, outside, twice = labels.copy(), coords.copy(), labels.copy()
    rising[:, 1] = rising[:, 1, ::-1]
    outside[0] = (0.9, 0.9, 0.5, 0.5)
    twice[:, 0, 1] = twice[:, 0, 0]
    bad = {
        "empty": b"",
        "truncated": files[1].read_bytes()[:900],
        "text": b"<html>quota exceeded</html>",
        "code": saved([Evil(tmp_path / "made"), flips, labels]),
        "two items": saved([coords, flips]),
        "rising": saved([coords, flips, rising]),
        "outside": saved([outside, flips, labels]),
        "nan": saved([coords, flips, labels * np.nan]),
        "class": saved([coords, flips, labels + np.float32(1000)]),
        "twice": saved([coords, flips, twice]),
        "few crops": saved([coords[:2], flips[:2], labels[:2]]),
        "text inside": saved([coords, flips, "labels"]),
    }
    for path, data in zip(files, bad.values(), strict=False):
        path.write_bytes(data)
    store, report = import_fkd(archive, images, tmp_path / "s.zarr")
    assert not (tmp_path / "made").exists()
    named = {where for where, _ in report.problems}
    expected = {f"{path.parent.name}/{path.stem}.png" for path in files[: len(bad)]}
    assert named == expected
    table = store.read_images()
    masked = {k for k, s in zip(table.key, table.status, strict=True) if s != ImageStatus.OK}
    assert masked == expected and report.labelled == 40 - len(bad)
    plane = planes(store)
    for row, key in enumerate(table.key):
        if key not in masked:
            assert np.array_equal(plane.box[row], truth[key][0])
    assert verify(tmp_path / "s.zarr", full=True).problems == []


def test_members_of_different_length_are_aligned_at_the_start(images, tmp_path):
    truth = write_fkd(tmp_path / "fkd", images, views=7)
    for path in (tmp_path / "fkd").rglob("*.tar"):  # M was not divisible by --num_seg
        coords, flips, labels = torch.load(path, weights_only=False)
        torch.save([coords, flips, labels[:5]], path)
    store, report = import_fkd(tmp_path / "fkd", images, tmp_path / "s.zarr")
    assert store.spec.num_views == 5
    assert report.counts["rows cut to the file's shortest member"] >= 80
    cut = {k: (box[:5], flip[:5], labels[:5]) for k, (box, flip, labels) in truth.items()}
    assert_equals_truth(store, cut, "k5")


def test_float16_archives_are_exact_on_images_of_usual_size(images, tmp_path):
    truth = write_fkd(tmp_path / "fkd", images, fp16=True)
    store, _ = import_fkd(tmp_path / "fkd", images, tmp_path / "s.zarr")
    plane, table = planes(store), store.read_images()
    for row, key in enumerate(table.key):
        assert np.array_equal(plane.box[row], truth[key][0])
    assert "float16" in store.spec.dataset["imported"]["coordinates"]
    data = saved([np.zeros((2, 4), "f2") + np.float16(0.5), [False] * 2, np.ones((2, 2, 5), "f2")])
    with pytest.raises(BadRecord, match="2048"):
        parse_fkd(data, "marginal_smoothing", 21841)


def test_coordinates_in_another_order_are_noticed(images, tmp_path):
    write_fkd(tmp_path / "fkd", images)
    for path in (tmp_path / "fkd").rglob("*.tar"):
        coords, flips, labels = torch.load(path, weights_only=False)
        torch.save([coords[:, [1, 0, 3, 2]], flips, labels], path)
    with pytest.raises(UsageError, match="order"):
        import_fkd(tmp_path / "fkd", images, tmp_path / "s.zarr")
    assert not (tmp_path / "s.zarr").exists()


def test_another_class_order_is_refused_before_anything_is_written(images, tmp_path):
    write_fkd(tmp_path / "fkd", images)
    for path in (tmp_path / "fkd").rglob("*.tar"):
        coords, flips, labels = torch.load(path, weights_only=False)
        labels[:, 0] = (labels[:, 0] + 7) % CLASSES
        torch.save([coords, flips, labels], path)
    with pytest.raises(UsageError, match="class order"):
        import_fkd(tmp_path / "fkd", images, tmp_path / "s.zarr")
    assert not (tmp_path / "s.zarr").exists()


def test_labels_and_images_are_joined_by_class_and_name(tmp_path):
    images = tmp_path / "train"
    for name in ("a.b.png", "a.c.png", "plain.PNG", "x.y.png", "alone.png"):
        (images / "n0000").mkdir(parents=True, exist_ok=True)
        Image.new("L", (30, 40)).save(images / "n0000" / name)
    write_fkd(tmp_path / "fkd", images)
    folder = tmp_path / "fkd" / "imagenet" / "train" / "n0000"
    (folder / "alone.tar").rename(folder / "nobody.tar")
    (folder / "x.tar").rename(folder / "x.y.tar")
    (folder / "readme.txt").write_text("hello")
    other = tmp_path / "fkd" / "other" / "n0000"
    other.mkdir(parents=True)
    shutil.copy(folder / "plain.tar", other)
    store, report = import_fkd(tmp_path / "fkd", images, tmp_path / "s.zarr")
    assert store.read_images().key == ["n0000/x.y.png"]
    reasons = " ".join(reason for _, reason in report.problems)
    assert "could belong to" in reasons and "neither is used" in reasons
    assert report.counts["label files without an image, left out"] == 1


def test_a_zip_is_read_in_place_and_its_tricks_are_refused(images, tmp_path):
    truth = write_fkd(tmp_path / "fkd", images)
    tricks = ("../../evil/n0000/img_00000.tar", "/etc/n0000/img_00004.tar",
              "C:/n0000/img_00008.tar", "a//n0000/img_00012.tar")  # fmt: skip
    with zipfile.ZipFile(tmp_path / "fkd.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted((tmp_path / "fkd").rglob("*.tar")):
            archive.write(path, path.relative_to(tmp_path).as_posix().replace("/", "\\"))
            last = path
        for name in tricks:
            archive.writestr(name, last.read_bytes())
        link = zipfile.ZipInfo("fkd/imagenet/train/n0001/link.tar")
        link.external_attr = 0o120777 << 16
        archive.writestr(link, "/etc/passwd")
    store, report = import_fkd(tmp_path / "fkd.zip", images, tmp_path / "s.zarr")
    assert {where for where, _ in report.problems} == {*tricks, link.filename}
    assert report.labelled == 40
    assert_equals_truth(store, truth, "k5")
    (tmp_path / "no.zip").write_bytes(b"PK but no zip")
    with pytest.raises(UsageError, match="no zip"):
        ArchiveSource(tmp_path / "no.zip")


def test_a_bomb_in_a_zip_is_not_unpacked(images, tmp_path):
    write_fkd(tmp_path / "fkd", images)
    with zipfile.ZipFile(tmp_path / "fkd.zip", "w", zipfile.ZIP_DEFLATED, compresslevel=1) as z:
        for path in sorted((tmp_path / "fkd").rglob("*.tar")):
            name = path.relative_to(tmp_path).as_posix()
            if name.endswith("img_00000.tar"):
                with z.open(name, "w") as member:
                    for _ in range(300):
                        member.write(bytes(1 << 20))
            else:
                z.write(path, name)
    _, report = import_fkd(tmp_path / "fkd.zip", images, tmp_path / "s.zarr")
    assert [where for where, _ in report.problems] == ["n0000/img_00000.png"]
    assert "unpacks to 314572800 bytes" in report.problems[0][1]


def test_links_in_a_folder_are_refused(images, tmp_path):
    write_fkd(tmp_path / "fkd", images)
    folder = tmp_path / "fkd" / "imagenet" / "train" / "n0000"
    (folder / "img_00000.tar").rename(tmp_path / "outside.tar")
    (folder / "img_00000.tar").symlink_to(tmp_path / "outside.tar")
    (folder.parent / "n0009").symlink_to(folder)
    _, report = import_fkd(tmp_path / "fkd", images, tmp_path / "s.zarr")
    assert sorted(reason for _, reason in report.problems) == ["is a link: refused"] * 2
    assert report.images == 39


def test_an_import_goes_on_after_a_kill_and_gives_the_same_bytes(images, tmp_path, monkeypatch):
    monkeypatch.setattr("storage.archives.importing.default_block_images", lambda n, m: 8)
    write_fkd(tmp_path / "fkd", images)
    whole, first = import_fkd(tmp_path / "fkd", images, tmp_path / "a.zarr")
    write, calls = LabelStore.write_block, []

    def dies(self, block, data, device):
        calls.append(block)
        if len(calls) == 3:
            raise KeyboardInterrupt
        write(self, block, data, device)

    monkeypatch.setattr(LabelStore, "write_block", dies)
    with pytest.raises(KeyboardInterrupt):
        import_fkd(tmp_path / "fkd", images, tmp_path / "b.zarr")
    monkeypatch.setattr(LabelStore, "write_block", write)
    _, second = import_fkd(tmp_path / "fkd", images, tmp_path / "b.zarr")
    assert first.root == second.root and whole.blocks == 5
    with pytest.raises(StoreMismatch, match="step"):
        import_fkd(tmp_path / "fkd", images, tmp_path / "b.zarr", step=0.1)


def test_imported_views_cannot_be_drawn_again(images, tmp_path):
    write_fkd(tmp_path / "fkd", images)
    store, _ = import_fkd(tmp_path / "fkd", images, tmp_path / "s.zarr")
    sampler = LabelStore.open(store.path).spec.sampler
    assert sampler.kind == "imported" and sampler.source == "fkd"
    with pytest.raises(UsageError, match="drawn elsewhere"):
        sampler.draw(0, b"", 10, 10, 0, 1)


def test_a_store_says_what_was_declared_and_not_verified(images, tmp_path):
    write_fkd(tmp_path / "fkd", images)
    store, _ = import_fkd(tmp_path / "fkd", images, tmp_path / "s.zarr")
    said = store.spec.dataset["imported"]
    assert {"teacher", "pixel path"} <= set(said["declared_not_verified"])
    assert store.spec.teachers["fkd"].digest == "unknown"


def test_the_exporter_refuses_names_that_the_loader_would_lose():
    assert fkd_paths(["a/b.jpg", "x/a/c.d.png"]) == ["a/b.tar", "a/c.tar"]
    for keys in (["flat.jpg"], ["a/b.1.jpg", "a/b.2.jpg"], ["a.b/c.jpg"]):
        with pytest.raises(UsageError):
            fkd_paths(keys)


def test_the_exporter_refuses_what_it_cannot_give(images, tmp_path):
    write_fkd(tmp_path / "fkd", images)
    store, _ = import_fkd(tmp_path / "fkd", images, tmp_path / "s.zarr")
    with pytest.raises(UsageError, match="needs 10"):
        export_fkd(store, tmp_path / "out", label_type="marginal_smoothing_k10")
    for options in ({"split": "../up"}, {"dataset": ""}, {"teacher": "nobody"}):
        with pytest.raises(UsageError):
            export_fkd(store, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()
    export_fkd(store, tmp_path / "out")
    with pytest.raises(UsageError, match="not empty"):
        export_fkd(store, tmp_path / "out")
    export_fkd(store, tmp_path / "out", overwrite=True)
    assert not list((tmp_path / "out").rglob(".teachonce-*"))


def test_the_commands_import_and_export(images, tmp_path):
    archive = tmp_path / "fkd"
    write_fkd(archive, images)
    next(archive.rglob("*.tar")).write_bytes(b"")
    run = CliRunner().invoke
    arguments = ["fkd", str(archive), "--out", str(tmp_path / "s.zarr"), "--data", str(images)]
    problems = tmp_path / "problems.json"
    found = run(import_group, [*arguments, "--num-classes", "20", "--report", str(problems),
                               "--teacher", "tf_efficientnet_l2_ns_475"])  # fmt: skip
    assert found.exit_code == 0, found.output
    assert "39 of 40 images" in found.output and "not checked" in found.output
    assert json.loads(problems.read_text())["problems"][0]["problem"].endswith("(0 bytes)")
    out = run(
        export_group, ["fkd", str(tmp_path / "s.zarr"), "--out", str(tmp_path / "o"), "--json"]
    )
    assert json.loads(out.output)["files"] == 39
    wrong = run(import_group, [*arguments, "--temperature", "4"])
    assert isinstance(wrong.exception, TeachonceError) and "temperature" in str(wrong.exception)
    wrong = run(import_group, [*arguments[:-1], str(archive)])
    assert isinstance(wrong.exception, UsageError)
