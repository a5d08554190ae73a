from __future__ import annotations

import json
from pathlib import Path

import pytest

from rwkvctl.base.errors import UserError
from rwkvctl.data.convert.prepare import prepare
from rwkvctl.data.store import schema
from rwkvctl.data.store.manifest import Manifest


def tree(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


@pytest.mark.parametrize("format_name", ["folder", "acdc", "imagefolder"])
def test_a_second_run_gives_the_same_bytes(format_name, polyps, hearts, textures, tmp_path):
    source = {"folder": polyps, "acdc": hearts, "imagefolder": textures}[format_name]
    first = prepare(format_name, [source], tmp_path / "a", name="same")
    second = prepare(format_name, [source], tmp_path / "b", name="same")
    assert tree(first.root) == tree(second.root)
    assert first.fingerprint == second.fingerprint


def test_members_of_a_shard(classed: Manifest):
    import tarfile

    with tarfile.open(classed.root / classed.shards[0].name) as tar:
        members = tar.getmembers()
    assert all(m.mtime == 0 and not m.uname and m.mode == 0o444 for m in members)
    assert [m.name.split(".", 1)[1] for m in members[:3]] == ["cls", "jpg", "json"]


def test_webdataset_streams_the_shards(polyps: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Shuffled over two loader processes, each sample once, with the bytes of the source; keys of any script too."""
    import shutil

    import torch
    import webdataset

    from rwkvctl.data.store.writer import Limits

    monkeypatch.setattr(Limits.__init__, "__defaults__", (5, 1 << 20))
    source = Path(shutil.copytree(polyps, tmp_path / "raw"))
    (source / "images" / "7.jpg").rename(source / "images" / "Ärztin.jpg")
    (source / "masks" / "7.png").rename(source / "masks" / "Ärztin.png")
    made = prepare("folder", [source], tmp_path / "set")
    urls = [str(made.root / shard.name) for shard in made.shards]
    stream = webdataset.WebDataset(urls, shardshuffle=4, seed=1).shuffle(8, initial=8)
    context = torch.multiprocessing.get_context("spawn")
    found = list(torch.utils.data.DataLoader(stream, batch_size=None, num_workers=2, multiprocessing_context=context))
    keys = [sample["__key__"] for sample in found]
    assert keys != sorted(keys)
    assert sorted(keys) == sorted(key.decode() for key in made.index.keys)
    for sample in found:
        meta = json.loads(sample["json"])
        assert sample["jpg"] == (source / meta["orig_path"]).read_bytes()
        assert sample["mask.png"].startswith(b"\x89PNG")


def test_existing_out(polyps: Path, tmp_path: Path):
    out = tmp_path / "set"
    prepare("folder", [polyps], out, seeds=[1])
    before = tree(out)
    with pytest.raises(UserError, match="exists; give another --out or --overwrite"):
        prepare("folder", [polyps], out, seeds=[2])
    assert tree(out) == before
    assert "random811_s2" in prepare("folder", [polyps], out, seeds=[2], overwrite=True).splits
    assert [path.name for path in tmp_path.iterdir() if path.name != "home"] == ["set"]


def test_overwrite_spares_what_is_no_data_set_and_the_source(polyps: Path, tmp_path: Path):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter1.tex").write_text("...")
    with pytest.raises(UserError, match="is not a data set"):
        prepare("folder", [polyps], tmp_path / "thesis", overwrite=True)
    with pytest.raises(UserError, match=r"holds the source|is not a data set"):
        prepare("folder", [polyps], polyps.parent, overwrite=True)


def test_a_failed_overwrite_keeps_the_old_set(polyps: Path, tmp_path: Path):
    out = prepare("folder", [polyps], tmp_path / "set").root
    before = tree(out)
    (tmp_path / "bad").mkdir()
    with pytest.raises(UserError):
        prepare("folder", [tmp_path / "bad"], out, overwrite=True)
    assert tree(out) == before


def test_shards_roll_over(polyps: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from rwkvctl.data.store.writer import Limits

    monkeypatch.setattr(Limits.__init__, "__defaults__", (8, 1 << 20))
    shards = prepare("folder", [polyps], tmp_path / "set").shards
    assert [(s.name, s.n) for s in shards] == [("all-000000.tar", 8), ("all-000001.tar", 8), ("all-000002.tar", 4)]


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"seeds": [-1]}, "--seed"),
        ({"ratio": "nine"}, "--ratio 'nine'"),
        ({"split": "nine"}, "--ratio 'nine'"),
        ({"ratio": "8:1:1", "split": "7:1:2"}, "--ratio 8:1:1 and --split 7:1:2"),
        ({"name": "!!!"}, "--name"),
        ({"classes": ["one"]}, "--classes"),
    ],
)
def test_options(options, match, polyps: Path, tmp_path: Path):
    with pytest.raises(UserError, match=match):
        prepare("folder", [polyps], tmp_path / "o", **options)
    assert not (tmp_path / "o").exists()


def test_two_part_split(polyps: Path, tmp_path: Path):
    made = prepare("folder", [polyps], tmp_path / "o", split="9:1", seeds=[1])
    assert made.splits["random910_s1"].counts == {"train": 18, "val": 2, "test": 0}


# The manifest


@pytest.fixture
def copied(binary: Manifest, tmp_path: Path) -> Path:
    import shutil

    return Path(shutil.copytree(binary.root, tmp_path / "copy"))


def test_edits_by_hand_are_found(copied: Path):
    path = copied / schema.FILE_NAME
    content = json.loads(path.read_text())
    content["classes"] = ["background", "lesion"]
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match="was changed after it was written"):
        Manifest.load(copied)


def test_reformatting_is_no_edit(copied: Path, binary: Manifest):
    path = copied / schema.FILE_NAME
    path.write_text(json.dumps(json.loads(path.read_text())))
    assert Manifest.load(path).fingerprint == binary.fingerprint


def test_edited_id_lists_and_index_are_found(copied: Path):
    split = copied / "splits" / "random811_s41.json"
    split.write_text(split.read_text().replace("binary_0001", "binary_0002"))
    index = copied / "index" / "all-000000.idx"
    index.write_bytes(index.read_bytes() + b"\n")
    loaded = Manifest.load(copied)
    with pytest.raises(UserError, match=r"random811_s41.json: is not the file"):
        loaded.ids(None, "train")
    with pytest.raises(UserError, match=r"all-000000.idx: is not the file"):
        _ = loaded.index


@pytest.mark.parametrize("content", ["", "[]", "{", '{"schema": "other"}', '{"schema": "rwkv-data/3"}', "[" * 100000])
def test_broken_manifests(tmp_path: Path, content: str):
    (tmp_path / schema.FILE_NAME).write_text(content)
    with pytest.raises(UserError, match=r"manifest\.json: ") as caught:
        Manifest.load(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_data_set_of_the_earlier_schema_is_to_be_prepared_again(copied: Path):
    """Its volumes lie as their files did, whatever way that was."""
    path = copied / schema.FILE_NAME
    path.write_text(json.dumps(json.loads(path.read_text()) | {"schema": "rwkv-data/1", "prep_version": "1.0.0"}))
    with pytest.raises(
        UserError, match="schema rwkv-data/1, this version reads rwkv-data/2; prepare the data set again"
    ):
        Manifest.load(copied)


def test_a_consistent_manifest_of_nonsense_names_the_field(copied: Path):
    path = copied / schema.FILE_NAME
    content = json.loads(path.read_text())
    content["shards"][0]["name"] = "../../etc/passwd"
    content["fingerprint"] = schema.fingerprint(content)
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"shards\.0\.name"):
        Manifest.load(copied)


def test_absent_and_unknown(binary: Manifest, tmp_path: Path):
    with pytest.raises(UserError, match="no prepared data set here"):
        Manifest.load(tmp_path / "nowhere")
    with pytest.raises(UserError, match="binary has random811_s41"):
        binary.ids("official", "train")
    with pytest.raises(UserError, match="train, val, test"):
        binary.ids(None, "all")
