"""The evaluation against torchvision's transforms and counting by hand."""

import numpy as np
import pytest
import torch
from conftest import make_image, write_folder
from torch import nn
from torchvision.transforms import functional as tv

from storage.errors import StoreMismatch, UsageError
from storage.images import scan_folder
from trainer.config import StudentConfig
from trainer.evaluate import centre_crop, evaluate
from trainer.replay.beton import pack


def student(classes=("class0", "class1", "class2"), num_classes=3, size=24):
    return StudentConfig(
        arch="resnet8",
        num_classes=num_classes,
        input_size=size,
        mean=(0.5, 0.5, 0.5),
        std=(0.25, 0.25, 0.25),
        interpolation="bilinear",
        classes=classes,
    )


class ConstantLogits(nn.Module):
    """Answers every image alike."""

    def __init__(self, logits):
        super().__init__()
        self.logits = torch.tensor(logits)

    def forward(self, x):
        return self.logits.expand(len(x), -1)


@pytest.mark.parametrize(("height", "width"), [(300, 200), (200, 301), (256, 256), (90, 500)])
def test_the_centre_crop_is_torchvisions(height, width):
    image = make_image(1, height, width)
    expected = tv.center_crop(tv.resize(image, 256, tv.InterpolationMode.BILINEAR), [224, 224])
    ours = centre_crop(image, 224, "bilinear")
    assert np.array_equal(np.asarray(ours), np.asarray(expected))


def test_a_small_image_of_the_right_size_is_taken_whole():
    image = make_image(2, 32, 32)
    assert centre_crop(image, 32, "bilinear") is image


def test_accuracy_and_loss_are_counted_over_images(tmp_path):
    folder = scan_folder(write_folder(tmp_path / "val", classes=3, per_class=2))
    logits = [0.0, 2.0, 1.0]
    result = evaluate(ConstantLogits(logits), folder, student(), device=torch.device("cpu"))
    log_q = np.array(logits) - np.log(np.exp(logits).sum())
    assert result.top1 == pytest.approx(1 / 3)
    assert result.top5 == 1.0
    assert result.loss == pytest.approx(-log_q.mean(), rel=1e-5)
    assert (result.num_images, result.masked) == (6, 0)


def test_classes_are_matched_by_name_not_by_position(tmp_path):
    folder = scan_folder(write_folder(tmp_path / "val", classes=2, per_class=3))
    known = ("zebra", "class1", "class0")  # another order, one more
    result = evaluate(
        ConstantLogits([0.0, 0.0, 5.0]), folder, student(known), device=torch.device("cpu")
    )
    assert result.top1 == pytest.approx(0.5)


def test_unreadable_images_are_counted_and_left_out(tmp_path):
    root = write_folder(tmp_path / "val", classes=3, per_class=2)
    (root / "class0" / "image0.jpg").write_bytes(b"not a picture")
    result = evaluate(
        ConstantLogits([9.0, 0.0, 0.0]), scan_folder(root), student(), device=torch.device("cpu")
    )
    assert (result.num_images, result.masked) == (5, 1)
    assert result.top1 == pytest.approx(1 / 5)


class MeanColour(nn.Module):
    """Answers with the mean of each channel: every image its own."""

    def forward(self, x):
        return 9 * x.mean((2, 3))


def test_a_beton_is_scored_as_its_folder_whatever_the_batches_and_threads(tmp_path):
    root = write_folder(tmp_path / "val", classes=3, per_class=5)
    (root / "class0" / "image0.jpg").write_bytes(b"not a picture")
    make_image(5, 40, 50).save(root / "class1" / "kept.png")
    folder, beton = scan_folder(root), tmp_path / "val.beton"
    pack(folder, beton)
    common = {"student": student(), "device": torch.device("cpu")}
    whole = evaluate(MeanColour(), folder, batch_size=64, workers=1, **common)
    parts = evaluate(MeanColour(), scan_folder(beton), batch_size=2, workers=3, **common)
    assert (parts.top1, parts.num_images, parts.masked) == (whole.top1, 15, 1)
    assert parts.loss == pytest.approx(whole.loss, rel=1e-6)


def test_the_network_is_left_in_its_mode(tmp_path):
    folder = scan_folder(write_folder(tmp_path / "val", classes=3, per_class=1))
    model = ConstantLogits([0.0, 0.0, 0.0]).train()
    evaluate(model, folder, student(), device=torch.device("cpu"))
    assert model.training


def test_an_unknown_class_is_named(tmp_path):
    folder = scan_folder(write_folder(tmp_path / "val", classes=3, per_class=1))
    with pytest.raises(StoreMismatch, match="'class2'"):
        evaluate(
            ConstantLogits([0.0] * 3),
            folder,
            student(("class0", "class1", "other")),
            device=torch.device("cpu"),
        )


def test_unnamed_classes_need_equal_numbers(tmp_path):
    folder = scan_folder(write_folder(tmp_path / "val", classes=3, per_class=1))
    with pytest.raises(StoreMismatch, match="can't be matched"):
        evaluate(ConstantLogits([0.0] * 9), folder, student(None, 9), device=torch.device("cpu"))


def test_a_flat_folder_has_nothing_to_evaluate(tmp_path):
    make_image(0, 30, 30).save(tmp_path / "a.png")
    with pytest.raises(UsageError, match="no class folders"):
        evaluate(
            ConstantLogits([0.0] * 3), scan_folder(tmp_path), student(), device=torch.device("cpu")
        )
