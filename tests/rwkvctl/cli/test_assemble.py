"""Which recipe trains a data set: that of what was prepared, wherever it lies and whatever it is called."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from rwkvctl.cli import assemble
from rwkvctl.config.specs.jobs import FinetuneSpec
from rwkvctl.data.convert import synth
from rwkvctl.data.convert.prepare import prepare
from rwkvctl.data.store.manifest import Manifest
from rwkvctl.registry import release


def finetune(recipe: str | None, data: Path) -> FinetuneSpec:
    spec = assemble.training_spec("finetune", recipe, str(data), {}, [], None)
    assert isinstance(spec, FinetuneSpec)
    return spec


@pytest.fixture(scope="module")
def busi(tmp_path_factory: pytest.TempPathFactory) -> Path:
    source = synth.write("busi", tmp_path_factory.mktemp("raw") / "busi", n=12, size=32)
    return prepare("busi", [source], tmp_path_factory.mktemp("shards") / "b", allow_partial=True).root


def test_a_data_set_is_called_by_what_it_is(busi: Path, binary: Manifest, polyps: Path, tmp_path: Path):
    assert Manifest.load(busi).dataset == "busi"
    assert binary.dataset == "binary"  # of one's own images, the folder's name
    with_name = prepare("folder", [polyps], tmp_path / "x", name="Größe 3")
    assert with_name.dataset == with_name.identity == "groe_3"


def test_the_recipe_follows_what_was_prepared(busi: Path, tmp_path: Path):
    spec = finetune(None, busi)
    assert spec.data.dataset == "busi"
    assert assemble.recipe_line("finetune", None, str(busi), None) == f"recipe busi: {busi} was prepared from busi"
    moved = shutil.copytree(busi, tmp_path / "somewhere")
    assert finetune(None, moved).model_copy(update={"data": None}) == spec.model_copy(update={"data": None})
    assert release.registered_name(finetune(None, moved)) == "rwkv_unet_busi"


def test_a_name_of_ones_own_changes_neither_recipe_nor_registry_name(tmp_path: Path):
    source = synth.write("busi", tmp_path / "raw", n=12, size=32)
    made = prepare("busi", [source], tmp_path / "b", name="ward3", allow_partial=True)
    assert (made.dataset, made.identity) == ("ward3", "busi")
    assert finetune(None, made.root).data.dataset == "busi"
    assert finetune("binary", made.root).data.dataset == "busi"


def test_images_of_ones_own_take_the_generic_recipe(polyps: Path, tmp_path: Path):
    made = prepare("folder", [polyps], tmp_path / "clinicdb", seeds=[41])
    spec = finetune(None, made.root)
    line = f"recipe binary: {made.root} was prepared from folder, which has no recipe of its own, with 2 classes"
    assert assemble.recipe_line("finetune", None, str(made.root), None) == line
    assert spec.data.dataset == "clinicdb"


def test_another_recipe_than_the_datas_own_is_said(busi: Path):
    line = f"recipe binary: as you said; {busi} was prepared from busi, whose own is busi"
    assert assemble.recipe_line("finetune", "binary", str(busi), None) == line
    assert assemble.recipe_line("finetune", "busi", str(busi), None) is None
    assert (
        assemble.recipe_line("finetune", "busi", "nowhere", None) is None
    )  # said with more help when the job is checked
    assert assemble.recipe_line("finetune", None, str(busi), "RUN") is None  # which goes on with its own
