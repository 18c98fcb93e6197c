"""The store's promise: a reader sees a complete, verified version or the previous one (faults.md 26-37)."""

from __future__ import annotations

import hashlib
import json
import os
import warnings

import pytest
from store_files import rewrite_manifest

from bseq_plugin.errors import StoreError, UsageError
from bseq_plugin.files import Disk
from bseq_plugin.store.store import CURRENT, Store
from bseq_plugin.store.version import MANIFEST


def content(version):
    """The one text all files and the manifest of a test version hold; anything else is a torn version."""
    texts = {version.file(name).read_text() for name in version.manifest["files"]} | {version.manifest["text"]}
    assert len(texts) == 1, f"torn version: {texts}"
    return texts.pop()


def opened(store):
    """(text served, whether there was a warning); ("nothing", False) if the store refuses to open."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            return content(store.open()), bool(caught)
        except StoreError:
            return "nothing", False


def parsed_or_none(raw):
    try:
        return json.loads(raw)
    except ValueError:
        return None


def test_publish_then_open(two_versions):
    store, old, new = two_versions
    assert store.versions() == [old, new]
    version = store.current()
    assert version.name == new
    assert content(version) == "new"
    assert version.manifest["parent"] == old
    assert version.manifest["number"] == 2
    assert opened(store) == ("new", False)
    with pytest.raises(StoreError, match=r"no file 'c.txt'; it has: a.txt, b.txt"):
        version.file("c.txt")


def test_nothing_is_left_beside_the_versions(two_versions):
    store, old, new = two_versions
    assert sorted(os.listdir(store.path)) == [CURRENT, "publish.lock", "versions"]
    assert sorted(os.listdir(store.path / "versions")) == [old, new]


def test_rollback_points_back_and_the_next_number_goes_on(two_versions, publish_text):
    store, old, _ = two_versions
    store.point_to(old)
    assert content(store.current()) == "old"
    assert publish_text(store, "third").startswith("v00000003-")
    for name in ("v00000009-00000000", f"../versions/{old}", "", ".."):
        with pytest.raises(StoreError, match=r"no version|no name of a version"):
            store.point_to(name)


def test_an_empty_store_says_what_to_do(tmp_path):
    for path in (tmp_path, tmp_path / "missing"):
        with pytest.raises(StoreError, match="bseq publish"):
            Store(path).open()
        assert Store(path).versions() == []


def test_every_flipped_byte_is_refused_and_an_intact_version_serves(two_versions):
    store, _, new = two_versions
    files = [store.path / CURRENT, *sorted((store.path / "versions" / new).iterdir())]
    n_flips = 0
    for path in files:
        original = path.read_bytes()
        for place in range(len(original)):
            for mask in (0x01, 0x20, 0xFF):
                damaged = bytearray(original)
                damaged[place] ^= mask
                path.write_bytes(damaged)
                text, warned = opened(store)
                if path.name == CURRENT:
                    # white space may change without changing the meaning
                    same = json.loads(original) == parsed_or_none(bytes(damaged))
                    assert (text, warned) == ("new", False) if same else (text in ("new", "old") and warned)
                else:
                    assert (text, warned) == ("old", True), f"{path.name} byte {place} mask {mask:#x}"
                    with pytest.raises(StoreError):
                        store.current()
                n_flips += 1
        path.write_bytes(original)
    assert n_flips > 1_000
    assert opened(store) == ("new", False)


def test_every_truncation_is_refused(two_versions):
    store, _, new = two_versions
    for path in sorted((store.path / "versions" / new).iterdir()):
        original = path.read_bytes()
        for length in range(len(original)):
            path.write_bytes(original[:length])
            assert opened(store) == ("old", True)
        path.write_bytes(original + b"\n")
        assert opened(store) == ("old", True)
        path.write_bytes(original)
    for length in range(len((store.path / CURRENT).read_bytes())):
        original = (store.path / CURRENT).read_bytes()
        (store.path / CURRENT).write_bytes(original[:length])
        assert opened(store) == ("new", True)
        (store.path / CURRENT).write_bytes(original)


@pytest.mark.parametrize("name", ["a.txt", "b.txt", MANIFEST])
def test_a_missing_file_is_refused(two_versions, name):
    store, _, new = two_versions
    (store.path / "versions" / new / name).unlink()
    assert opened(store) == ("old", True)


def test_the_warning_names_damage_and_version(two_versions):
    store, old, new = two_versions
    (store.path / "versions" / new / "a.txt").write_text("bad")
    with pytest.warns(UserWarning, match=rf"{new}/a.txt is damaged.*SERVING VERSION {old}"):
        assert store.open().name == old


def test_no_intact_version_is_an_error(two_versions):
    store, old, new = two_versions
    for name in (old, new):
        (store.path / "versions" / name / "a.txt").write_text("x")
    with pytest.raises(StoreError, match=r"no other version .* is intact"):
        store.open()


def test_after_a_rollback_damage_leads_to_what_was_before_it(two_versions, publish_text):
    store, _, new = two_versions
    publish_text(store, "withdrawn")
    store.point_to(new)
    (store.path / "versions" / new / "a.txt").write_text("x")
    assert opened(store) == ("old", True)


@pytest.mark.parametrize(
    "name",
    ["../secret", "/etc/hostname", "..", ".", "", "sub/a.txt", "..\\secret", "a\0b", "nul\x00", "versions/../../x"],
)
def test_a_path_out_of_the_version_is_refused(two_versions, tmp_path, name):
    store, _, new = two_versions
    (store.path / "versions" / "secret").write_text("new")
    entry = {"bytes": 3, "sha256": hashlib.sha256(b"new").hexdigest()}
    rewrite_manifest(store, new, lambda m: m["files"].update({name: entry}))
    with pytest.raises(StoreError, match="not a plain file name"):
        store.current()
    assert opened(store) == ("old", True)


@pytest.mark.parametrize("kind", ["file", "folder", "version", "fifo", "dangling"])
def test_links_and_other_special_files_are_refused(two_versions, tmp_path, kind):
    store, _, new = two_versions
    path = store.path / "versions" / new / "a.txt"
    if kind == "version":
        path.parent.rename(tmp_path / "elsewhere")
        path.parent.symlink_to(tmp_path / "elsewhere")
    else:
        path.rename(tmp_path / "elsewhere")
        make = {
            "file": lambda: path.symlink_to(tmp_path / "elsewhere"),
            "dangling": lambda: path.symlink_to(tmp_path / "nowhere"),
            "folder": path.mkdir,
            "fifo": lambda: os.mkfifo(path),  # opening one would wait for ever
        }
        make[kind]()
    assert opened(store) == ("old", True)


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m.update(schema=99),
        lambda m: m.pop("schema"),
        lambda m: m.update(number=7),
        lambda m: m.update(files=["a.txt"]),
        lambda m: m.pop("files"),
        lambda m: m["files"].update({"a.txt": 3}),
        lambda m: m["files"].update({"a.txt": {"bytes": 3}}),
        lambda m: m["files"]["a.txt"].update(blake3=None),
        lambda m: m["files"]["a.txt"].pop("sha256"),
        lambda m: m["files"]["a.txt"].pop("blake3"),
        lambda m: m["files"]["a.txt"].update(blake3="0" * 64),
        lambda m: m["files"].update({MANIFEST: {"bytes": 1, "sha256": ""}}),
    ],
)
def test_a_manifest_that_makes_no_sense_is_refused(two_versions, change):
    store, _, new = two_versions
    rewrite_manifest(store, new, change)
    assert opened(store) == ("old", True)


@pytest.mark.parametrize(
    "text", ["", "[]", "null", "{}", '{"version": 1, "manifest_sha256": 2}', "[" * 4000, "x" * 9999]
)
def test_a_pointer_that_makes_no_sense_is_refused(two_versions, text):
    store, _, _ = two_versions
    (store.path / CURRENT).write_text(text)
    with pytest.raises(StoreError):
        store.current()
    assert opened(store) == ("new", True)


def test_a_pointer_out_of_the_store_is_refused(two_versions, tmp_path):
    store, _, new = two_versions
    (store.path / "versions" / new).rename(tmp_path / new)
    (store.path / CURRENT).write_text(json.dumps({"version": f"../../{new}", "manifest_sha256": "0" * 64}))
    assert opened(store) == ("old", True)


def test_a_version_under_another_number_is_refused(two_versions):
    store, old, _ = two_versions
    folder = store.path / "versions"
    (folder / old).rename(folder / f"v00000009{old[9:]}")
    with pytest.raises(StoreError, match="of version number 1"):
        store.verify(f"v00000009{old[9:]}")


def test_reading_writes_nothing(two_versions):
    store, _, _ = two_versions

    class ReadOnly(Disk):
        def __getattribute__(self, name):
            raise AssertionError("reading must not write")

    before = {p: p.stat().st_mtime_ns for p in store.path.rglob("*")}
    assert content(Store(store.path, disk=ReadOnly()).open()) == "new"
    assert {p: p.stat().st_mtime_ns for p in store.path.rglob("*")} == before


@pytest.mark.parametrize(
    "make", [lambda f: (f / "sub").mkdir(), lambda f: (f / "l").symlink_to("/"), lambda f: (f / ".h").touch()]
)
def test_only_plain_files_are_published(two_versions, make):
    store, _, new = two_versions
    with pytest.raises(StoreError, match="plain files only"):
        store.publish(make, {})
    assert store.versions()[-1] == new


@pytest.mark.parametrize("manifest", [{"files": {}}, {"schema": 1}, {"x": float("nan")}, {"x": b"1"}, {"x": object()}])
def test_a_manifest_that_can_not_be_written_is_a_usage_error(two_versions, manifest):
    store, old, new = two_versions
    with pytest.raises(UsageError):
        store.publish(lambda folder: None, manifest)
    assert sorted(os.listdir(store.path / "versions")) == [old, new]


def test_a_failing_writer_leaves_nothing(two_versions):
    store, old, new = two_versions

    def write(folder):
        (folder / "a.txt").write_text("half")
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        store.publish(write, {})
    assert sorted(os.listdir(store.path / "versions")) == [old, new]
    assert opened(store) == ("new", False)


def test_the_store_can_not_be_a_file(tmp_path):
    (tmp_path / "store").write_text("x")
    with pytest.raises(StoreError, match="choose another folder"):
        Store(tmp_path / "store").publish(lambda folder: None, {})
