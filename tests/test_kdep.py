"""KDEP against its formula, and from a store's features to a student."""

import numpy as np
import pytest
import torch
from conftest import write_folder
from safetensors.torch import load_file
from torch import nn
from training import request, stopped_after, write_teacher

from labelgen import generate, load_teacher, resolve
from labelgen.target_options import TargetOptions
from storage import LabelStore
from storage.errors import UsageError
from storage.targets import features as stored_features
from trainer import fit, models
from trainer.batch import Batch
from trainer.method_config import KdepConfig
from trainer.methods.kdep import KDEP, power_scale
from trainer.models.feature_tap import tap_feature
from trainer.targets import TargetPlane, decode_part

RANK = 64  # of resnet8's pooled feature


def record(rank=8, space="z", **settings):
    rng = np.random.default_rng(0)
    basis = np.linalg.qr(rng.normal(size=(rank, rank)))[0].astype(np.float32)
    return stored_features.feature_record(
        name="pooled", teacher="t", views=2, layer="x", mean=np.zeros(rank, np.float32),
        basis=basis, spectrum=np.ones(rank), space=space,
        encoding="int8" if space == "y" else "fp16", basis_images=1, **settings,
    )  # fmt: skip


def test_power_scaling_is_the_published_example():
    z = torch.tensor([-0.8, -0.1, 0.0, 0.0125, 0.1, 2.7])
    expected = torch.tensor([-2.0, -1.0, 0.0, 0.5, 1.0, 3.0])
    torch.testing.assert_close(power_scale(z, 0.1, 3.0), expected)
    np.testing.assert_allclose(
        power_scale(z, 0.1, 3.0), stored_features.power_scale(z.numpy(), 0.1, 3.0), rtol=1e-6
    )


class Flat(nn.Module):
    """A student whose pooled feature before its ReLU is known in closed form."""

    def __init__(self, width: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.relu = nn.Conv2d(3, width, 1), nn.ReLU(inplace=True)
        self.fc = nn.Linear(width, 5)

    def forward(self, images):
        return self.fc(self.relu(self.conv(images)).mean((2, 3)))


def test_the_loss_and_its_gradient_are_the_formula_in_float64():
    student = Flat(6)
    tap = tap_feature(student, 8, "flat")
    method = KDEP(KdepConfig(loss_weight=3.0), tap, record(8))
    images = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    z = torch.randn(4, 8, generator=torch.Generator().manual_seed(2))
    terms = method.terms(student, Batch(images, torch.zeros(4, dtype=torch.int64), None, z))
    terms["feature"].backward()
    weight = student.conv.weight.detach().double().flatten(1)
    bias = student.conv.bias.detach().double()
    feature = images.double().mean((2, 3)) @ weight.T + bias
    wanted = power_scale(z.double(), 0.1, 3.0)[:, :6]
    expected = 3.0 * ((feature - wanted) ** 2).mean()
    assert float(terms["feature"].detach()) == pytest.approx(float(expected), rel=1e-5)
    slope = 3.0 * 2 * (feature - wanted) / feature.numel()
    torch.testing.assert_close(student.conv.bias.grad.double(), slope.sum(0), rtol=1e-4, atol=1e-6)
    assert student.fc.weight.grad is None, "the classifier learns nothing"


def test_a_linear_alignment_maps_to_all_components_and_is_trained():
    student = Flat(6)
    method = KDEP(KdepConfig(alignment="linear"), tap_feature(student, 8, "flat"), record(8))
    batch = Batch(torch.randn(4, 3, 8, 8), torch.zeros(4, dtype=torch.int64), None,
                  torch.randn(4, 8))  # fmt: skip
    sum(method.terms(student, batch).values()).backward()
    assert method.align[0].weight.shape == (8, 6)
    assert method.align[0].weight.grad.any()


def test_a_student_wider_than_the_store_is_refused_with_both_widths():
    with pytest.raises(UsageError, match="have 12 components and features/pooled of the store 8"):
        KDEP(KdepConfig(), tap_feature(Flat(12), 8, "flat"), record(8))


def test_another_temperature_than_stored_is_refused_with_both():
    stored = record(8, space="y", temperature=0.1, power=3.0)
    tap = tap_feature(Flat(6), 8, "flat")
    KDEP(KdepConfig(), tap, stored)
    with pytest.raises(UsageError, match=r"T = 0.1 and n = 3.0, and T = 0.2 and n = 2.0"):
        KDEP(KdepConfig(temperature=0.2, power=2.0), tap, stored)
    with pytest.raises(UsageError, match="no scaling is asked for"):
        KDEP(KdepConfig(scaling="none"), tap, stored)


@pytest.mark.parametrize("name", ["resnet8", "tv:resnet18", "tv:mobilenet_v2", "timm:resnet10t"])
def test_the_students_feature_is_that_of_a_network_without_its_last_relu(name):
    torch.manual_seed(0)
    student = models.create(name, 5).eval()
    images = torch.randn(2, 3, 64, 64)
    tap = tap_feature(student, 64, name)
    with tap.listening() as found:
        logits = student(images)
    widths = {"resnet8": 64, "tv:resnet18": 512, "tv:mobilenet_v2": 1280, "timm:resnet10t": 512}
    assert found.feature.shape == (2, widths[name]) == (2, tap.width)
    assert (found.feature < 0).any(), "not rectified"
    assert torch.equal(logits, models_logits(student, images)), "the forward is as it was"


def models_logits(student, images):
    with torch.no_grad():
        return student(images)


@pytest.mark.parametrize("encoding", ["fp32", "fp16", "int8", "affine8"])
def test_decoding_on_the_device_equals_the_stores_own(encoding):
    from storage.targets.record import VectorPart
    from storage.targets.vectors import decode_vectors, encode_vectors

    part = VectorPart(name="value", shape=(7,), encoding=encoding)
    values = np.random.default_rng(3).normal(size=(5, 2, 7)).astype(np.float32)
    arrays = encode_vectors(part, values)
    ours = decode_part(part, {name: torch.from_numpy(a) for name, a in arrays.items()})
    np.testing.assert_array_equal(ours.numpy(), decode_vectors(part, arrays))


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """24 images, and a store with labels and features of a tiny teacher on 4 of 8 views."""
    root = tmp_path_factory.mktemp("kdep")
    folder = write_folder(root / "images", classes=3, per_class=8)
    teacher = load_teacher(resolve(f"file:{write_teacher(root / 't.safetensors')}"), "cpu", "fp32")
    generate(teacher, folder, root / "store.zarr", crops=8, top_k=3, workers=1, batch_size=16,
             teacher_check=False,
             targets=TargetOptions(features="pooled", feature_rank=RANK,
                                   feature_views=4))  # fmt: skip
    return root


def test_a_student_learns_the_stored_features_and_resumes_to_the_bit(world, tmp_path, monkeypatch):
    common = {"labels": world / "store.zarr", "method": "kdep", "views_per_image": 2, "lr": 0.05,
              "epochs": 6}  # fmt: skip
    result = fit(request(tmp_path / "run", **common))
    from trainer.metrics import read_metrics

    losses = [x["loss"] for x in read_metrics(tmp_path / "run" / "metrics.jsonl")
              if x["kind"] == "train"]  # fmt: skip
    assert losses[-1] < losses[0]
    with stopped_after(7, monkeypatch):
        fit(request(tmp_path / "again", **common))
    again = fit(request(tmp_path / "again", **common))
    a, b = (load_file(r.out / "student.safetensors") for r in (result, again))
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_a_batchs_features_are_those_the_store_reads_for_its_images(world):
    from trainer.plan import EpochPlan
    from trainer.targets import read_target_plane

    store = LabelStore.open(world / "store.zarr")
    rows = np.array([5, 0, 17])
    plane = read_target_plane(store, "features/pooled", EpochPlan(rows, 2, 2), np.arange(24))
    assert isinstance(plane, TargetPlane)
    found = plane.batch(rows, torch.device("cpu"))["value"]
    expected = store.read_target("features/pooled", rows, slice(2, 4))["value"]
    np.testing.assert_array_equal(found.numpy().reshape(expected.shape), expected)


def test_a_store_without_features_is_refused_with_the_command_that_adds_them(tmp_path):
    from training import make_store

    make_store(write_folder(tmp_path / "images", classes=3, per_class=2), tmp_path / "s.zarr")
    with pytest.raises(UsageError, match=r"has none: add them with `labelgen add .*--features"):
        fit(request(tmp_path / "run", labels=tmp_path / "s.zarr", method="kdep"))
