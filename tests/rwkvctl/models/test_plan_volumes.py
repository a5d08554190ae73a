"""What is settled of a training on volumes, and the lines for what cannot be."""

from __future__ import annotations

from typing import Any

import pytest

from rwkvctl.base.errors import UserError
from rwkvctl.config.specs.jobs import FinetuneSpec
from rwkvctl.config.specs.load import build, merge, read_recipe
from rwkvctl.data.convert import synth
from rwkvctl.data.convert.prepare import prepare
from rwkvctl.data.store.manifest import Manifest
from rwkvctl.launch import preflight
from rwkvctl.models import build as networks
from rwkvctl.models.plan_volumes import planned, volume_input


@pytest.fixture(scope="session")
def spaced(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    """Volumes of 5 x 60 x 64 voxels of 4 x 1.25 x 1.5 mm."""
    raw = tmp_path_factory.mktemp("raw") / "spaced"
    synth.write("decathlon", raw)
    return prepare("decathlon", [raw], tmp_path_factory.mktemp("shards") / "spaced", allow_partial=True)


def spec_of(manifest: Manifest, **volumes: Any) -> FinetuneSpec:
    fields = {"data": {"path": str(manifest.root)}, "volumes": volumes}
    return build(FinetuneSpec, merge(read_recipe("volumes"), fields), "volumes")


def test_all_is_settled_once_and_what_is_said_stays(spaced: Manifest):
    spec = planned(spec_of(spaced), spaced)
    assert spec.volumes is not None
    assert spec.volumes.spacing == (4.0, 1.25, 1.5)
    assert spec.volumes.patch == (5, 64, 64)
    assert planned(spec, spaced) == spec
    assert networks.macs(
        networks.segmentation_network(spec.model, spaced.classes, 1), "x", networks.input_shape(spec, 1)
    ).true
    own = planned(spec_of(spaced, spacing=[4, 2.5, 3], patch=[4, 32, 48]), spaced)
    assert own.volumes is not None
    assert (own.volumes.spacing, own.volumes.patch) == ((4.0, 2.5, 3.0), (4, 32, 48))
    found = volume_input(own)
    assert found is not None
    assert (found.patch, found.spacing, found.overlap) == ((4, 32, 48), (4.0, 2.5, 3.0), 0.5)
    small = planned(spec_of(spaced, patch_voxels=6000), spaced).volumes
    assert small is not None
    assert small.patch == (3, 32, 48)


def test_of_data_without_spacing_the_thickness_of_slices_counts(cardiac: Manifest):
    cubes, slabs = (planned(spec_of(cardiac, thickness=each), cardiac) for each in (1, 8))
    for spec in (cubes, slabs):
        assert spec.volumes is not None
        assert spec.volumes.spacing == "native"
        assert spec.volumes.patch[0] == 3
    with pytest.raises(
        UserError, match=r"volumes.spacing \[4.0, 1.0, 1.0\]: 4 of 4 training cases have no spacing, as "
    ):
        planned(spec_of(cardiac, spacing=[4, 1, 1]), cardiac)


def test_a_spacing_that_is_no_spacing_of_a_body_is_refused(spaced: Manifest):
    with pytest.raises(UserError, match=r"spacing \[0.001, 0.001, 0.001\]: .* would have 1.4e\+14 voxels, and its own"):
        planned(spec_of(spaced, spacing=[0.001, 0.001, 0.001]), spaced)


def test_a_patch_that_no_memory_holds_is_refused(spaced: Manifest):
    with pytest.raises(UserError, match=r"volumes.patch \[16, 32000, 32000\]: has 1.6e\+10 voxels; choose a smaller"):
        planned(spec_of(spaced, patch=[16, 32000, 32000]), spaced)


def test_an_encoder_is_refused_before_a_run_is_made(spaced: Manifest):
    spec = spec_of(spaced)
    spec = spec.model_copy(update={"model": spec.model.model_copy(update={"encoder_weights": "RUN"})})
    with pytest.raises(UserError, match=r"model.encoder_weights: rwkv_unet_3d_t has no encoder .*; leave it out$"):
        preflight.check_options(planned(spec, spaced), spaced)


def test_images_are_no_volumes(binary: Manifest):
    with pytest.raises(UserError, match=r"model.name rwkv_unet_3d_t: takes volumes, and data .* holds images; choose"):
        planned(spec_of(binary), binary)


@pytest.mark.parametrize(
    ("fields", "line"),
    [
        ({"model": {"name": "rwkv_unet_t"}}, "volumes: rwkv_unet_t takes images: set it to null, or model.name to one"),
        ({"volumes": None}, "model.name rwkv_unet_3d_t: takes volumes, and volumes is null: leave it out"),
        ({"deep_supervision": "sum"}, "deep_supervision: of networks over three axes it is none or scales"),
        ({"consistency": {}}, "consistency: is for images and slices: set it to null"),
        (
            {"volumes": {"patch": [8, 32]}},
            "volumes.patch: must be auto, or whole numbers of voxels [depth, ",
        ),
        ({"volumes": {"patch": [0, 32, 32]}}, "volumes.patch: must be auto, or whole numbers of voxels"),
        (
            {"volumes": {"spacing": [0, 1, 1]}},
            "volumes.spacing: must be auto, native, or millimetres [z, y, x]",
        ),
        (
            {"volumes": {"spacing": "thin"}},
            "volumes.spacing: must be auto, native, or millimetres [z, ",
        ),
        ({"volumes": {"thicknes": 3}}, "volumes.thicknes: unknown field (did you mean thickness?)"),
        ({"volumes": {"foreground": 1.5}}, "volumes.foreground: input should be less than or equal to 1, got 1.5"),
        ({"volumes": {"overlap": 1.0}}, "volumes.overlap: input should be less than 1, got 1.0"),
    ],
)
def test_wrong_specs_are_one_line(fields: dict[str, Any], line: str):
    with pytest.raises(UserError) as error:
        build(FinetuneSpec, merge(read_recipe("volumes"), {"data": {"path": "x"}} | fields), "volumes")
    assert line in str(error.value)
    assert "\n" not in str(error.value)


def test_a_network_over_three_axes_takes_volumes_without_being_told():
    recipe = read_recipe("acdc")
    spec = build(FinetuneSpec, merge(recipe, {"model": {"name": "rwkv_unet_3d_t"}}), "acdc")
    assert spec.volumes is not None
    monai = {"model": {"name": "monai:UNet", "options": {"spatial_dims": 3}}}
    assert build(FinetuneSpec, merge(recipe, monai), "acdc").volumes is not None
    assert build(FinetuneSpec, recipe, "acdc").volumes is None
