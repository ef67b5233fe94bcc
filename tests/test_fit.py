"""`trainer fit`: learns, repeats itself, resumes to the bit, joins by content."""

import dataclasses
import shutil

import numpy as np
import pytest
import torch
from conftest import write_folder
from safetensors.torch import load_file
from training import make_store, request, stopped_after

from storage import LabelStore
from storage.codecs import TopKLabels
from storage.errors import (
    CorruptStore,
    IncompleteStore,
    StoreMismatch,
    TrainingError,
    UsageError,
)
from storage.pixels import cut_view, decode_rgb
from trainer import fit, models
from trainer.metrics import read_metrics


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """24 images in 3 classes and the store that a tiny teacher made of them."""
    root = tmp_path_factory.mktemp("fit")
    folder = write_folder(root / "images", classes=3, per_class=8)
    make_store(folder, root / "store.zarr")
    return root


def copy_of(world, tmp_path):
    """A copy of the store that a test may spoil (its beton is made anew beside it)."""
    store = tmp_path / "store.zarr"
    shutil.copytree(world / "store.zarr", store)
    return store


def weights(result):
    return load_file(result.out / "student.safetensors")


def assert_equal_weights(first, second):
    a, b = weights(first), weights(second)
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_a_student_learns_from_the_store_alone(world, tmp_path):
    result = fit(request(tmp_path / "run", labels=world / "store.zarr", epochs=12))
    losses = [
        line["loss"]
        for line in read_metrics(tmp_path / "run" / "metrics.jsonl")
        if line["kind"] == "train"
    ]
    assert losses[-1] < 0.8 * losses[0]
    assert result.steps == 12 * (24 // 4)
    assert (tmp_path / "run" / "curves.png").stat().st_size > 1000


def test_ffcv_and_the_plain_loader_train_the_same_student_to_the_bit(world, tmp_path, monkeypatch):
    """In quasi-random order over many pages, and with crops of two sizes."""
    monkeypatch.setattr("trainer.replay.pages.PAGE_BYTES", 4096)
    common = {"labels": world / "store.zarr", "settings": {
        "order.kind": "quasi-random", "order.memory_mib": 8, "resolution.start": 16,
        "resolution.step": 8}}  # fmt: skip
    plain = fit(request(tmp_path / "plain", **common))
    ffcv = fit(request(tmp_path / "ffcv", loader="ffcv", workers=2, **common))
    assert_equal_weights(plain, ffcv)


def test_one_step_from_the_store_is_one_step_with_the_live_teacher(world, tmp_path):
    """The run's first step, redone by hand: pixels by Pillow, labels by the numpy codec."""
    store = LabelStore.open(world / "store.zarr")
    run = request(tmp_path / "run", labels=world / "store.zarr", batch_size=24 * 4, epochs=1,
                  lr=0.5, weight_decay=0.0)  # fmt: skip
    result = fit(run)

    torch.manual_seed(0)
    student = models.create("resnet8", 3).to(memory_format=torch.channels_last).train()
    from trainer.plan import plan_epoch

    plan = plan_epoch(0, 0, num_images=24, stored_views=8, views_per_image=4)
    images = store.read_images()
    plane = store.read_plane(plan.first_view, 4, next(iter(store.spec.teachers)))
    codec = store.spec.teachers[next(iter(store.spec.teachers))].codec
    crops, labels = [], []
    for row in plan.order:  # the beton's rows are the store's: both sort the same folder
        image = decode_rgb((world / "images" / images.key[row]).read_bytes())
        for view in range(4):
            crops.append(cut_view(image, plane.box[row, view], plane.flip[row, view], 24))
            one = TopKLabels(plane.index[row, view], plane.code[row, view], plane.tail[row, view])
            labels.append(codec.dense(one))
    x = torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2).float()
    x = ((x - 127.5) / 63.75).to(memory_format=torch.channels_last)
    log_q = torch.log_softmax(student(x), -1)
    loss = -(torch.from_numpy(np.stack(labels)) * log_q).sum(-1).mean()
    loss.backward()
    # Nesterov's first step; the warm-up is shorter than one step
    expected = {
        name: p.detach() - 0.5 * (p.grad + 0.9 * p.grad) for name, p in student.named_parameters()
    }
    got = weights(result)
    for name, value in expected.items():
        assert torch.allclose(got[name], value, atol=2e-5), name


def test_two_equal_runs_are_equal_to_the_bit(world, tmp_path):
    first = fit(request(tmp_path / "a", labels=world / "store.zarr"))
    second = fit(request(tmp_path / "b", labels=world / "store.zarr"))
    assert_equal_weights(first, second)


@pytest.mark.parametrize("stop_after", [1, 4, 6, 9])
def test_a_run_stopped_anywhere_resumes_to_the_same_bits(world, tmp_path, monkeypatch, stop_after):
    whole = fit(request(tmp_path / "whole", labels=world / "store.zarr"))

    with stopped_after(stop_after, monkeypatch):
        fit(request(tmp_path / "parts", labels=world / "store.zarr"))
    resumed = fit(request(tmp_path / "parts", labels=world / "store.zarr"))
    assert_equal_weights(whole, resumed)
    steps = [
        line["step"]
        for line in read_metrics(tmp_path / "parts" / "metrics.jsonl")
        if line["kind"] == "train"
    ]
    assert len(steps) == len(set(steps))


def test_a_finished_run_is_not_trained_again(world, tmp_path):
    first = fit(request(tmp_path / "run", labels=world / "store.zarr"))
    before = weights(first)
    again = fit(request(tmp_path / "run", labels=world / "store.zarr"))
    assert again.crops == 0
    after = weights(again)
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_images_are_joined_by_content_not_by_name(world, tmp_path):
    """Renamed and reordered images keep their labels: the same training, image by image."""
    moved = tmp_path / "moved"
    for i, path in enumerate(sorted((world / "images").rglob("*.jpg"), reverse=True)):
        target = moved / f"z{9 - i % 3}" / f"{i:03d}.jpeg"
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)
    from storage.images import scan_folder
    from trainer.data import join_store
    from trainer.plan import plan_epoch
    from trainer.replay.beton import Beton, pack

    store = LabelStore.open(world / "store.zarr")
    teacher = next(iter(store.spec.teachers))
    pack(scan_folder(moved), tmp_path / "moved.beton", workers=1, overwrite=False)
    beton = Beton.open(tmp_path / "moved.beton")
    data = join_store(beton, store, teacher)
    plan = plan_epoch(0, 0, num_images=len(data.rows), stored_views=8, views_per_image=4)
    tables = data.tables(0, plan)
    plane = store.read_plane(plan.first_view, 4, teacher)
    images = store.read_images()
    row_of = {digest.tobytes(): row for row, digest in enumerate(images.digest)}
    assert len(data.rows) == 24
    for row in data.rows:
        source = row_of[beton.digests[row].tobytes()]
        assert np.array_equal(tables.box[row], plane.box[source])
        assert np.array_equal(tables.code[row], plane.code[source])


def test_a_store_of_other_images_is_refused(world, tmp_path):
    other = write_folder(tmp_path / "other", classes=4, per_class=1, sides=(30, 31))
    for path in other.rglob("*.jpg"):  # class 0..2 share seeds with the labelled images
        path.write_bytes(path.read_bytes() + b"\0")
    with pytest.raises(StoreMismatch, match="made for other images"):
        fit(request(tmp_path / "run", labels=copy_of(world, tmp_path), data=str(other)))


def test_a_partial_overlap_trains_on_the_overlap_and_says_so(world, tmp_path):
    some = tmp_path / "some"
    shutil.copytree(world / "images", some)
    (some / "class0" / "image0.jpg").unlink()
    write_folder(tmp_path / "extra", classes=1, per_class=1, sides=(50, 60))
    data = (tmp_path / "extra" / "class0" / "image0.jpg").read_bytes() + b"\0"
    (some / "class1" / "new.jpg").write_bytes(data)
    result = fit(request(tmp_path / "run", labels=copy_of(world, tmp_path), data=str(some)))
    assert result.notes == ("1 of 24 images are not in the store: left out",)
    assert result.steps == 2 * (23 // 4)


def test_an_unreadable_image_is_masked_and_counted(tmp_path):
    folder = write_folder(tmp_path / "images", classes=3, per_class=4)
    broken = folder / "class1" / "image2.jpg"
    broken.write_bytes(broken.read_bytes()[:300])
    (folder / "class2" / "empty.jpg").write_bytes(b"")
    store = make_store(folder, tmp_path / "store.zarr")
    result = fit(request(tmp_path / "run", labels=store))
    assert result.notes == ("2 images are masked as unreadable: left out",)
    assert result.steps == 2 * (11 // 4)


def test_an_unsealed_or_incomplete_store_is_refused(world, tmp_path):
    store = copy_of(world, tmp_path)
    (store / "manifest.json").unlink()
    with pytest.raises(IncompleteStore, match="labelstore seal"):
        fit(request(tmp_path / "run", labels=store))
    for receipt in (store / "receipts").glob("*"):
        receipt.unlink()
    with pytest.raises(IncompleteStore, match="labelgen run"):
        fit(request(tmp_path / "run", labels=store))
    assert IncompleteStore.exit_code == 3


def test_a_missing_shard_is_an_error_not_a_zero_label(world, tmp_path):
    store = copy_of(world, tmp_path)
    shard = next(path for path in sorted(store.glob("labels/*/tail/c/**/*")) if path.is_file())
    shard.unlink()
    with pytest.raises(CorruptStore, match="tail"):
        fit(request(tmp_path / "run", labels=store))


def test_a_checkpoint_of_another_run_is_refused_with_every_difference(world, tmp_path):
    fit(request(tmp_path / "run", labels=world / "store.zarr", epochs=1))
    with pytest.raises(StoreMismatch) as error:
        fit(request(tmp_path / "run", labels=world / "store.zarr", epochs=2, lr=0.3))
    assert "epochs: 2, not 1" in str(error.value)
    assert "optim.lr: 0.3" in str(error.value)
    fit(request(tmp_path / "run", labels=world / "store.zarr", lr=0.3, overwrite=True))


def test_a_damaged_checkpoint_is_named(world, tmp_path):
    fit(request(tmp_path / "run", labels=world / "store.zarr", epochs=1))
    path = tmp_path / "run" / "checkpoint.pt"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(TrainingError, match=r"checkpoint\.pt is damaged"):
        fit(request(tmp_path / "run", labels=world / "store.zarr", epochs=1))


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_last_checkpoint(world, tmp_path):
    fit(request(tmp_path / "run", labels=world / "store.zarr", epochs=1))
    good = (tmp_path / "run" / "checkpoint.pt").read_bytes()
    shutil.copy(tmp_path / "run" / "checkpoint.pt", tmp_path / "good.pt")
    with pytest.raises(TrainingError, match="not finite at step"):
        fit(request(tmp_path / "hot", labels=world / "store.zarr", lr=1e9, warmup_epochs=0.0,
                    epochs=4))  # fmt: skip
    assert not (tmp_path / "hot" / "student.safetensors").exists()
    assert (tmp_path / "run" / "checkpoint.pt").read_bytes() == good


def test_a_beton_changed_behind_the_labels_is_noticed(world, tmp_path):
    """The loader reports digests of what it decoded; a row that is not the label's is an error."""
    from trainer.batches import BatchSource
    from trainer.config import LabelConfig, StudentConfig
    from trainer.data import join_store
    from trainer.plan import plan_epoch
    from trainer.replay.beton import Beton
    from trainer.replay.torch_loader import TorchReplayLoader

    fit(request(tmp_path / "run", labels=world / "store.zarr", epochs=1))
    beton = Beton.open(world / "store.beton")
    store = LabelStore.open(world / "store.zarr")
    teacher = next(iter(store.spec.teachers))
    data = join_store(beton, store, teacher)
    swapped = data.digests.copy()
    swapped[[0, 1]] = swapped[[1, 0]]
    data = dataclasses.replace(data, digests=swapped)
    student = StudentConfig(arch="resnet8", num_classes=3, input_size=24, mean=(0.5,) * 3,
                            std=(0.5,) * 3, interpolation="bilinear", classes=None)  # fmt: skip
    source = BatchSource(data, student, LabelConfig(teacher=teacher), torch.device("cpu"))
    loader = TorchReplayLoader(beton, size=24, views=4, batch_images=4, workers=0)
    plan = plan_epoch(0, 0, num_images=24, stored_views=8, views_per_image=4)
    with pytest.raises(TrainingError, match="content digests differ"):
        list(source.epoch(loader, 0, plan, 4))


def test_supervised_training_needs_no_store(tmp_path):
    folder = write_folder(tmp_path / "images", classes=3, per_class=8)
    result = fit(request(tmp_path / "run", data=str(folder), val=folder, epochs=10))
    assert result.student.classes == ("class0", "class1", "class2")
    assert result.evaluation.top1 > 0.6  # the classes differ in tint


def test_more_views_than_stored_are_refused(world, tmp_path):
    with pytest.raises(UsageError, match="holds 8 views"):
        fit(request(tmp_path / "run", labels=world / "store.zarr", views_per_image=9,
                    batch_size=18))  # fmt: skip


def test_validation_classes_that_the_student_does_not_know_are_refused(world, tmp_path):
    other = write_folder(tmp_path / "val", classes=2, per_class=1)
    (other / "class1").rename(other / "zebra")
    with pytest.raises(StoreMismatch, match="zebra"):
        fit(request(tmp_path / "run", labels=world / "store.zarr", val=other))
    assert not (tmp_path / "run" / "checkpoint.pt").exists()


def test_a_full_disk_is_said_and_the_run_goes_on_when_there_is_room(world, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    (run / "checkpoint.pt.part").symlink_to("/dev/full")
    with pytest.raises(TrainingError, match=r"checkpoint\.pt can't be written"):
        fit(request(run, labels=world / "store.zarr", epochs=1))
    assert not (run / "checkpoint.pt").exists()
    assert fit(request(run, labels=world / "store.zarr", epochs=1)).steps == 6


def test_a_student_learns_over_http_as_from_the_folder(world, tmp_path, monkeypatch):
    """The same bits, with the store on a web server and nothing of it on this machine before."""
    import functools
    import threading
    from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_args):
            pass

    monkeypatch.setenv("TEACHONCE_CACHE", str(tmp_path / "cache"))
    handler = functools.partial(Quiet, directory=str(world))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_address[1]}/store.zarr"
        remote = fit(request(tmp_path / "far", labels=url, data=str(world / "images")))
        server.shutdown()
    near = fit(request(tmp_path / "near", labels=world / "store.zarr"))
    assert_equal_weights(remote, near)
