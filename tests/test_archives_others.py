"""ReLabel, ml-dr, TinyViT and SRe2L archives: what has an equal is exact, the rest is refused."""

import math

import numpy as np
import pytest
import torch
from archive_helpers import Evil, flat_images, image_size, random_crops, saved, teacher_probs
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.ops import roi_align as torch_roi_align

from storage.archives.errors import BadRecord
from storage.archives.importing import Declared, import_records
from storage.archives.mldr import MldrRecords
from storage.archives.relabel import RelabelRecords, dense_map, parse_relabel, roi_align
from storage.archives.report import ImportReport
from storage.archives.source import ArchiveSource
from storage.archives.sre2l import Sre2lRecords, parse_batch, sampler_orders, torch_randperm
from storage.archives.tinyvit import TinyVitRecords, record_bytes, replay_crop_flip
from storage.codecs import TopKLabels
from storage.commands.archive_import import import_group
from storage.errors import TeachonceError, UsageError
from storage.images import scan_folder
from storage.verify import verify

CLASSES = 12
NAMES = tuple(f"n{i:04d}" for i in range(CLASSES))


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """23 images in 4 classes: batches of 5 leave a short one."""
    return flat_images(tmp_path_factory.mktemp("others") / "train", 23)


def run_import(name, make, archive, images, out):
    report = ImportReport(name, str(archive), str(out))
    folder = scan_folder(images)
    with ArchiveSource(archive) as source:
        records = make(source, folder, report)
        store = import_records(records, folder, out, Declared(classes=NAMES), report)
    assert verify(out, full=True).problems == []
    return store, report


def decoded(store, name):
    """box, flip and soft labels of all images."""
    plane = store.read_plane(0, store.spec.num_views, name)
    codec = store.spec.teachers[name].codec
    return plane.box, plane.flip, codec.soft(TopKLabels(plane.index, plane.code, plane.tail)), codec


# ReLabel ----------------------------------------------------------------------------------------


def label_map(rng, target, side=15):
    """[2, 5, side, side]: at every place five scores and their classes, the target among them."""
    logits = rng.normal(0, 2, (CLASSES, side, side)).astype("f4")
    logits[target % CLASSES] += 5
    classes = np.argsort(-logits, axis=0)[:5]
    return torch.from_numpy(np.stack([np.take_along_axis(logits, classes, 0), classes]))


def write_relabel(root, images):
    truth = {}
    folder = scan_folder(images)
    for row, key in enumerate(folder.keys):
        path = (root / key).with_suffix(".pt")
        path.parent.mkdir(parents=True, exist_ok=True)
        truth[key] = label_map(np.random.default_rng([5, row]), folder.targets[row])
        torch.save(truth[key], path, _use_new_zipfile_serialization=bool(row % 2))
    return truth


@settings(max_examples=60)
@given(st.integers(0, 2**32), st.integers(1, 20), st.integers(1, 20))
def test_roi_align_is_torchvisions(seed, height, width):
    rng = np.random.default_rng(seed)
    field = rng.normal(size=(3, height, width))
    corner = rng.uniform(-1.5, [width, height], (8, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(0, 12, (8, 2))], axis=1)
    expected = torch_roi_align(
        torch.from_numpy(field)[None], [torch.from_numpy(boxes)], output_size=(1, 1)
    )[:, :, 0, 0]
    assert np.abs(roi_align(field, boxes) - expected.numpy()).max() < 1e-9


@pytest.mark.parametrize("axes", ["published", "natural"])
def test_relabel_maps_are_pooled_over_our_views_as_its_trainer_does(images, tmp_path, axes):
    truth = write_relabel(tmp_path / "maps", images)

    def make(source, folder, report):
        return RelabelRecords(source, folder, report, num_classes=CLASSES, num_views=6, top_k=4,
                              axes=axes, seed=3)  # fmt: skip

    store, _ = run_import("relabel", make, tmp_path / "maps", images, tmp_path / "s.zarr")
    box, flip, soft, codec = decoded(store, "relabel")
    table = store.read_images()
    for row, key in enumerate(table.key):
        height, width = (int(v) for v in table.size[row])
        views = store.spec.sampler.draw(3, table.digest[row].tobytes(), height, width, 0, 6)
        assert (views.box == box[row]).all() and (views.flip == flip[row]).all()
        # their trainer: coordinates (i/H, j/W, h/H, w/W), corners, scattered map, pool, softmax
        coords = torch.tensor(box[row].astype(float) / [height, width, height, width])
        coords[:, 2:] += coords[:, :2]
        if axes == "natural":
            coords = coords[:, [1, 0, 3, 2]]
        field = torch.zeros(1, CLASSES, 15, 15, dtype=torch.double)
        field[0].scatter_(0, truth[key][1].long(), truth[key][0].double())
        pooled = torch_roi_align(field, [coords * 15 - 0.5], output_size=(1, 1))[:, :, 0, 0]
        prob = torch.softmax(pooled, 1).numpy()
        order = np.argsort(-prob, axis=1, kind="stable")[:, :4]
        assert (soft.index[row] == order).all()
        assert np.abs(soft.probs[row] - np.take_along_axis(prob, order, 1)).max() < codec.max_error
    assert "not answers of a teacher" in store.spec.dataset["imported"]["labels"]


def test_a_thousand_label_maps_are_read_exactly():
    for number in range(1000):
        value = label_map(np.random.default_rng(number), number, side=1 + number % 15)
        data = saved(value, _use_new_zipfile_serialization=bool(number % 2))
        scores, classes = parse_relabel(data, CLASSES)
        assert (scores == value[0].numpy()).all() and (classes == value[1].numpy()).all()
        again = dense_map(scores, classes, CLASSES)
        assert (np.take_along_axis(again, classes, 0) == value[0].numpy()).all()


def test_bad_label_maps_are_refused(tmp_path):
    good = label_map(np.random.default_rng(0), 0)
    nan, far, huge = good.clone(), good.clone(), torch.zeros(2, 5, 300, 300)
    nan[0, 0, 0, 0], far[1, 0, 0, 0] = math.nan, CLASSES
    for value in (nan, far, huge, good[0], good[:, :, :0], "text", [good, good],
                  Evil(tmp_path / "made")):  # fmt: skip
        with pytest.raises(BadRecord):
            parse_relabel(saved(value), CLASSES)
    assert not (tmp_path / "made").exists()


# ml-dr ------------------------------------------------------------------------------------------

CROP_FLIP = {"uint8": {"enable": True}, "random_resized_crop": {"enable": True, "size": 224},
             "random_horizontal_flip": {"p": 0.5}, "to_tensor": {},
             "normalize": {"mean": [0.5], "std": [0.5]}}  # fmt: skip


def write_mldr(root, images, compress=True, augmentation=CROP_FLIP, samples=5, K=4):
    truth = []
    folder = scan_folder(images)
    root.mkdir()
    config = {"reinforce": {"num_samples": samples, "image_augmentation": augmentation}}
    torch.save(config, root / "config.pth.tar")
    for row in range(len(folder)):
        rng = np.random.default_rng([6, row])
        width, height = image_size(folder.path(row))
        box = random_crops(rng, samples, height, width).tolist()
        flip = (rng.random(samples) < 0.5).tolist()
        prob = teacher_probs(rng, samples, CLASSES, folder.targets[row]).numpy()
        records = []
        for v in range(samples):
            ids = np.argpartition(prob[v], -K)[-K:]
            params = [tuple(box[v]), flip[v]] if compress else {
                "uint8": ((), ()), "to_tensor": ((), ()), "normalize": ((), ()),
                "random_resized_crop": (tuple(box[v]), (0, 0, 5, 5)),
                "random_horizontal_flip": (flip[v], True),
            }  # fmt: skip
            records.append({"params": params, "prob": (prob[v][ids].tolist(), ids.tolist())})
        torch.save((row, records), root / f"{row}.pth.tar", pickle_protocol=4)
        truth.append((box, flip, prob))
    return truth


def make_mldr(source, folder, report):
    return MldrRecords(source, folder, report, num_classes=CLASSES)


@pytest.mark.parametrize("compress", [True, False])
def test_mldr_crops_and_flips_are_imported_exactly(images, tmp_path, compress):
    truth = write_mldr(tmp_path / "dr", images, compress)
    store, report = run_import("mldr", make_mldr, tmp_path / "dr", images, tmp_path / "s.zarr")
    assert report.problems == []
    box, flip, soft, codec = decoded(store, "mldr")
    for row, (boxes, flips, prob) in enumerate(truth):
        assert (box[row] == boxes).all() and (flip[row] == flips).all()
        order = np.argsort(-prob, axis=1, kind="stable")[:, :4]
        assert (soft.index[row] == order).all()
        assert np.abs(soft.probs[row] - np.take_along_axis(prob, order, 1)).max() < codec.max_error


@pytest.mark.parametrize("extra", ["rand_augment", "random_erase", "mixup", "cutmix", "resize",
                                   "center_crop", "random_crop"])  # fmt: skip
def test_mldr_augmentations_without_an_equal_are_refused(images, tmp_path, extra):
    write_mldr(tmp_path / "dr", images, augmentation={**CROP_FLIP, extra: {"enable": True}})
    with pytest.raises(UsageError, match=extra):
        run_import("mldr", make_mldr, tmp_path / "dr", images, tmp_path / "s.zarr")
    assert not (tmp_path / "s.zarr").exists()


def test_mldr_needs_exactly_the_images_that_it_counted(images, tmp_path):
    write_mldr(tmp_path / "dr", images)
    (tmp_path / "dr" / "22.pth.tar").unlink()
    with pytest.raises(UsageError, match="22 images"):
        run_import("mldr", make_mldr, tmp_path / "dr", images, tmp_path / "s.zarr")


def test_mldr_files_that_lie_are_masked(images, tmp_path):
    write_mldr(tmp_path / "dr", images)
    good = torch.load(tmp_path / "dr" / "1.pth.tar", weights_only=False)[1]
    far = [{**s, "params": [(0, 0, 9999, 1), False]} for s in good]
    mixed = [{**s, "params": {"mixup": 0.5}} for s in good]
    twice = [{**s, "prob": ([0.1] * 4, [1] * 4)} for s in good]
    bad = {1: (2, good), 3: (3, far), 4: (4, mixed), 5: (5, Evil(tmp_path / "made")), 6: (6, []),
           7: (7, good[:2]), 8: (8, twice), 9: 9}  # fmt: skip
    for row, value in bad.items():
        torch.save(value, tmp_path / "dr" / f"{row}.pth.tar", pickle_protocol=4)
    store, report = run_import("mldr", make_mldr, tmp_path / "dr", images, tmp_path / "s.zarr")
    assert not (tmp_path / "made").exists()
    assert np.flatnonzero(store.read_status()).tolist() == sorted(bad)
    assert len(report.problems) == len(bad)


def test_a_thousand_mldr_files_are_read_exactly(tmp_path):
    images = flat_images(tmp_path / "train", 1000)
    truth = write_mldr(tmp_path / "dr", images, samples=2)
    folder, report = scan_folder(images), ImportReport("mldr", "", "")
    from storage.archives.importing import source_image

    with ArchiveSource(tmp_path / "dr") as source:
        records = make_mldr(source, folder, report)
        for row, (box, flip, prob) in enumerate(truth):
            found = records.labels(source_image(folder, row))
            assert found.box.tolist() == box and found.flip.astype(bool).tolist() == flip
            assert (found.prob == np.take_along_axis(prob, found.index, 1)).all()
            assert (found.index == np.argsort(-prob, axis=1, kind="stable")[:, :4]).all()


# TinyViT ----------------------------------------------------------------------------------------


def fork_of_timm(seed, height, width, scale=(0.08, 1.0), ratio=(3 / 4, 4 / 3)):
    """Crop and flip by numpy's own Generator, as TinyViT's augmentation draws them."""
    rng = np.random.Generator(np.random.PCG64(seed=seed))

    def uniform(a, b):
        return rng.random() * (b - a) + a

    for _ in range(10):
        area = uniform(*scale) * (width * height)
        aspect = math.exp(uniform(math.log(ratio[0]), math.log(ratio[1])))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if w <= width and h <= height:
            top = min(int(rng.random() * (height - h + 1)), height - h)
            left = min(int(rng.random() * (width - w + 1)), width - w)
            return top, left, h, w, bool(rng.random() < 0.5)
    w, h = width, height
    if width / height < ratio[0]:
        h = round(width / ratio[0])
    elif width / height > ratio[1]:
        w = round(height * ratio[1])
    return (height - h) // 2, (width - w) // 2, h, w, bool(rng.random() < 0.5)


@settings(max_examples=300)
@given(st.integers(0, 2**31 - 1), st.integers(8, 3000), st.integers(8, 3000))
def test_tinyvit_seeds_give_the_crop_that_numpy_draws(seed, height, width):
    found = replay_crop_flip(seed, height, width, (0.08, 1.0), (3 / 4, 4 / 3), 0.5)
    assert found == fork_of_timm(seed, height, width)


def test_the_draw_of_a_seed_never_changes():
    words = np.random.PCG64(12345).random_raw(2).tolist()
    assert words == [4193609425186963869, 5843160025838961886]
    found = replay_crop_flip(12345, 375, 500, (0.08, 1.0), (3 / 4, 4 / 3), 0.5)
    assert found == (104, 189, 245, 221, True)


def write_tinyvit(root, images, epochs=3, K=5, ranks=2, by_number=False):
    truth = {}
    folder = scan_folder(images)
    for epoch in range(epochs):
        out = root / f"logits_top{K}_epoch{epoch}"
        out.mkdir(parents=True)
        files = [([], []) for _ in range(ranks)]
        for row, key in enumerate(folder.keys):
            rng = np.random.default_rng([7, epoch, row])
            prob = teacher_probs(rng, 1, CLASSES, folder.targets[row])[0].numpy()
            index = np.argsort(-prob, kind="stable")[:K]
            seed = int(rng.integers(0, 2**31))
            keys, values = files[row % ranks]
            keys.append(str(row) if by_number else key)
            values.append(record_bytes(seed, index, prob[index]))
            truth[epoch, row] = (seed, index, prob[index].astype("f2"))
        for rank, (keys, values) in enumerate(files):
            (out / f"rank{rank}-keys.txt").write_text("".join(f"{key}\n" for key in keys))
            (out / f"rank{rank}-values.bin").write_bytes(b"".join(values))
    return truth


def make_tinyvit(source, folder, report):
    return TinyVitRecords(source, folder, report, augmentation="crop-flip", num_classes=CLASSES)


@pytest.mark.parametrize("by_number", [False, True])
def test_tinyvit_epochs_become_views(images, tmp_path, by_number):
    truth = write_tinyvit(tmp_path / "tv", images, by_number=by_number)
    store, _ = run_import("tinyvit", make_tinyvit, tmp_path / "tv", images, tmp_path / "s.zarr")
    box, flip, soft, codec = decoded(store, "tinyvit")
    sizes = store.read_images().size
    for (epoch, row), (seed, index, prob) in truth.items():
        *expected, mirrored = fork_of_timm(seed, *(int(v) for v in sizes[row]))
        assert box[row, epoch].tolist() == expected and flip[row, epoch] == mirrored
        order = np.lexsort((index, -prob.astype(float)))
        assert (soft.index[row, epoch] == index[order]).all()
        assert np.abs(soft.probs[row, epoch] - prob[order]).max() < codec.max_error


def test_a_thousand_tinyvit_records_are_read_exactly(tmp_path):
    images = flat_images(tmp_path / "train", 1000)
    truth = write_tinyvit(tmp_path / "tv", images, epochs=1)
    folder, report = scan_folder(images), ImportReport("tinyvit", "", "")
    from storage.archives.importing import source_image

    with ArchiveSource(tmp_path / "tv") as source:
        records = make_tinyvit(source, folder, report)
        for row in records.rows:
            image = source_image(folder, row)
            found = records.labels(image)
            seed, index, prob = truth[0, row]
            order = np.lexsort((index, -prob.astype(float)))
            assert (found.index[0] == index[order]).all() and (found.prob[0] == prob[order]).all()
            assert (*found.box[0], bool(found.flip[0])) == fork_of_timm(
                seed, image.height, image.width
            )


def test_tinyvit_views_of_unknown_pixels_are_refused(images, tmp_path):
    write_tinyvit(tmp_path / "tv", images)
    found = CliRunner().invoke(import_group, ["tinyvit", str(tmp_path / "tv"), "--out",
                               str(tmp_path / "s.zarr"), "--data", str(images)])  # fmt: skip
    assert isinstance(found.exception, UsageError)
    assert "--augmentation crop-flip" in str(found.exception)


def test_damaged_tinyvit_packages_are_reported(images, tmp_path):
    write_tinyvit(tmp_path / "tv", images)
    path = tmp_path / "tv" / "logits_top5_epoch1" / "rank0-values.bin"
    path.write_bytes(path.read_bytes()[:-1])
    store, report = run_import("tinyvit", make_tinyvit, tmp_path / "tv", images, tmp_path / "s")
    assert np.flatnonzero(store.read_status()).tolist() == list(range(0, 23, 2))
    assert "expected 24 each" in report.problems[0][1]


def test_hostile_tinyvit_keys_and_seeds_reach_nothing(images, tmp_path):
    write_tinyvit(tmp_path / "tv", images, epochs=1, ranks=1)
    folder = tmp_path / "tv" / "logits_top5_epoch0"
    keys = (folder / "rank0-keys.txt").read_text().split()
    values = (folder / "rank0-values.bin").read_bytes()
    keys[3], keys[4] = "../../../etc/passwd", "/" + keys[4]
    (folder / "rank0-keys.txt").write_text("\n".join(keys))
    negative = record_bytes(-5, [0] * 5, [0.2] * 5)
    (folder / "rank0-values.bin").write_bytes(negative + values[24:])
    store, report = run_import("tinyvit", make_tinyvit, tmp_path / "tv", images, tmp_path / "s")
    assert store.spec.num_images == 21
    assert report.counts["records without an image, left out"] == 2
    assert [what for _, what in report.problems] == ["label a negative seed"]


# SRe2L ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 2, 7, 100, 5003])
@pytest.mark.parametrize("seed", [0, 42, 2**32 - 1])
def test_the_order_is_that_of_torchs_sampler(seed, count):
    generator = torch.Generator()
    generator.manual_seed(seed)
    twister = np.random.MT19937()
    twister._legacy_seeding(seed)
    assert torch_randperm(twister, count).tolist() == torch.randperm(
        count, generator=generator
    ).tolist()  # fmt: skip
    generator.manual_seed(seed)
    sampler = torch.utils.data.RandomSampler(range(count), generator=generator)
    expected = [list(sampler) for _ in range(4)]
    assert [order.tolist() for order in sampler_orders(seed, count, 4)] == expected


def write_sre2l(root, images, epochs=3, batch=5, mixed=(), seed=42):
    """As its generator does: a DataLoader with a RandomSampler, one file a batch."""
    folder, truth = scan_folder(images), {}
    generator = torch.Generator()
    generator.manual_seed(seed)
    sampler = torch.utils.data.RandomSampler(range(len(folder)), generator=generator)
    loader = torch.utils.data.DataLoader(range(len(folder)), batch_size=batch, sampler=sampler)
    for epoch in range(epochs):
        out = root / f"epoch_{epoch}"
        out.mkdir(parents=True)
        for number, rows in enumerate(loader):
            coords, flips, logits = [], [], []
            for row in rows.tolist():
                rng = np.random.default_rng([8, epoch, row])
                width, height = image_size(folder.path(row))
                box = random_crops(rng, 1, height, width)[0]
                flip = bool(rng.random() < 0.5)
                scores = rng.normal(0, 1, CLASSES).astype("f2")
                scores[folder.targets[row]] += 4
                t, x, h, w = box.tolist()
                coords.append(torch.FloatTensor((t / height, x / width, h / height, w / width)))
                flips.append(flip)
                logits.append(torch.from_numpy(scores))
                truth[epoch, row] = (box, flip, scores)
            mix = [torch.randperm(len(rows)), 0.3, [1, 2, 3, 4]] if (
                epoch, number) in mixed else [None] * 3  # fmt: skip
            config = [torch.stack(coords), torch.tensor(flips), *mix, torch.stack(logits)]
            torch.save(config, out / f"batch_{number}.tar")
    return truth


def make_sre2l(source, folder, report):
    return Sre2lRecords(source, folder, report, top_k=4)


def test_sre2l_rows_find_their_images(images, tmp_path):
    truth = write_sre2l(tmp_path / "sre", images)
    store, report = run_import("sre2l", make_sre2l, tmp_path / "sre", images, tmp_path / "s.zarr")
    assert report.problems == []
    box, flip, soft, codec = decoded(store, "sre2l")
    for (epoch, row), (expected, mirrored, logits) in truth.items():
        assert box[row, epoch].tolist() == expected.tolist() and flip[row, epoch] == mirrored
        prob = torch.softmax(torch.from_numpy(logits).double(), 0).numpy()
        order = np.argsort(-prob, kind="stable")[:4]
        assert (soft.index[row, epoch] == order).all()
        assert np.abs(soft.probs[row, epoch] - prob[order]).max() < codec.max_error


def test_an_sre2l_order_of_another_seed_is_noticed(images, tmp_path):
    write_sre2l(tmp_path / "sre", images, seed=7)
    with pytest.raises(UsageError, match="class order or other images"):
        run_import("sre2l", make_sre2l, tmp_path / "sre", images, tmp_path / "s.zarr")
    assert not (tmp_path / "s.zarr").exists()


def test_mixed_sre2l_batches_are_refused_or_reported(images, tmp_path):
    write_sre2l(tmp_path / "first", images, mixed={(0, 0)})
    with pytest.raises(UsageError, match="mixed batch"):
        run_import("sre2l", make_sre2l, tmp_path / "first", images, tmp_path / "s.zarr")
    write_sre2l(tmp_path / "some", images, mixed={(1, 2)})
    store, report = run_import("sre2l", make_sre2l, tmp_path / "some", images, tmp_path / "s.zarr")
    assert np.count_nonzero(store.read_status()) == 5
    assert any("mixed" in what for _, what in report.problems)


def test_sre2l_archives_that_lack_batches_are_refused(images, tmp_path):
    write_sre2l(tmp_path / "sre", images)
    (tmp_path / "sre" / "epoch_1" / "batch_2.tar").unlink()
    with pytest.raises(UsageError, match="lacks batches"):
        run_import("sre2l", make_sre2l, tmp_path / "sre", images, tmp_path / "s.zarr")


def test_a_thousand_sre2l_batches_are_read_exactly():
    for number in range(1000):
        rng = np.random.default_rng([9, number])
        parts = [
            torch.from_numpy(rng.random((3, 4), np.float32)),
            torch.from_numpy(rng.random(3) < 0.5),
            torch.from_numpy(rng.normal(size=(3, 6)).astype("f2" if number % 2 else "f4")),
        ]
        coords, flips, logits = parse_batch(saved([*parts[:2], None, None, None, parts[2]]))
        for found, part in zip((coords, flips, logits), parts, strict=True):
            assert found.dtype == part.numpy().dtype and (found == part.numpy()).all()


def test_a_malicious_sre2l_batch_is_not_run(tmp_path):
    with pytest.raises(BadRecord, match="refused"):
        parse_batch(saved([Evil(tmp_path / "made"), None, None, None, None, None]))
    assert not (tmp_path / "made").exists()


# All --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "write", "options"),
    [("relabel", write_relabel, ["--num-classes", "12", "--crops", "3", "--top-k", "4"]),
     ("mldr", write_mldr, ["--num-classes", "12"]),
     ("tinyvit", write_tinyvit, ["--num-classes", "12", "--augmentation", "crop-flip"]),
     ("sre2l", write_sre2l, ["--top-k", "3"])],
)  # fmt: skip
def test_each_has_a_command(images, tmp_path, name, write, options):
    write(tmp_path / "archive", images)
    out = tmp_path / "s.zarr"
    arguments = [name, str(tmp_path / "archive"), "--out", str(out), "--data", str(images)]
    found = CliRunner().invoke(import_group, [*arguments, *options])
    assert found.exit_code == 0, (found.output, found.exception)
    assert "23 of 23 images" in found.output
    assert verify(out, full=True).problems == []


@pytest.mark.parametrize("name", ["fkd", "relabel", "mldr", "tinyvit", "sre2l"])
def test_an_empty_archive_is_a_clear_error(images, tmp_path, name):
    (tmp_path / "empty").mkdir()
    found = CliRunner().invoke(import_group, [
        name, str(tmp_path / "empty"), "--out", str(tmp_path / "s"), "--data", str(images),
        *(["--augmentation", "crop-flip"] if name == "tinyvit" else []),
    ])  # fmt: skip
    assert isinstance(found.exception, TeachonceError), found.exception
    assert not (tmp_path / "s").exists()
