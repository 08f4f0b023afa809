"""The streamed zip is a zip: for Python's reader, in its announced length, and in zip64 form."""

import io
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
import zarr

from service.zip_stream import members_of, stream_zip, zip_length
from worker.artifacts import LocalReader


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """A small Zarr store with an empty file, a nested name, a link out, and a name beyond ASCII."""
    root = tmp_path / "store.zarr"
    group = zarr.create_group(root, zarr_format=3)
    array = group.create_array("größe/0", shape=(64, 64), chunks=(32, 32), dtype="uint8")
    array[:40, :40] = 7
    (root / "empty").write_bytes(b"")
    (tmp_path / "secret").write_text("secret")
    (root / "link").symlink_to(tmp_path / "secret")
    return root


@pytest.mark.parametrize("limit", [0xFFFFFFFF, 100, 1])
def test_every_reader_gets_every_byte_back(store: Path, limit: int) -> None:
    members = members_of(LocalReader(store), "")
    data = b"".join(stream_zip(members, limit))
    assert len(data) == zip_length(members, limit)
    with zipfile.ZipFile(io.BytesIO(data)) as opened:
        assert opened.testzip() is None
        names = {path.relative_to(store).as_posix() for path in store.rglob("*") if path.is_file()} - {"link"}
        assert set(opened.namelist()) == names
        assert all(opened.read(name) == (store / name).read_bytes() for name in names)
        assert {info.compress_type for info in opened.infolist()} == {zipfile.ZIP_STORED}
    assert (b"PK\x06\x06" in data) == (limit < 0xFFFFFFFF)


def test_metadata_of_the_root_comes_first_and_the_same_store_makes_the_same_zip(store: Path) -> None:
    first, second = (b"".join(stream_zip(members_of(LocalReader(store), ""))) for _ in range(2))
    assert first == second
    assert zipfile.ZipFile(io.BytesIO(first)).namelist()[0] == "zarr.json"


def test_zarr_opens_it(store: Path, tmp_path: Path) -> None:
    path = tmp_path / "out.zip"
    path.write_bytes(b"".join(stream_zip(members_of(LocalReader(store), ""))))
    opened = zarr.open_group(zarr.storage.ZipStore(path, mode="r"), mode="r")
    assert opened["größe/0"][39, 39] == 7
    assert opened["größe/0"][63, 63] == 0


def test_many_members_need_zip64(tmp_path: Path) -> None:
    root = tmp_path / "many"
    root.mkdir()
    (root / "one").write_bytes(b"1")
    member = members_of(LocalReader(root), "")[0]
    many = [replace(member, name=f"{number:06}", read=lambda: iter([b"1"])) for number in range(0x10000)]
    data = b"".join(stream_zip(many))
    assert len(data) == zip_length(many)
    with zipfile.ZipFile(io.BytesIO(data)) as opened:
        assert len(opened.namelist()) == 0x10000
        assert opened.read("065535") == b"1"


def test_a_file_that_shrinks_breaks_the_stream_off(store: Path) -> None:
    members = members_of(LocalReader(store), "")
    victim = next(member for member in members if member.size > 10)
    (store / victim.name).write_bytes(b"short")
    with pytest.raises(OSError, match="shorter"):
        b"".join(stream_zip(members))
