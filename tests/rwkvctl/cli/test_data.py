from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner

from rwkvctl.base.errors import UserError
from rwkvctl.cli.data import app
from rwkvctl.data.store.manifest import Manifest


def run(*arguments: object, code: int = 0) -> str:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if isinstance(result.exception, UserError):
        raise result.exception
    assert result.exit_code == code, result.output
    return result.stdout


def test_prepare_show_verify_list(polyps: Path, tmp_path: Path):
    out = tmp_path / "data" / "clinicdb"
    printed = run("prepare", "folder", "--source", polyps, "--out", out, "--split", "8:1:1", "--seed", 41)
    assert "random811_s41 (default): train 16, val 2, test 2" in printed
    summary = json.loads(run("show", out, "--json"))
    assert (summary["dataset"], summary["samples"]) == ("clinicdb", 20)
    assert summary["fingerprint"] in run("show", out)
    assert "sound (20 samples in 1 shards)" in run("verify", out)
    assert json.loads(run("verify", out, "--deep", "--json"))["ok"] is True
    listed = json.loads(run("list", "--root", tmp_path / "data", "--json"))
    assert list(listed["datasets"]) == [str(out)]
    assert "imagefolder" in run("list", "--root", tmp_path / "data")


def test_out_defaults_to_the_data_root(textures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("RWKVCTL_DATA_ROOT", str(tmp_path / "root"))
    printed = run("prepare", "imagefolder", "--source", textures, "--name", "tiles", "--json")
    assert json.loads(printed)["path"] == str(tmp_path / "root" / "tiles")


def test_verify_exits_1_on_damage(binary: Manifest, tmp_path: Path):
    copy = Path(shutil.copytree(binary.root, tmp_path / "copy"))
    shard = copy / "all-000000.tar"
    shard.write_bytes(shard.read_bytes()[:-1] + b"x")
    assert "problem: " in run("verify", copy, code=1)
    assert json.loads(run("verify", copy, "--json", code=1))["ok"] is False


def test_mistakes_are_user_errors(tmp_path: Path, polyps: Path):
    with pytest.raises(UserError, match="no prepared data set"):
        run("verify", tmp_path)
    with pytest.raises(UserError, match="format 'foldr' is unknown; did you mean folder"):
        run("prepare", "foldr", "--source", polyps, "--out", tmp_path / "x")
    with pytest.raises(UserError, match="format 'acdc:nifti' is unknown; give acdc, its form is found by itself"):
        run("prepare", "acdc:nifti", "--source", polyps, "--out", tmp_path / "x")
    run("prepare", "folder", code=2)


def test_help_is_light():
    code = (
        "import sys, rwkvctl.cli.data; print([m for m in ('torch', 'cv2', 'numpy', 'webdataset') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_doctor_split_sheet(polyps: Path, binary: Manifest, tmp_path: Path):
    assert f"prepare  rwkvctl data prepare folder --source {polyps}" in run("doctor", polyps)
    (tmp_path / "empty").mkdir()
    assert "no known data set (no files)" in run("doctor", tmp_path / "empty", code=1)
    copy = shutil.copytree(binary.root, tmp_path / "copy")
    assert "grouped811_s5: train 16, val 2, test 2" in run("split", copy, "--rule", "grouped:8:1:1", "--seed", 5)
    assert "pixels       background" in run("show", copy, "--sheet", tmp_path / "sheet.png")
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.size == (6 * 192, 4 * 192)


def test_sheets_of_volumes_and_classes(cardiac: Manifest, classed: Manifest, tmp_path: Path):
    for made in (cardiac, classed):
        run("show", made.root, "--sheet", tmp_path / "sheet.png")
        assert (tmp_path / "sheet.png").stat().st_size > 1000


@pytest.mark.parametrize("option", ["--sheet", "--out"])
def test_a_path_that_cannot_be_written(option: str, binary: Manifest):
    arguments = (
        ["show", binary.root, option, "/proc/x.png"] if option == "--sheet" else ["synth", "busi", option, "/proc/x"]
    )
    with pytest.raises(UserError, match=rf"{option} /proc/x.*: cannot be written \(.*\); give another path"):
        run(*arguments)


def test_export_for_nnunet(binary: Manifest, tmp_path: Path):
    root = Path(shutil.copytree(binary.root, tmp_path / "set"))
    assert "use it with: --set data.split=folds3_s5_fold0" in run("split", root, "--folds", 3, "--seed", 5)
    printed = run("export", "nnunet", root, "--out", tmp_path, "--split", "folds3_s5")
    folder = tmp_path / f"Dataset500_{binary.dataset}"
    assert f"{folder}: cases 18 train and val, 2 test" in printed
    assert (
        f"3 folds, folds3_s5; nnU-Net 2.8 copies it when it plans, else copy it into nnUNet_preprocessed/{folder.name}"
        in printed
    )
    done = json.loads(run("export", "nnunet", root, "--out", tmp_path, "--id", 3, "--json"))
    assert (Path(done["folder"]).name, done["folds"]) == (f"Dataset003_{binary.dataset}", 1)
    with pytest.raises(UserError, match="give a folder of this machine"):
        run("export", "nnunet", root, "--out", "s3://bucket/raw")
    for wrong in (["--rule", "random:8:1:1", "--folds", 3], []):
        with pytest.raises(UserError, match="give --rule RULE or --folds K, one of them"):
            run("split", root, *wrong)
