"""Where fine-tuning starts: whose weights, which head, and what is refused."""

import pytest
import torch
from safetensors.torch import save_file
from training import CLASSES, SIZE, write_teacher

from storage.errors import UsageError
from trainer import models
from trainer.checkpoint import save_student
from trainer.config import StudentConfig
from transfer.starts import SCRATCH, STUDENT, build, head_names, open_starts


@pytest.fixture(scope="module")
def student(tmp_path_factory):
    return write_teacher(tmp_path_factory.mktemp("starts") / "student.safetensors", seed=7)


def config_of(arch, classes=3):
    return StudentConfig(
        arch=arch, num_classes=classes, input_size=SIZE, mean=(0.5,) * 3, std=(0.25,) * 3,
        interpolation="bilinear", classes=None,
    )  # fmt: skip


def changed(first, second):
    pairs = zip(first.state_dict().items(), second.state_dict().values(), strict=True)
    return {name for (name, a), b in pairs if a.shape != b.shape or not torch.equal(a, b)}


def test_a_new_head_is_all_that_a_seed_changes(student):
    (start,) = open_starts(student, ())
    assert (start.name, start.config.classes) == (STUDENT, CLASSES)
    own = build(start, 0)
    for width in (3, 7):  # a head of the student's own width is new as well
        first, second = build(start, 0, width), build(start, 1, width)
        assert first.fc.weight.shape == (width, 64)
        assert changed(first, second) == {"fc.weight", "fc.bias"} == changed(own, first)
        assert not changed(first, build(start, 0, width))
    assert not changed(own, build(start, 5))


def test_scratch_is_the_same_network_with_weights_of_the_seed(student):
    _, scratch = open_starts(student, (SCRATCH,))
    assert scratch.identity == SCRATCH
    before = torch.get_rng_state()
    first = build(scratch, 3, 5)
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(3)
    assert not changed(first, models.create("resnet8", 5))
    assert "conv1.weight" in changed(first, build(scratch, 4, 5))


def test_weights_without_a_header_are_public_ones_of_the_same_network(student, tmp_path):
    torch.manual_seed(9)
    network = models.create("resnet8", 11)
    save_file(network.state_dict(), tmp_path / "public.safetensors")
    start = open_starts(student, (f"public={tmp_path / 'public.safetensors'}",))[1]
    assert (start.name, start.config.num_classes, start.config.classes) == ("public", 11, None)
    assert "fed as the student" in start.notes[0]
    assert not changed(build(start, 0), network)
    assert build(start, 0, 4).fc.weight.shape == (4, 64)


def test_branches_of_a_student_are_left_behind(tmp_path):
    torch.manual_seed(0)
    network = models.create("hsakd-resnet8", 3)
    save_student(tmp_path / "student.safetensors", network, config_of("hsakd-resnet8"), {})
    (start,) = open_starts(tmp_path / "student.safetensors", ())
    assert start.config.arch == "resnet8"
    assert not changed(build(start, 0), network.backbone)


def test_the_head_is_the_layer_that_gives_the_logits():
    for arch, prefix in (("tv:mobilenet_v2", "classifier.1"), ("resnet8", "fc")):
        names = head_names(models.create(arch, 4), config_of(arch))
        assert names == {f"{prefix}.weight", f"{prefix}.bias"}
    with pytest.raises(UsageError, match="no head to renew"):
        head_names(models.create("tv:squeezenet1_1", 4), config_of("tv:squeezenet1_1"))


def test_other_networks_and_equal_names_are_refused(student, tmp_path):
    torch.manual_seed(0)
    other = tmp_path / "other.safetensors"
    save_student(other, models.create("resnet14", 3), config_of("resnet14"), {})
    with pytest.raises(UsageError, match="is resnet14 and the student resnet8"):
        open_starts(student, (f"other={other}",))
    plain = tmp_path / "plain.safetensors"
    save_file(models.create("resnet14", 3).state_dict(), plain)
    with pytest.raises(UsageError, match=r"isn't resnet8: \d+ tensors don't fit, such as layer1"):
        open_starts(student, (f"other={plain}",))
    for compare, message in (
        ((SCRATCH, SCRATCH), "two starts 'scratch'"),
        ((f"a={student}", f"a={student}"), "two starts 'a'"),
        ((f"a/b={student}",), "no usable name"),
        ((f"_data={student}",), "no usable name"),
        ((str(tmp_path / "gone.safetensors"),), "can't be read as safetensors"),
    ):
        with pytest.raises(UsageError, match=message):
            open_starts(student, compare)


def test_a_checkpoint_that_is_no_student_is_one_line(student, tmp_path):
    (tmp_path / "checkpoint.pt").write_bytes(b"PK\x03\x04 a zip")
    with pytest.raises(UsageError, match="can't be read as a student's safetensors"):
        open_starts(tmp_path / "checkpoint.pt", ())
    save_file({"a": torch.zeros(1)}, tmp_path / "plain.safetensors")
    with pytest.raises(UsageError, match="does not say which network it is"):
        open_starts(tmp_path / "plain.safetensors", ())


def test_a_head_of_other_width_than_the_header_says_is_refused(tmp_path):
    torch.manual_seed(0)
    save_student(tmp_path / "wide.safetensors", models.create("resnet8", 5), config_of("resnet8"),
                 {})  # fmt: skip
    with pytest.raises(UsageError, match="resnet8 with 3 classes, but its tensors are another"):
        open_starts(tmp_path / "wide.safetensors", ())
