"""Shards are what WebDataset's own writer makes, and their index says where everything lies in them."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from rwkvctl.data.store import index
from rwkvctl.data.store.writer import write_tar

keys = st.text(st.characters(categories=["L", "M", "N"], include_characters="_-"), min_size=1, max_size=120)
samples = st.dictionaries(
    keys.filter(index.is_key),
    st.dictionaries(st.sampled_from(sorted(index.MEMBERS)), st.binary(max_size=1500), min_size=1, max_size=3),
    max_size=6,
)


@settings(max_examples=60, deadline=None)
@given(samples)
def test_the_bytes_are_those_of_webdataset(made: dict[str, dict[str, bytes]]):
    import webdataset

    own, theirs = io.BytesIO(), io.BytesIO()
    write_tar(own, made.items())
    options = {"encoder": False, "mtime": 0, "user": "", "group": "", "mode": 0o444, "compress": False}
    with webdataset.TarWriter(theirs, **options) as tar:
        for key, members in made.items():
            tar.write({"__key__": key, **members})
    assert own.getvalue() == theirs.getvalue()


def test_places_are_those_in_the_file(tmp_path: Path):
    made = {"a": {"jpg": b"1" * 512, "json": b"{}"}, "Ä" * 90: {"cls": b""}, "c": {"mask.png": b"3" * 5000}}
    shard = tmp_path / "all-000000.tar"
    with shard.open("wb") as stream:
        entries = write_tar(stream, made.items())
    assert entries == list(index.entries_of_tar(shard))
    content = shard.read_bytes()
    assert all(
        content[offset : offset + size] == made[key][extension]
        for key, members in entries
        for extension, (offset, size, _) in members.items()
    )


def test_conversion_does_without_torch(polyps: Path, tmp_path: Path):
    """It takes longer to import than a small data set to convert."""
    script = f"""if True:
        import sys
        from rwkvctl.data.convert.prepare import prepare
        prepare("folder", [{str(polyps)!r}], {str(tmp_path / "set")!r})
        sys.exit(" ".join({{"torch", "webdataset"}} & set(sys.modules)) or 0)
    """
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
