"""The model that is served, and how it becomes the next one while requests go on."""

from __future__ import annotations

import re
import threading
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rwkvctl.base.errors import JobFailedError, UserError
from rwkvctl.base.uris import mask
from rwkvctl.models import bundle
from rwkvctl.models.ensemble import Member, Segmenter
from rwkvctl.models.segmenting import size_seen
from rwkvctl.registry.references import find_model_folder
from rwkvctl.serving.batching import Batched, useful_sizes
from rwkvctl.serving.refusals import PATH

FOLLOWED = re.compile(r"models:/[^/@]+(@[^/@]+|/latest)")
"""References that can come to mean another version."""


@dataclass(frozen=True)
class Served:
    """A version that is in memory. A request that has begun with it ends with it."""

    reference: str
    exact: str
    """With the version's number in place of the alias."""
    version: str
    """Of a registered model its number; of any other the first characters of its weights' hash."""
    segmenter: Segmenter
    network: Batched

    @property
    def headers(self) -> dict[str, str]:
        return {"X-Model-Version": self.version, "X-Model-Weights": self.segmenter.info.weights_sha256}

    def described(self) -> dict[str, Any]:
        """What `/model` says of it."""
        info = self.segmenter.info
        return {
            "reference": shown(self.reference),
            "version": self.version,
            "weights_sha256": info.weights_sha256,
            "model": info.model.get("name", ""),
            "classes": info.classes,
            "input": {
                "kind": kind_of_input(info),
                "channels": info.channels,
                "seen_at": size_seen(info),
                **({} if info.volumes is None else {"spacing": info.volumes.spacing}),
                "intensity": info.intensity,
                "orientation": info.orientation,
            },
            "dataset": info.dataset,
            "batches_of": sorted(self.network.sizes),
        }


def kind_of_input(info: bundle.BundleInfo) -> str:
    if info.volumes is not None:
        return "scans"
    return "colour images" if info.image_kind == "rgb8" else "scans, and grey images"


def shown(reference: str) -> str:
    """How a model is called in answers: of a path its last name alone, because answers leave this machine."""
    return reference if reference.startswith("models:/") else Path(reference).name


def pinned(reference: str, tracking_uri: str) -> str:
    """`models:/name/4` for an alias, or `latest`, as it is now; any other reference as it is."""
    if not FOLLOWED.fullmatch(reference):
        return reference
    from rwkvctl.registry.download import pinned

    return pinned(reference, tracking_uri)


def load(
    reference: str, exact: str, storage: str, tracking_uri: str, *, device: str, batch: int, same_bits: bool
) -> Served:
    """Bring a version into memory. UserError where it is not there or makes no masks.

    Batches of several requests have at most `batch` slices, and sizes that pay; with `same_bits` only such as change no
    bit of a mask.
    """
    from rwkv_unet import fuse_for_inference

    folder: Path = find_model_folder(exact, storage, tracking_uri)
    network, info = bundle.load(folder, device, kind="segmentation")
    network = fuse_for_inference(network)
    size = size_seen(info)
    shape = (info.channels, *((size, size) if isinstance(size, int) else size))
    batched = Batched(network, useful_sizes(network, shape, batch, same_bits=same_bits)).eval()
    version = exact.rpartition("/")[2] if exact.startswith("models:/") else info.weights_sha256[:12]
    return Served(reference, exact, version, Segmenter([Member(batched, info)]), batched)


class Follower:
    """Loads the version that an alias points to beside the one that is served, and then lets it take its place.

    What goes wrong on the way leaves the old one where it is: it is told once, and tried again at the next look.
    """

    def __init__(self, exact: str, served: Served, look: Callable[[], str], load: Callable[[str], Served]):
        self.served, self.problem = served, ""
        self._exact, self._look, self._load = exact, look, load
        self._end = threading.Event()

    def step(self) -> None:
        """One look."""
        try:
            exact = self._look()
            if exact != self._exact:
                self.served, self._exact = self._load(exact), exact
            self.problem = ""
        except (UserError, JobFailedError) as error:
            self.problem = PATH.sub("...", mask(" ".join(str(error).split())))
        except Exception as error:  # a server must outlive whatever its registry does
            traceback.print_exc()
            self.problem = f"{type(error).__name__} at the registry"

    def follow(self, every: float) -> None:
        """Look again and again, in a thread of its own."""

        def run() -> None:
            while not self._end.wait(every):
                self.step()

        threading.Thread(target=run, name="follow-alias", daemon=True).start()

    def close(self) -> None:
        self._end.set()
