"""What each library says of a teacher: architecture, weights, data config, licence.

Every function takes a name and the weights file given for it (or None) and returns the settings
that labelgen.teachers.TeacherSpec is made of: `library`, `version`, `arch`, `canonical`,
`weights`, `licence`, `outputs` (width of the head, background classes included), and what the
library knows of `input_size`, `mean`, `std`, `interpolation`, `class_offset`, `classes`,
`revision`; `imagenet` where a head of ImageNet's width is in ImageNet's class order.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from labelgen.fitting import infer_num_classes
from labelgen.grammar import ALIASES, FOLDER, HUB, PLAIN, TIMM, TORCHVISION, TeacherName
from labelgen.weights import WeightsFile
from storage.errors import TeacherError, UsageError

FOLDER_WEIGHTS = "model.safetensors"
_FOLDER_CONFIG = "config.json"
_COMMIT = re.compile(r"[0-9a-f]{40}")
BACKGROUND_HEAD = 1001  # ImageNet-1k behind TensorFlow's background class


def library_settings(name: TeacherName, file: WeightsFile | None) -> dict[str, Any]:
    """The settings of one network, see above.

    Raises:
        UsageError: an unknown name (with the nearest ones), or no weights for it.
        TeacherError: the weights file belongs to another architecture, or a repository or folder
            that is no timm model.
    """
    return _LIBRARIES[name.source](name, file)


def _torchvision(name: TeacherName, file: WeightsFile | None) -> dict[str, Any]:
    import torchvision
    from torchvision import models

    from trainer.models import unknown_name

    known = models.list_models(module=models)
    if name.name not in known:
        raise unknown_name("torchvision teacher", name.name, known, "(tv:NAME)")
    choices = models.get_model_weights(name.name)
    tag = name.weights or choices.DEFAULT.name
    if tag not in choices.__members__:
        raise unknown_name(f"weights of tv:{name.name}", tag, list(choices.__members__))
    transforms = choices[tag].transforms()
    arch = f"tv:{name.name}"
    return {
        "library": "torchvision",
        "version": torchvision.__version__,
        "arch": arch,
        "canonical": f"{arch}@{tag}",
        "weights": tag,
        # torchvision states a licence for few of its weights
        "licence": choices[tag].meta.get("license", "unknown"),
        "input_size": transforms.crop_size,
        "mean": transforms.mean,
        "std": transforms.std,
        "interpolation": transforms.interpolation.value,
        "outputs": _file_outputs(file, arch) or len(choices[tag].meta["categories"]),
        "imagenet": True,
    }


def _timm(name: TeacherName, file: WeightsFile | None) -> dict[str, Any]:
    import timm

    from trainer.models import unknown_name

    if not timm.is_model(name.name.partition(".")[0]):
        raise unknown_name("timm teacher", name.name, timm.list_models(), "(timm:NAME)")
    try:
        config = timm.get_pretrained_cfg(name.name)
    except RuntimeError:  # the architecture exists, the tag does not
        config = None
    if config is None:
        architecture = name.name.partition(".")[0]
        tags = timm.list_pretrained(f"{architecture}.*") or [architecture]
        raise unknown_name("timm teacher", name.name, tags, "(timm:NAME)")
    if not file and not config.has_weights:
        raise UsageError(
            f"timm:{name.name} has no published weights: give a file with --weights, or one of "
            f"timm's pretrained names ({', '.join(timm.list_pretrained()[:3])} ...)"
        )
    arch = f"timm:{name.name.partition('.')[0]}"
    full = f"{config.architecture}.{config.tag}" if config.tag else name.name
    settings = _timm_config(config.to_dict())  # type: ignore[no-untyped-call]
    outputs = _file_outputs(file, arch) or settings["outputs"]
    if outputs != settings["outputs"]:  # another head has no background class to be known of
        settings["class_offset"] = settings["classes"] = None
    return settings | {
        "arch": arch if file else f"timm:{full}",
        "canonical": f"timm:{full}",
        "weights": full,
        "outputs": outputs,
    }


def _timm_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Settings in a timm configuration; its `num_classes` leaves out `label_offset` classes."""
    import timm
    from timm.data import resolve_data_config

    data = resolve_data_config(pretrained_cfg=dict(config))  # type: ignore[no-untyped-call]
    offset = config.get("label_offset")
    return {
        "library": "timm",
        "version": timm.__version__,
        "licence": config.get("license") or "unknown",
        "input_size": data["input_size"],
        "mean": data["mean"],
        "std": data["std"],
        "interpolation": data["interpolation"],
        "outputs": int(config.get("num_classes", 1000)) + (offset or 0),
        "class_offset": offset,
        "classes": config.get("label_names"),
        "imagenet": True,
    }


def _folder(name: TeacherName, file: WeightsFile | None) -> dict[str, Any]:
    folder = Path(name.name)
    _refuse_weights(name, file)
    for needed in (_FOLDER_CONFIG, FOLDER_WEIGHTS):
        if not (folder / needed).is_file():
            raise UsageError(
                f"teacher {name}: {folder} has no {needed}; expected a timm model folder with "
                f"{_FOLDER_CONFIG} and {FOLDER_WEIGHTS} (pickled weights are never read there)"
            )
    settings = _saved_config(folder / _FOLDER_CONFIG)
    return settings | {
        "canonical": f"local-dir:{folder.resolve().name}",
        "weights": f"local-dir:{folder}",
        "short_name": folder.resolve().name,
    }


def _hub(name: TeacherName, file: WeightsFile | None) -> dict[str, Any]:
    """A repository's config.json is fetched (or found in the cache) to know its commit."""
    from huggingface_hub import hf_hub_download

    _refuse_weights(name, file)
    try:
        config = Path(hf_hub_download(name.name, _FOLDER_CONFIG, revision=name.weights))
    except (OSError, ValueError, RuntimeError) as error:  # offline, unknown or private repository
        raise TeacherError(
            f"teacher {name}: its {_FOLDER_CONFIG} is not on this machine and can't be fetched "
            f"({first_line(error)}): check the repository's name and revision, or run once where "
            "there is a network"
        ) from error
    revision = config.parent.name
    if not _COMMIT.fullmatch(revision):
        raise TeacherError(f"teacher {name}: the Hub did not say which commit {config} is of")
    pinned = f"hf-hub:{name.name}@{revision}"
    return _saved_config(config) | {
        "canonical": pinned,
        "weights": pinned,
        "revision": revision,
        "short_name": name.name.rpartition("/")[2],
    }


def _refuse_weights(name: TeacherName, file: WeightsFile | None) -> None:
    if file is not None:
        raise UsageError(
            f"teacher {name} brings its own weights; for those of {file.path} give "
            "--teacher timm:NAME --weights FILE"
        )


def _saved_config(path: Path) -> dict[str, Any]:
    """Settings in the config.json that timm saves beside a model."""
    import timm

    from trainer.models import unknown_name

    try:
        saved = json.loads(path.read_text())
        architecture = saved["architecture"]
        settings = _timm_config(_flat_config(saved))
    except (KeyError, TypeError, ValueError, AttributeError, AssertionError, OSError) as error:
        raise TeacherError(
            f"{path} is not a timm model's configuration ({first_line(error)}); expected "
            "architecture and pretrained_cfg, as timm.models.save_for_hf writes them"
        ) from error
    if not timm.is_model(architecture):
        raise unknown_name(f"timm network in {path}:", str(architecture), timm.list_models())
    return settings | {"arch": f"timm:{architecture}"}


def _flat_config(saved: Mapping[str, Any]) -> dict[str, Any]:
    """The pretrained configuration, with what stands above it in the file; older files have no
    such part, and everything at the top."""
    config = dict(saved.get("pretrained_cfg", saved))
    config |= {key: saved[key] for key in ("num_classes", "label_names") if key in saved}
    config.setdefault("label_names", config.get("labels"))
    side = saved.get("model_args", {}).get("img_size")
    if side is not None and config.get("fixed_input_size"):
        config["input_size"] = (3, side, side) if isinstance(side, int) else (3, *side)
    return config


def _own(name: TeacherName, file: WeightsFile | None) -> dict[str, Any]:
    from importlib.metadata import PackageNotFoundError, version

    from trainer.models import BRANCHED, EMBEDDERS, names, unknown_name

    if name.name not in names() and not name.name.startswith((BRANCHED, *EMBEDDERS)):
        from torchvision import models

        torchvision_names = (f"tv:{each}" for each in models.list_models(module=models))
        known = sorted({*ALIASES, *names(), *torchvision_names})
        raise unknown_name("teacher", name.name, known, "(see labelgen teachers)")
    if not file:
        raise UsageError(
            f"teacher {name.name} has no published weights: give a file with --weights"
        )
    try:
        release = version("teachonce")
    except PackageNotFoundError:  # run from a source tree that is not installed
        release = "unknown"
    return {
        "library": "teachonce",
        "version": release,
        "arch": name.name,
        "licence": "unknown",
        "outputs": _file_outputs(file, name.name),
    }


def _file_outputs(file: WeightsFile | None, arch: str) -> int | None:
    """Width of the head of a weights file: what it says, else what its tensors show."""
    if file is None:
        return None
    if "num_classes" in file.metadata:
        return int(file.metadata["num_classes"]) + int(file.metadata.get("class_offset", 0))
    from trainer.models import create
    from trainer.models.embedders import headless_width

    width = headless_width(arch, create)
    return infer_num_classes(file, partial(create, arch), arch) if width is None else width


def first_line(error: Exception, most: int = 120) -> str:
    """An error of another library, cut to what fits in one line."""
    lines = str(error).strip().splitlines()
    text = f": {lines[0][:most]}" if lines else ""
    return f"{type(error).__name__}{text}"


_LIBRARIES: dict[str, Callable[[TeacherName, WeightsFile | None], dict[str, Any]]] = {
    TORCHVISION: _torchvision,
    TIMM: _timm,
    HUB: _hub,
    FOLDER: _folder,
    PLAIN: _own,
}
