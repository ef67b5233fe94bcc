"""HSAKD's teachers: what learns in each of the published ways, and what a network must be."""

import json

import pytest
import torch
import torch.nn.functional as F
from click.testing import CliRunner
from conftest import write_folder
from hsakd_parts import CLASSES, branched
from PIL import Image
from safetensors.torch import load_file, save_file
from torchvision.transforms.functional import normalize, to_tensor
from training import request

from labelgen.extract.heads import NetworkWithHeads
from storage.errors import UsageError
from trainer import fit, models
from trainer.batch import Batch
from trainer.checkpoint import load_student
from trainer.cli import cli
from trainer.evaluate import centre_crop
from trainer.method_config import HsakdConfig, HsakdTeacherConfig
from trainer.methods.hsakd_online import HsakdOnline
from trainer.methods.hsakd_teacher import HsakdTeacher


def batch():
    images = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(2))
    return Batch(images, torch.tensor([2, 0, 1, 1]), None)


def test_the_loss_is_the_plain_sum_of_mean_cross_entropies():
    network = branched("hsakd-resnet8", seed=1).train()
    given = batch()
    terms = HsakdTeacher(HsakdTeacherConfig(), network).terms(network, given)
    again = branched("hsakd-resnet8", seed=1).train()
    rows = torch.stack([torch.rot90(x, r, (1, 2)) for x in given.images for r in range(4)])
    inputs = again.forward_heads(rows)
    layers = again.head_layers()
    expected = {
        "ce": F.cross_entropy(layers["class"](inputs["class"])[[0, 4, 8, 12]], given.target)
    }
    joint = torch.tensor([4 * y + r for y in given.target.tolist() for r in range(4)])
    for name in ("branch1", "branch2", "branch3"):
        expected[f"ce_{name}"] = F.cross_entropy(layers[name](inputs[name]), joint)
    assert terms.keys() == expected.keys()
    for name, term in terms.items():
        torch.testing.assert_close(term, expected[name], rtol=1e-5, atol=1e-6)


def test_branch_losses_reach_a_joint_backbone_and_no_frozen_one():
    for mode, reached in (("joint", True), ("frozen", False)):
        network = branched("hsakd-resnet8", seed=1)
        method = HsakdTeacher(HsakdTeacherConfig(mode=mode), network)
        network.train()
        terms = method.terms(network, batch())
        sum(value for name, value in terms.items() if name != "ce").backward()
        grads = [p.grad for p in network.backbone.conv1.parameters()]
        assert (grads[0] is not None) == reached
        assert all(p.grad is not None for p in network.branches.parameters())
        assert not list(method.parameters()), "branches belong to the network alone"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("teacher") / "images", classes=3, per_class=4)


def teach(out, folder, mode, **changes):
    settings = {"hsakd_teacher.mode": mode, "student.mean": (0.4, 0.5, 0.6)}
    common = {"method": "hsakd-teacher", "data": str(folder), "epochs": 2, "batch_size": 8,
              "views_per_image": 2, "settings": settings}  # fmt: skip
    return fit(request(out, **(common | changes)))


def test_a_frozen_backbone_and_its_buffers_are_the_same_bits_after_training(folder, tmp_path):
    torch.manual_seed(3)
    plain = models.create("resnet8", CLASSES).state_dict()
    plain["bn1.running_mean"] += 0.25
    save_file(
        {name: value.contiguous() for name, value in plain.items()}, tmp_path / "w.safetensors"
    )
    result = teach(tmp_path / "frozen", folder, "frozen", init=str(tmp_path / "w.safetensors"),
                   val=folder)  # fmt: skip
    assert result.student.arch == "hsakd-resnet8"
    assert result.student.mean == (0.4, 0.5, 0.6)
    kept = load_file(result.out / "student.safetensors")
    for name, value in plain.items():
        assert torch.equal(kept[f"backbone.{name}"], value), name
    fresh = models.create("hsakd-resnet8", CLASSES).state_dict()
    assert kept.keys() == fresh.keys()
    assert kept["branches.bodies.0.0.0.bn1.num_batches_tracked"] > 0
    shown = CliRunner().invoke(cli, ["evaluate", str(result.out / "student.safetensors"), "--val",
                                     str(folder), "--json"])  # fmt: skip
    scores = json.loads(shown.stdout)
    assert scores == result.evaluation.to_json()
    assert scores["joint_top1/branch2"] == by_hand(result.out / "student.safetensors", folder)


def by_hand(path, folder):
    """Joint accuracy of branch 2 on a folder, image by image and turn by turn."""
    network, config = load_student(path)
    hits = []
    for y, name in enumerate(sorted(place.name for place in folder.iterdir())):
        for file in sorted((folder / name).iterdir()):
            image = centre_crop(Image.open(file).convert("RGB"), config.input_size, "bilinear")
            image = to_tensor(image)
            for r in range(4):
                turned = normalize(torch.rot90(image, r, (1, 2)), config.mean, config.std)
                pooled = network.eval().forward_heads(turned[None])["branch2"]
                hits.append(int(network.head_layers()["branch2"](pooled).argmax()) == 4 * y + r)
    return sum(hits) / len(hits)


def test_a_joint_teacher_learns_everywhere_and_has_heads_for_the_store(folder, tmp_path):
    result = teach(tmp_path / "joint", folder, "joint")
    network, config = load_student(result.out / "student.safetensors")
    assert isinstance(network, NetworkWithHeads)
    assert config.arch == "hsakd-resnet8"
    torch.manual_seed(0)
    begun = models.create("hsakd-resnet8", CLASSES).state_dict()
    moved = [name for name, value in network.state_dict().items()
             if value.is_floating_point() and not torch.equal(value, begun[name])]  # fmt: skip
    assert "backbone.conv1.weight" in moved
    assert "branches.heads.0.weight" in moved


def test_a_frozen_teacher_without_weights_is_refused(folder, tmp_path):
    with pytest.raises(UsageError, match=r"frozen keeps a finished network.*--init"):
        teach(tmp_path / "run", folder, "frozen")


def test_a_frozen_teacher_of_other_classes_is_refused_with_the_count(folder, tmp_path):
    path = tmp_path / "w.safetensors"
    save_file(models.create("resnet8", 5).state_dict(), path)
    with pytest.raises(UsageError, match="other classes than the 3 of the images"):
        teach(tmp_path / "run", folder, "frozen", init=str(path))


def test_an_unknown_way_is_refused_with_those_there_are(folder, tmp_path):
    with pytest.raises(UsageError, match="mode is 'both'; expected one of joint, frozen"):
        teach(tmp_path / "run", folder, "both")


def test_two_networks_learn_from_each_other_and_from_the_joint_class():
    """Written out from the formula; each network's answers are the other's fixed targets."""
    torch.manual_seed(4)
    student, given = models.create("resnet8", CLASSES), batch()
    peer = branched("hsakd-resnet8", seed=7)
    method = HsakdOnline(HsakdConfig(), student, "resnet8", CLASSES, peer)
    student.train()
    method.train()
    terms = method.terms(student, given)
    assert len(terms) == 2 * (1 + 3 + 4)
    rows = torch.stack([torch.rot90(x, r, (1, 2)) for x in given.images for r in range(4)])
    own = branched("hsakd-resnet8").train()
    own.backbone.load_state_dict(student.state_dict())
    own.branches.load_state_dict(method.branches.state_dict())
    logits = [
        {name: net.head_layers()[name](h) for name, h in net.forward_heads(rows).items()}
        for net in (own, peer)
    ]
    joint = torch.tensor([4 * y + r for y in given.target.tolist() for r in range(4)])
    expected = 0.0
    for mine, other in (logits, logits[::-1]):
        for name, z in mine.items():
            hard = (z[0::4], given.target) if name == "class" else (z, joint)
            p = (other[name].detach() / 3).softmax(-1)
            divergence = (p * (p.log() - (z / 3).log_softmax(-1))).sum() / len(rows)
            expected = expected + F.cross_entropy(*hard) + 9 * divergence
    total = sum(terms.values())
    torch.testing.assert_close(total, expected, rtol=1e-5, atol=1e-5)
    total.backward()
    peer_gradient = peer.backbone.conv1.weight.grad.clone()
    peer.zero_grad()
    expected.backward()
    torch.testing.assert_close(own.backbone.conv1.weight.grad, student.conv1.weight.grad,
                               rtol=1e-3, atol=1e-5)  # fmt: skip
    torch.testing.assert_close(peer.backbone.conv1.weight.grad, peer_gradient, rtol=1e-3, atol=1e-5)


def test_mutual_learning_needs_no_store_and_keeps_two_plain_networks(folder, tmp_path):
    result = fit(request(tmp_path / "run", method="hsakd-online", data=str(folder), epochs=1,
                         batch_size=8, views_per_image=2))  # fmt: skip
    kept = load_file(result.out / "student.safetensors")
    assert kept.keys() == models.create("resnet8", CLASSES).state_dict().keys()
    peer, config = load_student(result.out / "student_peer.safetensors")
    assert config.arch == "resnet8" and config.num_classes == CLASSES
    saved = torch.load(result.out / "checkpoint.pt", weights_only=True)["method"]
    trained = {n: saved[f"peer.backbone.{n}"] for n in kept}
    assert all(torch.equal(value, trained[name]) for name, value in peer.state_dict().items())
    assert not torch.equal(kept["conv1.weight"], trained["conv1.weight"])
