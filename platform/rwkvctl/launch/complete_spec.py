"""What a spec leaves open, filled in from the settings of this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

from rwkvctl.base.errors import UserError
from rwkvctl.config import settings
from rwkvctl.config.specs.jobs import JobSpec, TrainingSpec
from rwkvctl.config.specs.places import check_mirrors
from rwkvctl.registry.references import is_weights_file

AnySpec = TypeVar("AnySpec", bound=JobSpec)
AnyTraining = TypeVar("AnyTraining", bound=TrainingSpec)


def with_data(spec: AnyTraining, machine: settings.Settings) -> AnyTraining:
    """Where the data is (by default its place under the data root), and what it is called."""
    path = spec.data.path
    if path is None:
        if spec.data.dataset is None:
            raise UserError("data: this recipe is for any data set; say which with --data FOLDER")
        path = below(machine.data_root, spec.data.dataset)
    path = settings.absolute(path)
    update = {"path": path, "dataset": spec.data.dataset or dataset_of(path)}
    return with_weights(spec.model_copy(update={"data": spec.data.model_copy(update=update)}))


def below(root: str, name: str) -> str:
    """A path in a folder or under a URL."""
    return f"{root.rstrip('/')}/{name}" if "://" in root else str(Path(root) / name)


def with_weights(spec: AnyTraining) -> AnyTraining:
    """A file of encoder weights by its absolute path."""
    model: Any = getattr(spec, "model", None)
    weights = getattr(model, "encoder_weights", None)
    if weights is None or not is_weights_file(weights):
        return spec
    return spec.model_copy(update={"model": model.model_copy(update={"encoder_weights": settings.absolute(weights)})})


def dataset_of(path: str) -> str:
    """What a prepared data set is, for registry names and studies."""
    from rwkvctl.data.store.manifest import Manifest

    return Manifest.load(path).identity


def on_machine(spec: AnySpec, machine: settings.Settings) -> AnySpec:
    """Cluster, tracking and storage of a job."""
    own = spec.cluster.gpus_per_node  # 0 is said, too
    cluster = {
        "address": spec.cluster.address or (machine.address if spec.cluster.launcher == "ray" else None),
        "gpus_per_node": machine.gpus_per_node if own is None else own,
    }
    tracking = {"uri": spec.tracking.uri or machine.tracking_uri}
    if spec.tracking.mirrors is None:  # none at all is said, too
        tracking["mirrors"] = check_mirrors(machine.mirrors or "")
    return spec.model_copy(
        update={
            "cluster": spec.cluster.model_copy(update=cluster),
            "tracking": spec.tracking.model_copy(update=tracking),
            "storage": settings.absolute(spec.storage or machine.storage),
        }
    )
