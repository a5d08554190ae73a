"""Models in the form of the Hugging Face hub: `config.json` and `model.safetensors` in a folder or a repository.

`huggingface_hub` and `safetensors` come with timm, and are imported when they are used.
"""

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

from torch import nn

CONFIG, WEIGHTS = "config.json", "model.safetensors"


def save(model: nn.Module, config: Any, folder: str | os.PathLike[str]) -> None:
    """Write the model and its config (a dataclass) into a folder, which is made if it is not there."""
    from safetensors.torch import save_file

    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    save_file(tensors, _new(target / WEIGHTS), metadata={"format": "pt"})
    _new(target / CONFIG).write_text(json.dumps(dataclasses.asdict(config), indent=2) + "\n")
    for name in (WEIGHTS, CONFIG):
        _new(target / name).replace(target / name)


def read_config(source: str, **download: Any) -> dict[str, Any]:
    """The fields of the config in a folder or repository; ValueError if there is none."""
    path = _file(source, CONFIG, download)
    try:
        fields = json.loads(path.read_text())
    except ValueError:
        fields = None
    if not isinstance(fields, dict) or "num_classes" not in fields:
        raise ValueError(f"{path}: is not the config of a segmentation model; save_pretrained writes one")
    return fields


def load_weights(model: nn.Module, source: str, **download: Any) -> None:
    """The weights of a folder or repository, all of them; ValueError where they are not those of the model."""
    from safetensors.torch import load_file

    path = _file(source, WEIGHTS, download)
    try:
        model.load_state_dict(load_file(path))
    except RuntimeError as error:
        raise ValueError(f"{path}: {' '.join(str(error).split())[:200]}") from None


def _file(source: str, name: str, download: dict[str, Any]) -> Path:
    if Path(source).is_dir():
        path = Path(source) / name
        if not path.is_file():
            raise ValueError(f"{path}: no such file; the folder is not one of save_pretrained")
        return path
    if Path(source).is_absolute() or source.startswith("."):
        raise ValueError(f"{source}: no such folder")
    from huggingface_hub import hf_hub_download

    return Path(hf_hub_download(source, name, **download))


def _new(path: Path) -> Path:
    return path.with_name(f".{path.name}.new")
