"""FKD-SSL: its formula, one step against the live teacher, teachers with and without a head."""

import copy

import numpy as np
import pytest
import torch
from conftest import write_folder
from safetensors.torch import load_file
from torch import nn
from training import SIZE, make_store, request

from labelgen import generate, load_teacher, resolve
from labelgen.target_options import TargetOptions
from storage import LabelStore
from storage.errors import UsageError
from storage.targets.dense import dense_record
from storage.targets.features import feature_record
from trainer import fit, methods, models
from trainer.batch import Batch
from trainer.batches import BatchSource
from trainer.checkpoint import save_student
from trainer.config import StudentConfig
from trainer.inputs import create_loader, open_images
from trainer.method_config import FkdSslConfig
from trainer.methods.fkd_ssl import FkdSsl
from trainer.models.feature_tap import tap_feature
from trainer.plan import EpochPlan
from trainer.request import configure
from trainer.targets import StoredTarget

CPU = torch.device("cpu")


class Flat(nn.Module):
    """A student whose rectified pooled feature is known in closed form."""

    def __init__(self, width: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.relu = nn.Conv2d(3, width, 1), nn.ReLU(inplace=True)
        self.fc = nn.Linear(width, 5)

    def forward(self, images):
        return self.fc(self.relu(self.conv(images)).mean((2, 3)))


def stored_dense(width=6):
    record = dense_record(name="t", teacher="t", views=1, classes=width, encoding="fp32")
    return StoredTarget(record, None, None, None)


def by_hand(found, wanted, temperature, unit):
    """The published loss in float64, one crop and one coordinate at a time."""
    total = 0.0
    for s, t in zip(np.asarray(found, np.float64), np.asarray(wanted, np.float64), strict=True):
        if unit:
            s, t = s / np.sqrt((s**2).sum()), t / np.sqrt((t**2).sum())
        p = np.exp(t / temperature) / np.exp(t / temperature).sum()
        q = np.exp(s / temperature) / np.exp(s / temperature).sum()
        total -= sum(p[i] * np.log(q[i]) for i in range(len(p)))
    return total / len(found)


@pytest.mark.parametrize("unit", [True, False])
@pytest.mark.parametrize("head", ["mlp", "linear", "none"])
def test_the_loss_is_the_published_one_in_float64(head, unit):
    student = Flat(6)
    tap = tap_feature(student, 8, "flat", rectified=True)
    torch.manual_seed(1)
    config = FkdSslConfig(temperature=0.2 if unit else 1.5, unit=unit, head=head)
    method = FkdSsl(config, tap, stored_dense(6))
    images = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(2))
    wanted = torch.randn(4, 6, generator=torch.Generator().manual_seed(3)) * 5
    batch = Batch(images, torch.zeros(4, dtype=torch.int64), None, targets={"logits": wanted})
    terms = method.terms(student, batch)
    terms["embedding"].backward()
    w, b = student.conv.weight.detach().double().flatten(1), student.conv.bias.detach().double()
    maps = torch.einsum("bchw,dc->bdhw", images.double(), w) + b[:, None, None]
    feature = maps.clamp(min=0).mean((2, 3))
    layers = [m for m in method.head.modules() if isinstance(m, nn.Linear)]
    assert len(layers) == {"mlp": 2, "linear": 1, "none": 0}[head]
    for number, layer in enumerate(layers):
        feature = feature @ layer.weight.detach().double().T + layer.bias.detach().double()
        feature = feature.clamp(min=0) if number < len(layers) - 1 else feature
    expected = by_hand(feature, wanted, config.temperature, unit)
    assert float(terms["embedding"].detach()) == pytest.approx(expected, rel=1e-5)
    assert student.conv.weight.grad.any() and student.fc.weight.grad is None
    assert all(layer.weight.grad.any() for layer in layers)


def test_a_student_that_agrees_has_the_smallest_loss_and_no_gradient():
    student = Flat(6)
    method = FkdSsl(FkdSslConfig(head="none"), tap_feature(student, 8, "f", rectified=True),
                    stored_dense(6))  # fmt: skip
    wanted = torch.randn(3, 6, generator=torch.Generator().manual_seed(5))
    agree = (2.5 * wanted).requires_grad_()
    loss = method.embedding_loss(agree, wanted)
    loss.backward()
    assert agree.grad.abs().max() < 1e-6
    assert float(method.embedding_loss(torch.randn(3, 6), wanted)) > float(loss.detach())


@pytest.mark.parametrize("space", ["z", "y"])
def test_features_are_put_back_into_the_teachers_own_coordinates(space):
    rng = np.random.default_rng(0)
    basis = np.linalg.qr(rng.normal(size=(6, 6)))[0].astype(np.float32)
    constants = {"basis": basis, "mean": rng.normal(size=6).astype(np.float32),
                 "spectrum": np.linspace(2, 1, 6)}  # fmt: skip
    record = feature_record(name="p", teacher="t", views=1, layer="x", space=space,
                            encoding="fp16", basis_images=1, **constants)  # fmt: skip
    method = FkdSsl(FkdSslConfig(head="linear"), tap_feature(Flat(4), 8, "f", rectified=True),
                    StoredTarget(record, None, constants.__getitem__, None))  # fmt: skip
    feature = rng.normal(size=(3, 6)).astype(np.float32)
    z = torch.from_numpy((feature - constants["mean"]) @ basis)
    stored = z if space == "z" else torch.copysign((z / 0.1).abs() ** (1 / 3), z)
    torch.testing.assert_close(
        method.embed(stored), torch.from_numpy(feature), atol=1e-4, rtol=1e-4
    )
    assert method.embed.state_dict() == {}


def test_a_student_of_another_width_without_a_head_is_refused_with_both():
    tap = tap_feature(Flat(4), 8, "f", rectified=True)
    with pytest.raises(UsageError, match="have 4 components and the teacher's embedding 6"):
        FkdSsl(FkdSslConfig(head="none"), tap, stored_dense(6))


TEACHERS = {"mlp-resnet8": 16, "headless-resnet8": 64}


def ssl_teacher(path, arch):
    torch.manual_seed(3)
    network = models.create(arch, TEACHERS[arch])
    config = StudentConfig(arch=arch, num_classes=TEACHERS[arch], input_size=SIZE,
                           mean=(0.5,) * 3, std=(0.25,) * 3, interpolation="bilinear",
                           classes=None)  # fmt: skip
    save_student(path, network, config, {})
    return load_teacher(resolve(f"file:{path}"), "cpu", "fp32")


@pytest.fixture(scope="module", params=TEACHERS)
def world(request, tmp_path_factory):
    """Six images, and a store with the outputs of a teacher that gives embeddings."""
    root = tmp_path_factory.mktemp("ssl")
    folder = write_folder(root / "images", classes=3, per_class=4)
    teacher = ssl_teacher(root / "t.safetensors", request.param)
    generate(teacher, folder, root / "store.zarr", crops=4, top_k=2, workers=1, batch_size=16,
             targets=TargetOptions(dense="", dense_encoding="fp32", dense_views=4))  # fmt: skip
    return root, teacher


def test_a_step_from_the_store_is_the_step_with_the_live_teacher(world, tmp_path):
    root, teacher = world
    store = LabelStore.open(root / "store.zarr")
    beton = open_images(root / "images", tmp_path / "b.beton", 1)
    asked = request(tmp_path / "run", labels=root / "store.zarr", method="fkd-ssl", epochs=1,
                    views_per_image=2, batch_size=8)  # fmt: skip
    config, data = configure(asked, CPU, store, beton)
    loader = create_loader("torch", beton, size=SIZE, views=2, batch_images=4, workers=0,
                           interpolation="bilinear", padding=0)  # fmt: skip
    source = BatchSource(data, config.student, config.labels, CPU)
    batch = next(iter(source.epoch(loader, 0, EpochPlan(np.arange(12), 0, 2), 4)))
    assert batch.labels is None
    with torch.no_grad():
        live = teacher.model(batch.images)
    torch.testing.assert_close(batch.targets["logits"], live, rtol=1e-4, atol=1e-4)
    torch.manual_seed(0)
    student = models.create("resnet8", config.student.num_classes)
    method = methods.create(config, student, data.features)
    twin, head = copy.deepcopy(student), copy.deepcopy(method.head)
    sum(method.terms(student, batch).values()).backward()
    read = []
    twin.fc.register_forward_pre_hook(lambda _m, inputs: read.append(inputs[0]))
    twin(batch.images)
    q = torch.nn.functional.normalize(head(read[0]), dim=-1) / 0.2
    p = (torch.nn.functional.normalize(live, dim=-1) / 0.2).softmax(-1)
    (-(p * q.log_softmax(-1)).sum(-1).mean()).backward()
    for (name, ours), theirs in zip(student.named_parameters(), twin.parameters(), strict=True):
        if name.startswith("fc"):
            assert ours.grad is None
            continue
        scale = float(theirs.grad.norm()) + 1e-6
        assert float((ours.grad - theirs.grad).norm()) < 2e-3 * scale, name


def test_a_student_learns_and_is_kept_as_the_plain_network(world, tmp_path):
    root, _ = world
    result = fit(request(tmp_path / "run", labels=root / "store.zarr", method="fkd-ssl",
                         optimizer="adamw", lr=3e-3, views_per_image=2, epochs=8,
                         settings={"optim.weight_decay": 0.0}))  # fmt: skip
    from trainer.metrics import read_metrics

    losses = [x["loss"] for x in read_metrics(result.out / "metrics.jsonl") if x["kind"] == "train"]
    assert losses[-1] < losses[0]
    plain = models.create("resnet8", result.student.num_classes).state_dict()
    saved = load_file(result.out / "student.safetensors")
    assert {k: v.shape for k, v in saved.items()} == {k: v.shape for k, v in plain.items()}


def test_a_store_without_embeddings_is_refused_with_the_command_that_adds_them(tmp_path):
    make_store(write_folder(tmp_path / "images", classes=3, per_class=2), tmp_path / "s.zarr")
    for kind in ("dense", "features"):
        with pytest.raises(UsageError, match=rf"has none: add them with `labelgen add .*--{kind}"):
            fit(request(tmp_path / "run", labels=tmp_path / "s.zarr", method="fkd-ssl",
                        settings={"fkd_ssl.kind": kind}))  # fmt: skip


def test_networks_that_end_in_embeddings_have_the_widths_they_say():
    with pytest.raises(UsageError, match="gives 64 components, not 10"):
        models.create("headless-resnet8", 10)
    assert models.create("mlp-tv-resnet18", 128).fc[2].out_features == 128
    names = models.create("mlp-resnet8", 16).state_dict()
    assert {"fc.0.weight", "fc.2.bias"} <= names.keys(), "as MoCo v2 names them"
