"""Statistics of labels equal plain float64 sums over one label after the other."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from store_helpers import fill_store, make_spec, make_teacher
from test_page import read

from labelgen.cli import main
from labelgen.stats import collect
from labelgen.stats_page import stats_page
from labelgen.stats_report import report, report_text
from storage import label_stream as label_stream_module
from storage.codecs import TopKCodec, TopKLabels
from storage.dictionary import DictionaryCodec
from storage.errors import CorruptStore, IncompleteStore, TeachonceError, UsageError
from storage.images import ImageStatus
from storage.label_stream import label_stream, row_labels
from storage.sealing import seal
from storage.store import LabelStore

CODECS = {
    "top-k": TopKCodec(num_classes=7, top_k=3),
    "all-kept": TopKCodec(num_classes=7, top_k=7),
    "one-kept": DictionaryCodec(num_classes=7, top_k=1, spread_classes=0),
    "dictionary": DictionaryCodec(num_classes=7, top_k=3, spread_classes=2),
}


@pytest.fixture(params=sorted(CODECS))
def store(request: pytest.FixtureRequest, tmp_path: Path) -> LabelStore:
    """10 images in 3 blocks, 6 views in 2 segments, image 5 masked."""
    spec = make_spec(teachers=[make_teacher(codec=CODECS[request.param])])
    return fill_store(tmp_path / "store.zarr", spec, masked=[5])


def plain(store: LabelStore, num_views: int) -> dict[str, object]:
    """Everything again, a label at a time, from the dense decoding of each."""
    images, plane = store.read_images(), store.read_plane(0, num_views, "toy")
    codec, spec = store.spec.teachers["toy"].codec, store.spec
    names, folders = spec.teachers["toy"].classes, spec.dataset["classes"]
    assert names is not None and plane.index is not None
    entropy, margin, agreed, areas = {}, {}, Counter(), []
    confused: Counter[tuple[str, str]] = Counter()
    for row in np.flatnonzero(images.status == ImageStatus.OK).tolist():
        own = names.index(folders[images.target[row]])
        margins, entropies = [], []
        for view in range(num_views):
            one = TopKLabels(plane.index[row, view], plane.code[row, view], plane.tail[row, view])
            p = codec.dense(one).astype(np.float64)
            entropies.append(-math.fsum(float(x) * math.log(x) for x in p if x > 0))
            margins.append(max(p[c] for c in range(7) if c != own) - p[own])
            first = int(plane.index[row, view, 0])
            agreed[row] += first == own
            if first != own:
                confused[folders[images.target[row]], names[first]] += 1
            height, width = plane.box[row, view, 2:].tolist()
            areas.append(height * width / float(np.prod(images.size[row].astype(np.int64))))
        entropy[row], margin[row] = np.mean(entropies), np.mean(margins)
    return {"entropy": entropy, "margin": margin, "agreed": agreed, "confused": confused,
            "areas": areas, "flips": plane.flip[images.status == 0]}  # fmt: skip


@pytest.mark.parametrize("num_views", [6, 3])
def test_all_numbers_equal_an_independent_recomputation(store: LabelStore, num_views: int) -> None:
    want = plain(store, num_views)
    found = report(collect(store, "toy", num_views), listed=50)
    labels = 9 * num_views
    assert found["labels"] == labels and found["views"] == num_views
    assert found["mean"]["entropy_nats"] == pytest.approx(
        np.mean(list(want["entropy"].values())), abs=2e-6
    )
    assert found["mean"]["flipped"] == pytest.approx(want["flips"].mean(), abs=1e-6)
    keys = store.read_images().key
    hardest = {entry["key"]: entry["entropy_nats"] for entry in found["hardest"]}
    assert hardest == pytest.approx({keys[r]: e for r, e in want["entropy"].items()}, abs=2e-6)
    assert list(hardest.values()) == sorted(hardest.values(), reverse=True)
    agreement = found["agreement"]
    assert agreement["compared"] == labels
    assert agreement["top1"] == pytest.approx(sum(want["agreed"].values()) / labels, abs=1e-6)
    pairs = {(pair["class"], pair["taken_for"]): pair["labels"] for pair in agreement["confused"]}
    assert pairs == dict(want["confused"])
    suspects = {entry["key"]: entry["margin"] for entry in agreement["mislabelled"]["images"]}
    positive = {keys[r]: m for r, m in want["margin"].items() if m > 0}
    assert suspects == pytest.approx(positive, abs=2e-6)
    assert agreement["mislabelled"]["confident"] == sum(m >= 0.5 for m in positive.values())
    counts = found["histograms"]["crop_area"]["counts"]
    assert counts == np.histogram(want["areas"], np.linspace(0, 1, 21))[0].tolist()
    for histogram in found["histograms"].values():
        assert sum(histogram["counts"]) == labels


def test_numbers_are_those_that_sealing_measures(store: LabelStore) -> None:
    seal(store)
    measured = LabelStore.open(store.path).spec.teachers["toy"].measured
    found = report(collect(store, "toy"), listed=5)
    assert found["labels"] == measured["labels"]
    assert found["agreement"]["top1"] == measured["top1_agreement"]
    assert found["mean"]["entropy_nats"] == measured["mean_entropy_nats"]
    assert found["mean"]["tail_mass"] == measured["mean_tail"]
    assert found["mean"]["top1_probability"] == measured["mean_top1_prob"]


def test_numbers_do_not_depend_on_how_labels_are_cut_into_parts(
    store: LabelStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = report(collect(store, "toy"), listed=50)
    monkeypatch.setattr(label_stream_module, "PART_LABELS", 1)
    assert max(part.labels.tail.size for part in label_stream(store, "toy")) <= 4
    assert report(collect(store, "toy"), listed=50) == whole


def test_the_stream_gives_every_readable_label_once(store: LabelStore) -> None:
    plane = store.read_plane(0, 6, "toy")
    seen = np.zeros((10, 6), int)
    for part in label_stream(store, "toy"):
        views = slice(part.first_view, part.first_view + part.box.shape[1])
        seen[part.row, views] += 1
        assert (part.box == plane.box[part.row, views]).all()
        assert (part.labels.index == plane.index[part.row, views]).all()
        assert (part.labels.tail == plane.tail[part.row, views]).all()
    assert (seen == (store.read_status() == ImageStatus.OK)[:, None]).all()
    views, labels = row_labels(store, "toy", 7, 3)
    assert (views.box == plane.box[7, :3]).all() and (views.flip == plane.flip[7, :3]).all()
    assert (labels.index == plane.index[7, :3]).all() and (labels.code == plane.code[7, :3]).all()


def test_an_image_in_the_wrong_folder_is_first_and_its_class_is_named(tmp_path: Path) -> None:
    """Labels that are sure of the folder's class, but for image 4 (a bee) which they call a cat."""
    from store_helpers import make_block

    spec = make_spec(teachers=[make_teacher(top_k=3)])
    store = LabelStore.create(tmp_path / "store.zarr", spec)
    names = spec.teachers["toy"].classes
    assert names is not None
    for block in range(store.blocks):
        data = make_block(spec, block)
        logs = np.full((len(data.key), 6, 7), math.log(0.02))
        for i, row in enumerate(spec.block_rows(block)):
            said = "cat" if row == 4 else spec.dataset["classes"][row % 3]
            logs[i, :, names.index(said)] = math.log(0.88)
        labels = spec.teachers["toy"].codec.encode(logs)
        store.write_block(block, type(data)(**{**vars(data), "labels": {"toy": labels}}), "cpu")
    found = report(collect(store, "toy"), listed=5)["agreement"]
    assert found["top1"] == pytest.approx(0.9)
    assert found["mislabelled"]["confident"] == 1
    (suspect,) = found["mislabelled"]["images"]
    assert (suspect["key"], suspect["class"], suspect["taken_for"]) == (
        "bee/0004.jpg",
        "bee",
        "cat",
    )
    assert suspect["margin"] == pytest.approx(0.86, abs=0.05) and suspect["agreement"] == 0
    assert found["classes"][0]["class"] == "bee"


def test_masked_images_are_listed_and_counted(store: LabelStore) -> None:
    found = report(collect(store, "toy"), listed=5)
    assert found["masked"] == {
        "count": 1, "images": [{"key": "cat/0005.jpg", "status": "unreadable"}]
    }  # fmt: skip
    assert "1 masked" in report_text(found)


def test_without_common_class_names_only_agreement_is_left_out(tmp_path: Path) -> None:
    spec = make_spec(teachers=[make_teacher(classes=None, class_order_hash=None)])
    collected = collect(fill_store(tmp_path / "store.zarr", spec), "toy")
    found = report(collected, listed=5)
    assert found["agreement"] is None and len(found["hardest"]) == 5
    assert "not the teacher's by name" in report_text(found)
    assert "compared with them" in read(stats_page(collected, found)).words


def test_the_page_is_well_formed_and_escapes_keys_and_classes(tmp_path: Path) -> None:
    keys = [f"<i>{row}&\u202e/{row:04d}.jpg" for row in range(10)]
    classes = ("dog", "cat", "bee", "elk", "ant", "fox", "<script>x</script>")
    spec = make_spec(teachers=[make_teacher(classes=classes)])
    collected = collect(fill_store(tmp_path / "s.zarr", spec, masked=[1], keys=keys), "toy")
    found = report(collected, listed=20)
    reader = read(stats_page(collected, found))
    tags = {tag for tag, _ in reader.tags}
    assert "svg" in tags and not tags & {"script", "i"}
    assert "<i>3&\\u202e/0003.jpg" in reader.words and "<script>x</script>" in reader.words


def test_a_store_without_labels_or_blocks_is_refused(tmp_path: Path) -> None:
    empty = LabelStore.create(tmp_path / "empty.zarr", make_spec())
    with pytest.raises(IncompleteStore):
        collect(empty, "toy")
    masked = fill_store(tmp_path / "masked.zarr", masked=range(10))
    with pytest.raises(TeachonceError, match="nothing to count"):
        collect(masked, "toy")
    with pytest.raises(UsageError, match="no labels of teacher 'other'"):
        list(label_stream(masked, "other"))


def test_a_readable_image_without_labels_is_damage(tmp_path: Path) -> None:
    good, bad = fill_store(tmp_path / "a.zarr"), fill_store(tmp_path / "b.zarr", masked=[0])
    name = next(n for n in good.block_objects(0) if n.startswith("labels/toy/tail"))
    (good.path / name).write_bytes((bad.path / name).read_bytes())
    with pytest.raises(CorruptStore, match="image 0 counts as labelled but has no labels"):
        collect(LabelStore.open(good.path), "toy")


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> object:
    monkeypatch.setattr(sys, "argv", ["labelgen", "stats", *arguments])
    with pytest.raises(SystemExit) as caught:
        main()
    return caught.value.code


def test_the_command_writes_a_page_once_and_prints_json(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    labels, page = str(fill_store(tmp_path / "store.zarr").path), tmp_path / "stats.html"
    assert run(monkeypatch, "--labels", labels, "--html", str(page), "--json") == 0
    assert json.loads(capsys.readouterr().out)["labels"] == 60
    assert page.read_text().startswith("<!DOCTYPE html>")
    assert run(monkeypatch, "--labels", labels, "--html", str(page)) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert run(monkeypatch, "--labels", labels, "--teacher", "nobody") == 2
    assert run(monkeypatch, "--labels", str(tmp_path)) == 1


def test_looking_at_a_store_loads_no_torch(tmp_path: Path) -> None:
    labels = fill_store(tmp_path / "store.zarr").path
    code = (
        "import sys; from labelgen.commands.stats import stats\n"
        "stats.main(sys.argv[1:], standalone_mode=False)\n"
        "import labelgen.preview.page, labelgen.preview.sheet\n"
        "sys.exit(bool({'torch', 'timm'} & set(sys.modules)))"
    )
    page = str(tmp_path / "page.html")
    command = [sys.executable, "-c", code, "--labels", str(labels), "--html", page]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
