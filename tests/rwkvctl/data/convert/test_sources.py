from __future__ import annotations

import gzip
import io
import shutil
import tarfile
import zipfile
from pathlib import Path

import pytest

from rwkvctl.base import unpacking
from rwkvctl.base.errors import BadFile, UserError
from rwkvctl.data.convert.prepare import prepare
from rwkvctl.data.convert.sources import open_sources

FILES = {"images/2.png": b"two", "images/10.png": b"ten", "über uns/a b.txt": b"x" * 9000}
LITTER = {"__MACOSX/._1.png": b"", "images/.DS_Store": b"", "images/Thumbs.db": b"", "images/._2.png": b""}


def write_folder(path: Path) -> Path:
    for name, content in (FILES | LITTER).items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(content)
    return path


def write_zip(path: Path, members: dict[str, bytes] = FILES | LITTER) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in members.items():
            file.writestr(name, content)
    return path


def tar_bytes(members: dict[str, bytes] = FILES | LITTER, mode: str = "w") -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as file:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            file.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def content_of(*paths: Path) -> dict[str, bytes]:
    with open_sources(paths) as source:
        return {file.path: file.read() for file in source.files}


def test_one_content_in_every_packing(tmp_path: Path):
    packed = [
        write_folder(tmp_path / "folder"),
        write_zip(tmp_path / "a.ZIP"),
        write(tmp_path / "b.tar", tar_bytes()),
        write(tmp_path / "c.tar.gz", tar_bytes(mode="w:gz")),
        write(tmp_path / "d.tgz", tar_bytes(mode="w:gz")),
    ]
    for path in packed:
        assert content_of(path) == FILES
        with open_sources([path]) as source:
            assert [file.path for file in source.files][:2] == ["images/2.png", "images/10.png"]
            assert source.folders == {"images", "über uns"}
            with source.files[-1].open() as stream:
                stream.seek(-4, io.SEEK_END)
                assert stream.read() == b"xxxx"


def test_archives_in_a_folder_are_folders_of_their_name(tmp_path: Path):
    (tmp_path / "in").mkdir()
    write_zip(tmp_path / "in" / "part.zip")
    assert set(content_of(tmp_path / "in")) == {f"part/{name}" for name in FILES}
    write_zip(tmp_path / "in" / "part.zip", {f"part/{name}": content for name, content in FILES.items()})
    assert set(content_of(tmp_path / "in")) == {f"part/{name}" for name in FILES}
    write_folder(tmp_path / "in" / "part")  # unpacked beside it: the files on disk are taken
    assert content_of(tmp_path / "in") == {f"part/{name}": content for name, content in FILES.items()}
    (tmp_path / "in" / "part" / "images" / "2.png").write_bytes(b"other")
    with pytest.raises(UserError, match=r"part.zip!/part/images/2.png: appears twice, .*in/part/images/2.png"):
        content_of(tmp_path / "in")


def test_several_sources_keep_their_names(tmp_path: Path):
    one, two = write_zip(tmp_path / "train.zip", {"1.png": b"1"}), write_zip(tmp_path / "test.zip", {"1.png": b"2"})
    assert content_of(one, two) == {"train/1.png": b"1", "test/1.png": b"2"}


def test_tars_inside_a_tar_are_folders(tmp_path: Path):
    inner = {name: tar_bytes({f"{name}_1.JPEG": name.encode()}) for name in ("n02", "n01")}
    outer = write(tmp_path / "train.tar", tar_bytes({f"{name}.tar": content for name, content in inner.items()}))
    assert content_of(outer) == {"n01/n01_1.JPEG": b"n01", "n02/n02_1.JPEG": b"n02"}
    with open_sources([outer]) as source:
        assert str(source.files[0]) == f"{outer}!/n01.tar!/n01_1.JPEG"
    cut = inner["n01"][:512] + b"\1" * 600  # its member and end mark are gone
    write(outer, tar_bytes({"n01.tar": cut, "n02.tar": inner["n02"]}))
    with pytest.raises(UserError, match=r"train.tar: cannot be read as an archive \(it has no end mark"):
        content_of(outer)


@pytest.mark.parametrize("keep", [100, 600, 1024, -1024, -10240])
def test_truncated_tars(tmp_path: Path, keep: int):
    whole = tar_bytes({"a": b"a" * 600, "b": b"b" * 600})
    path = write(tmp_path / "a.tar", whole[:keep])
    if keep == -1024:  # only padding behind the end mark is gone
        assert len(content_of(path)) == 2
        return
    with pytest.raises(UserError, match=r"a.tar: cannot be read as an archive .*; download it again"):
        content_of(path)


@pytest.mark.parametrize("name", ["../x.png", "a/../../x.png", "/etc/x.png", "C:\\x.png", "a\\..\\..\\x.png"])
@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_members_that_leave_the_archive(tmp_path: Path, name: str, kind: str):
    members = {"good.png": b"1", name: b"2"}
    path = tmp_path / f"a.{kind}"
    write_zip(path, members) if kind == "zip" else write(path, tar_bytes(members))
    with pytest.raises(UserError, match=r"leaves the archive, which no data set needs") as caught:
        content_of(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE])
def test_links_and_devices_in_a_tar(tmp_path: Path, kind: bytes):
    member = tarfile.TarInfo("images/1.png")
    member.type, member.linkname = kind, "/etc/passwd"
    with tarfile.open(tmp_path / "a.tar", "w") as file:
        file.addfile(member)
    with pytest.raises(UserError, match=r"its member 'images/1.png' is a link, a device or sparse"):
        content_of(tmp_path / "a.tar")


def test_zips_with_links_passwords_and_unknown_methods(tmp_path: Path):
    link = zipfile.ZipInfo("1.png")
    link.create_system, link.external_attr = 3, 0o120777 << 16
    with zipfile.ZipFile(tmp_path / "link.zip", "w") as file:
        file.writestr(link, "/etc/passwd")
    with pytest.raises(UserError, match=r"its member '1.png' is a link"):
        content_of(tmp_path / "link.zip")
    good = write_zip(tmp_path / "a.zip", {"1.png": b"1"}).read_bytes()
    directory = good.index(b"PK\1\2")
    encrypted, method = bytearray(good), bytearray(good)
    encrypted[directory + 8] |= 1
    method[directory + 10] = 9  # deflate64
    for changed, match in ((encrypted, "is encrypted"), (method, "unknown compression"), (good[:-9], "not a zip file")):
        with pytest.raises(UserError, match=match):
            content_of(write(tmp_path / "b.zip", bytes(changed)))


def test_bombs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(unpacking, "RATIO_FREE_BYTES", 1 << 16)
    zeros = {"a.png": bytes(1 << 20)}
    for path in (write_zip(tmp_path / "a.zip", zeros), write(tmp_path / "a.tgz", tar_bytes(zeros, "w:gz"))):
        with pytest.raises(UserError, match=r"a decompression bomb\); do not use this archive"):
            content_of(path)
    with pytest.raises(BadFile, match="a decompression bomb"):
        unpacking.gunzip(gzip.compress(bytes(1 << 20)), "x.nii.gz")


def test_damage_inside_an_archive_is_found_when_it_is_read(tmp_path: Path):
    path = write_zip(tmp_path / "a.zip", {"1.png": bytes(range(256)) * 8})
    content = bytearray(path.read_bytes())
    content[60] ^= 1
    path.write_bytes(content)
    with open_sources([path]) as source, pytest.raises(BadFile, match=r"a.zip!/1.png: cannot be read"):
        source.files[0].read()


def test_what_is_no_source(tmp_path: Path):
    with pytest.raises(UserError, match="does not exist"):
        content_of(tmp_path / "nothing")
    with pytest.raises(UserError, match="is not a folder and not an archive"):
        content_of(write(tmp_path / "a.rar", b""))
    with pytest.raises(UserError, match=r"a.tar: cannot be read as an archive \(empty file\)"):
        content_of(write(tmp_path / "a.tar", b""))


@pytest.mark.parametrize("kind", ["zip", "tar", "gztar"])
@pytest.mark.parametrize("format_name", ["folder", "acdc", "imagefolder"])
def test_prepared_from_an_archive_it_is_the_same(format_name, kind, polyps, hearts, textures, tmp_path: Path):
    raw = {"folder": polyps, "acdc": hearts, "imagefolder": textures}[format_name]
    archive = shutil.make_archive(str(tmp_path / "archive"), kind, raw)
    from_folder = prepare(format_name, [raw], tmp_path / "a", name="same")
    assert prepare(format_name, [archive], tmp_path / "b", name="same").fingerprint == from_folder.fingerprint
