"""`transfer probe`: what is extracted, what is chosen on what, and what is refused."""

import json
import shutil

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from conftest import write_folder
from PIL import Image
from torchvision import datasets
from training import write_teacher

from storage.errors import UsageError
from trainer.checkpoint import load_student
from transfer.cli import cli
from transfer.features import Extraction, Features, cached_features, extract
from transfer.images import FolderImages, open_labelled
from transfer.probe import ProbeSettings, choose_decay, draw_shots, few_shot, probe, split_rows
from transfer.probe_run import ProbeRequest, describe, run_probe

CPU = Extraction(torch.device("cpu"))


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    root = tmp_path_factory.mktemp("probe")
    write_teacher(root / "student.safetensors", scale=1.0)
    write_folder(root / "train", per_class=6)
    write_folder(root / "val", per_class=3, sides=(41, 80))
    return root


@pytest.fixture
def place(base, tmp_path):
    shutil.copytree(base, tmp_path / "here")
    return tmp_path / "here"


def request(place, **changes):
    settings = ProbeSettings(decays=(0.01, 1.0), ks=(1, 5))
    values = {"settings": settings, "device": "cpu", "workers": 0} | changes
    return ProbeRequest(
        student=place / "student.safetensors",
        **({"data": str(place / "train"), "val": str(place / "val")} | values),
    )


def cloud(per_class, spread=1.0, seed=0):
    rng = np.random.default_rng(seed)
    target = np.repeat(np.arange(3), per_class)
    values = np.eye(3, 5)[target] * 3 + spread * rng.normal(size=(len(target), 5))
    return Features(values.astype(np.float32), target, (), 0)


def test_the_head_makes_the_logits_out_of_the_features(base):
    model, config = load_student(base / "student.safetensors")
    images = open_labelled(str(base / "val"), "test")
    found = extract(model, config, images, CPU)
    small = Image.open(base / "val" / images.name(0)).convert("RGB")
    short, side = 27, config.input_size  # 24 / 0.875
    width, height = small.size
    scaled = (
        (short, int(short * height / width))
        if width <= height
        else (int(short * width / height), short)
    )
    small = small.resize(scaled, Image.Resampling.BILINEAR)
    left, top = round((scaled[0] - side) / 2), round((scaled[1] - side) / 2)
    pixels = np.asarray(small.crop((left, top, left + side, top + side)), dtype=np.float32)
    batch = torch.from_numpy((pixels / 255 - 0.5) / 0.25).permute(2, 0, 1)[None]
    with torch.no_grad():
        logits = model.eval()(batch)
        torch.testing.assert_close(model.fc(torch.from_numpy(found.values[:1])), logits)
    assert (found.values >= 0).all()  # after the ReLU


def test_features_are_computed_once_and_again_for_other_images(base, tmp_path):
    model, config = load_student(base / "student.safetensors")
    images = open_labelled(str(base / "val"), "test")
    first = cached_features(tmp_path, ("a", "b"), model, config, images, CPU)
    with torch.no_grad():
        model.conv1.weight.mul_(-1)
    kept = cached_features(tmp_path, ("a", "b"), model, config, images, CPU)
    other = cached_features(tmp_path, ("a", "c"), model, config, images, CPU)
    assert np.array_equal(kept.values, first.values)
    assert not np.array_equal(other.values, first.values)


def test_a_damaged_cache_is_computed_again(base, tmp_path, capsys):
    model, config = load_student(base / "student.safetensors")
    images = open_labelled(str(base / "val"), "test")
    first = cached_features(tmp_path, ("a", "b"), model, config, images, CPU)
    (path,) = tmp_path.iterdir()
    path.write_bytes(path.read_bytes()[:100])
    again = cached_features(tmp_path, ("a", "b"), model, config, images, CPU)
    assert np.array_equal(again.values, first.values)
    assert "computing it again" in capsys.readouterr().err


def test_every_class_with_two_images_is_on_both_sides_of_the_split():
    target = np.array([0] * 10 + [1] * 2 + [2])
    kept, held = split_rows(target, seed=3)
    assert sorted([*kept, *held]) == list(range(13))
    assert np.bincount(target[held], minlength=3).tolist() == [2, 1, 0]
    assert np.array_equal(split_rows(target, seed=3)[1], held)


def test_the_validation_images_choose_nothing():
    train, val = cloud(20, spread=2.0), cloud(10, seed=1)
    turned = Features(val.values, (val.target + 1) % 3, (), 0)
    settings = ProbeSettings(decays=(1e-3, 1e-1, 10.0))
    first, second = (probe(train, side, 3, settings).linear for side in (val, turned))
    assert (first.decay, first.held_out) == (second.decay, second.held_out)
    assert first.top1 != second.top1
    assert first.held_out[f"{first.decay:g}"] == max(first.held_out.values())


def test_one_image_a_class_leaves_nothing_to_choose_on():
    decay, held_out, note = choose_decay(cloud(1), 3, ProbeSettings(decays=(0.1, 1.0, 10.0)))
    assert (decay, held_out) == (1.0, {})
    assert "one image a class" in note


def test_few_shots_give_the_mean_and_the_sample_deviation_of_their_draws():
    train, val = cloud(8, spread=2.0), cloud(20, spread=2.0, seed=1)
    settings = ProbeSettings(fit="ridge", decays=(0.1,), seeds=4)
    for result in few_shot(train, val, 3, 2, settings):
        mean = sum(result.runs) / 4
        assert result.mean == pytest.approx(mean)
        variance = sum((run - mean) ** 2 for run in result.runs) / 3
        assert result.deviation == pytest.approx(variance**0.5)
        assert len(set(result.runs)) > 1


def test_shots_are_drawn_from_every_class_and_refused_where_a_class_has_fewer():
    target = np.repeat(np.arange(4), 5)
    rows = draw_shots(target, 4, 3, seed=0)
    assert np.bincount(target[rows]).tolist() == [3, 3, 3, 3]
    assert len(set(rows)) == 12
    with pytest.raises(UsageError, match="only 5 images"):
        draw_shots(target, 4, 6, seed=0)


def test_the_command_compares_with_the_untrained_network(place):
    arguments = ["probe", str(place / "student.safetensors"), "--data", str(place / "train"),
                 "--val", str(place / "val"), "--compare", "random", "--seed", "1", "--k", "3,100",
                 "--fit", "ridge", "--shots", "2", "--device", "cpu", "--json"]  # fmt: skip
    result = CliRunner().invoke(cli, arguments)
    assert result.exit_code == 0, result.output
    written = json.loads((place / "probe" / "probe.json").read_text())
    assert written["networks"].keys() == {"student", "random"}
    assert written["networks"]["student"]["knn"].keys() == {"3", "18"}  # 100 is more than there are
    assert "nothing was chosen on --val" in written["choice"]
    again = CliRunner().invoke(cli, arguments)
    assert isinstance(again.exception, UsageError)
    assert "--overwrite" in str(again.exception)


def test_masked_shared_and_enlarged_images_are_told(place):
    (place / "train" / "class0" / "broken.jpg").write_bytes(b"no image")
    shutil.copy(place / "train" / "class1" / "image0.jpg", place / "val" / "class1" / "same.jpg")
    Image.new("RGB", (9, 9)).save(place / "val" / "class0" / "tiny.png")
    shutil.rmtree(place / "val" / "class2")
    report = run_probe(request(place))
    text = describe(report)
    assert "1 images of --data are masked: class0/broken.jpg" in text
    assert "1 images are in both" in text
    assert "1 images of --val are smaller than the student's 24 pixels" in text
    assert "1 of 3 classes have no validation images" in text


def test_classes_that_training_lacks_are_refused(place):
    (place / "val" / "class2").rename(place / "val" / "zebra")
    with pytest.raises(UsageError, match=r"1 classes that .* lacks, such as 'zebra'"):
        run_probe(request(place))


def test_one_class_is_refused(place):
    for name in ("class1", "class2"):
        shutil.rmtree(place / "train" / name)
    with pytest.raises(UsageError, match="one class"):
        run_probe(request(place))


def test_images_without_classes_and_images_that_all_fail_are_refused(place, tmp_path):
    (tmp_path / "flat").mkdir()
    shutil.copy(place / "val" / "class0" / "image0.jpg", tmp_path / "flat" / "a.jpg")
    with pytest.raises(UsageError, match="no class folders"):
        run_probe(request(place, val=str(tmp_path / "flat")))
    for path in (place / "val").rglob("*.jpg"):
        path.write_bytes(b"")
    with pytest.raises(UsageError, match="none of the 9 images"):
        run_probe(request(place))


def test_tiny_imagenet_val_is_read_by_its_annotations(place):
    val = place / "tiny"
    (val / "images").mkdir(parents=True)
    lines = []
    for i, name in enumerate(["class2", "class0", "class2"]):
        shutil.copy(place / "val" / name / "image0.jpg", val / "images" / f"val_{i}.JPEG")
        lines.append(f"val_{i}.JPEG\t{name}\t0\t0\t10\t10\n")
    (val / "val_annotations.txt").write_text("".join(lines))
    found = open_labelled(str(val), "test")
    assert [found.classes[t] for t in found.targets] == ["class2", "class0", "class2"]
    result = run_probe(request(place, val=str(val))).values
    assert result["val"]["images"] == 3
    (val / "val_annotations.txt").write_text("".join(lines[:2]))
    with pytest.raises(UsageError, match="1 images have no line"):
        open_labelled(str(val), "test")
    (val / "val_annotations.txt").write_text("val_0.JPEG class2\n")
    with pytest.raises(UsageError, match="line 1 is"):
        open_labelled(str(val), "test")


def test_stl10_is_read_from_its_published_files(tmp_path, monkeypatch):
    folder = tmp_path / "stl10_binary"
    folder.mkdir()
    rng = np.random.default_rng(0)
    raw = rng.integers(0, 256, (2, 3, 96, 96), dtype=np.uint8)
    (folder / "train_X.bin").write_bytes(raw.tobytes())
    (folder / "train_y.bin").write_bytes(bytes([1, 10]))  # classes count from 1
    (folder / "class_names.txt").write_text("\n".join(f"name{i}" for i in range(10)))
    monkeypatch.setattr(datasets.STL10, "_check_integrity", lambda self: True)
    found = open_labelled(f"stl10:{tmp_path}", "train")
    assert found.targets == (0, 9)
    # the published files hold columns, one after the other
    assert np.array_equal(np.asarray(found.decode(1)), raw[1].transpose(2, 1, 0))


def test_stl10_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(UsageError, match="stl10_binary"):
        open_labelled(f"stl10:{tmp_path}", "train")


def test_settings_that_make_no_sense_are_refused():
    for wrong in ({"ks": (0,)}, {"shots": (0,)}, {"decays": (-1.0,)}, {"fit": "svm"}):
        with pytest.raises(UsageError):
            ProbeSettings(**wrong)


def test_whole_images_lose_no_border(base):
    model, config = load_student(base / "student.safetensors")
    rows = FolderImages(open_labelled(str(base / "val"), "test").folder)
    whole = extract(model, config, rows, Extraction(torch.device("cpu"), whole=True))
    assert not np.allclose(whole.values, extract(model, config, rows, CPU).values)
