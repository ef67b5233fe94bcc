"""The `labelgen` command line: what it prints, where, and its exit codes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import make_image
from labelling import write_weights

from labelgen.cli import main
from storage.store import LabelStore


def run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    """Exit code of `labelgen ARGUMENTS`."""
    monkeypatch.setattr(sys, "argv", ["labelgen", *map(str, arguments)])
    with pytest.raises(SystemExit) as caught:
        main()
    return int(caught.value.code or 0)


def test_run_labels_seals_and_reports_json_alone_on_stdout(
    tmp_path: Path,
    image_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TEACHONCE_DATA", str(image_folder))
    (image_folder / "class1" / "broken.jpg").write_bytes(b"x")
    weights = write_weights(tmp_path / "w.safetensors")
    code = run(monkeypatch, "run", "--teacher", weights, "--crops", 3, "--workers", 1, "--json")
    output = capsys.readouterr()
    report = json.loads(output.out)
    assert code == 0
    store = LabelStore.open(tmp_path / "store.zarr")
    assert store.is_sealed
    assert store.spec.num_views == 3
    assert report["images"] == 13
    assert report["crops"] == report["new_crops"] == 36
    assert list(report["masked"]) == ["class1/broken.jpg"]
    assert report["measured"]["top1_agreement"] is not None
    assert store.local_data_folder() == image_folder.resolve()
    assert "labelling: 39/39 crops" in output.err
    assert run(monkeypatch, "run", "--teacher", weights, "--crops", 3) == 0
    output = capsys.readouterr()
    assert "nothing to label" in output.err
    assert report["root"] in output.out


def test_padded_crops_can_be_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "data").mkdir()
    make_image(0, 16, 16).save(tmp_path / "data" / "a.png")
    weights = write_weights(tmp_path / "w.safetensors")
    monkeypatch.chdir(tmp_path)
    options = (
        "run",
        "--teacher",
        weights,
        "--views",
        "padded-crop",
        "--padding",
        1,
        "--workers",
        1,
    )
    assert run(monkeypatch, *options, "--crops", 19) == 2
    assert "at most --crops 18" in capsys.readouterr().err
    assert run(monkeypatch, *options, "--crops", 18) == 0
    assert LabelStore.open("store.zarr").spec.pixel.padding == 1


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--teacher", "r125", "--data", "IMAGES"], 2, "unknown teacher 'r125'; nearest: r152"),
        (["--teacher", "WEIGHTS", "--data", "nowhere"], 2, "no image folder at nowhere"),
        (["--teacher", "WEIGHTS", "--data", "EMPTY"], 2, "holds no images"),
        (["--teacher", "none.safetensors", "--data", "IMAGES"], 2, "no weights file at"),
        (["--teacher", "WEIGHTS", "--data", "IMAGES", "--top-k", "8"], 2, "top-k is 8"),
        (["--teacher", "WEIGHTS", "--data", "IMAGES", "--scale", "1", "0.5"], 2, "scale is"),
        (["--teacher", "WEIGHTS", "--data", "IMAGES", "--device", "cuda:9"], 2, "cuda:9"),
        (["--teacher", "resnet20", "--weights", "WEIGHTS", "--data", "IMAGES"], 1,
         "does not fit resnet20: tensor"),
    ],
)  # fmt: skip
def test_misuse_is_one_line_and_its_own_exit_code(
    tmp_path: Path,
    image_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    code: int,
    message: str,
) -> None:
    (tmp_path / "empty").mkdir()
    weights = write_weights(tmp_path / "w.safetensors")
    places = {"IMAGES": image_folder, "EMPTY": tmp_path / "empty", "WEIGHTS": weights}
    filled = [places.get(argument, argument) for argument in arguments]
    monkeypatch.chdir(tmp_path)
    assert run(monkeypatch, "run", "--workers", 1, *filled) == code
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.startswith("labelgen: error: ")
    assert message in output.err
    assert output.err.count("\n") == 1
    assert not (tmp_path / "store.zarr").exists()


def test_other_settings_need_overwrite(
    tmp_path: Path,
    image_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    weights = write_weights(tmp_path / "w.safetensors")
    options = ("run", "--teacher", weights, "--data", image_folder, "--workers", 1)
    assert run(monkeypatch, *options, "--crops", 1) == 0
    assert run(monkeypatch, *options, "--crops", 2, "--seed", 4) == 1
    errors = capsys.readouterr().err
    assert "num_views is 2, not 1" in errors
    assert "seed is 4, not 0" in errors
    assert run(monkeypatch, *options, "--crops", 2, "--seed", 4, "--overwrite") == 0
    assert LabelStore.open("store.zarr").spec.seed == 4


def test_class_names_from_a_file_let_agreement_be_measured(
    tmp_path: Path,
    image_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    weights = write_weights(tmp_path / "w.safetensors", classes=None)
    Path("names.txt").write_text("".join(f"class{i}\n" for i in range(7)))
    options = ("run", "--teacher", weights, "--data", image_folder, "--crops", 1, "--workers", 1)
    assert run(monkeypatch, *options, "--out", "a") == 0
    assert "agreement  not measured" in capsys.readouterr().out
    assert run(monkeypatch, *options, "--out", "b", "--class-names", "names.txt") == 0
    assert "% of crops have the image's own class first" in capsys.readouterr().out


def test_teachers_lists_every_alias(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, "teachers", "--json") == 0
    aliases = json.loads(capsys.readouterr().out)["aliases"]
    assert aliases["r152"] == "tv:resnet152@IMAGENET1K_V2"
    assert run(monkeypatch, "teachers") == 0
    assert all(alias in capsys.readouterr().out for alias in ["r18"])


def test_help_loads_no_heavy_library() -> None:
    code = (
        "import sys; from labelgen.cli import cli\n"
        "try: cli(['run', '--help'])\n"
        "except SystemExit: pass\n"
        "print([m for m in ('torch', 'zarr', 'PIL', 'timm', 'numpy') if m in sys.modules])"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "--crops" in shown.stdout
    assert shown.stdout.splitlines()[-1] == "[]"
