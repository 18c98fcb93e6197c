"""Versions that are damaged, forged, mixed, malicious or half copied (docs/faults.md 21, 25-31, 38)."""

from __future__ import annotations

import hashlib
import json
import pickle
import shutil
import struct
import subprocess
import sys
import zipfile

import pytest
from safetensors.torch import load_file, save_file
from store_files import reseal

from bseq_plugin import Retriever, StoreError, UsageError
from bseq_plugin.publishing.publish import publish_model
from bseq_plugin.store.store import CURRENT, Store
from bseq_plugin.store.version import KEY_ENV, MANIFEST, SIGNATURE

KEY = b"0123456789abcdef"


@pytest.fixture
def small(tmp_path, make_model, make_histories):
    """(store, name) of a small real version with a FAISS index."""
    model = make_model(n_items=12, dim=3, event_features=("event_type",))
    store = Store(tmp_path / "store")
    return store, publish_model(model, make_histories(model, [3, 4]), store, index="faiss_cpu")


def same_pair(folder, manifest):
    """Also the fields that say which encoder and which item table belong together."""
    for field, name in (("encoder_id", "encoder.safetensors"), ("item_table_hash", "items.safetensors")):
        manifest[field] = hashlib.sha256((folder / name).read_bytes()).hexdigest()


def flips(store, name, step):
    """How many flipped bytes of all files of the version were refused, and how many were not."""
    refused, accepted = 0, []
    for path in sorted(store.folder(name).iterdir()):
        original = path.read_bytes()
        for place in range(0, len(original), step):
            damaged = bytearray(original)
            damaged[place] ^= 1 << (place % 8)
            path.write_bytes(damaged)
            try:
                store.current()
            except StoreError:
                refused += 1
            else:
                accepted.append((path.name, place))
        path.write_bytes(original)
    return refused, accepted


def test_flipped_bytes_of_a_real_version_are_refused(small):
    store, name = small
    refused, accepted = flips(store, name, 37)
    assert not accepted
    assert refused > 200
    assert store.current().name == name


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_every_flipped_byte_of_a_real_version_is_refused(small):
    store, name = small
    refused, accepted = flips(store, name, 1)
    assert not accepted
    assert refused == sum(path.stat().st_size for path in store.folder(name).iterdir())


def test_a_version_that_was_not_signed_with_the_key_is_refused(tmp_path, publish_text, monkeypatch):
    store = Store(tmp_path / "store", key=KEY)
    name = publish_text(store, "signed")
    assert store.current().name == name
    assert Store(store.path).current().name == name  # a reader without the key relies on checksums alone
    with pytest.raises(StoreError, match="not signed with this reader's key"):
        Store(store.path, key=KEY[::-1]).current()
    forged = reseal(store, name, lambda folder, manifest: (folder / "a.txt").write_text("forged"))
    assert Store(store.path).current().name == forged  # all checksums are right
    with pytest.raises(StoreError, match="it was changed"):
        store.current()
    (store.folder(forged) / SIGNATURE).unlink()
    with pytest.raises(StoreError, match="is not signed"):
        store.current()
    (tmp_path / "key").write_bytes(KEY + b"\n")
    monkeypatch.setenv(KEY_ENV, str(tmp_path / "key"))
    with pytest.raises(StoreError, match="is not signed"):
        Store(store.path).current()
    assert Store(store.path).verify(publish_text(Store(store.path), "by the key file"))
    assert Store(store.path, key=KEY).current().manifest["text"] == "by the key file"


@pytest.mark.parametrize("key", [b"", b"short", "not bytes at all!"])
def test_a_key_that_is_none_is_refused(tmp_path, key, monkeypatch):
    with pytest.raises(UsageError, match="at least 16"):
        Store(tmp_path, key=key)
    monkeypatch.setenv(KEY_ENV, str(tmp_path / "no such file"))
    with pytest.raises(UsageError, match=f"{KEY_ENV}.*can't be read"):
        Store(tmp_path)


def test_an_encoder_of_another_training_is_refused(small, make_model, make_histories):
    """The same width, all checksums right: what would be served are other people's interests."""
    store, first = small
    model = make_model(n_items=12, dim=3, seed=7, event_features=("event_type",))
    second = publish_model(model, make_histories(model, [3, 4]), store, index="faiss_cpu")
    for name, field in (("encoder.safetensors", "encoder_id"), ("items.safetensors", "item_table_hash")):
        original = (store.folder(second) / name).read_bytes()
        other = (store.folder(first) / name).read_bytes()
        assert other != original

        def put(folder, manifest, name=name, data=other):
            (folder / name).write_bytes(data)

        def put_and_say_so(folder, manifest, name=name, data=other):
            (folder / name).write_bytes(data)
            same_pair(folder, manifest)

        second = reseal(store, second, put)
        with pytest.warns(UserWarning, match=rf"{name} is not the one .*{field}.*SERVING VERSION {first}"):
            assert Retriever.open(store).version == first
        second = reseal(store, second, put_and_say_so)
        with pytest.warns(UserWarning, match=r"encoder gives other interests|golden queries"):
            assert Retriever.open(store).version == first
        second = reseal(store, second, lambda f, m, n=name, d=original: ((f / n).write_bytes(d), same_pair(f, m)))
        assert Retriever.open(store).version == second


def test_vectors_that_are_said_to_be_normalised_and_are_not(tmp_path, make_model, make_histories):
    model = make_model()
    store = Store(tmp_path / "store")
    name = publish_model(model, make_histories(model, [3]), store)
    reseal(store, name, lambda folder, manifest: manifest.update(normalised=True))
    with pytest.raises(StoreError, match="marked as normalised, but the length of an item vector is off by"):
        Retriever.open(store)


class Evil:
    """Unpickled, it would leave a file behind."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


@pytest.mark.parametrize("form", ["pickle", "torch archive"])
def test_a_malicious_pickle_is_refused_whatever_file_it_stands_for(small, tmp_path, form):
    store, name = small
    trap, data = tmp_path / "trap", pickle.dumps(Evil(tmp_path / "trap"))
    if form == "torch archive":
        with zipfile.ZipFile(tmp_path / "evil.zip", "w") as archive:
            archive.writestr("archive/data.pkl", data)
        data = (tmp_path / "evil.zip").read_bytes()
    for file_name in sorted(json.loads((store.folder(name) / MANIFEST).read_text())["files"]):
        if file_name == "item_vectors.safetensors" or file_name == "interests.parquet":
            continue  # for others to read; the retriever does not
        original = (store.folder(name) / file_name).read_bytes()

        def poison(folder, manifest, file_name=file_name):
            (folder / file_name).write_bytes(data)
            same_pair(folder, manifest)

        name = reseal(store, name, poison)
        with pytest.raises(StoreError):
            Retriever.open(store)
        assert not trap.exists()
        name = reseal(store, name, lambda f, m, n=file_name, d=original: ((f / n).write_bytes(d), same_pair(f, m)))
    assert Retriever.open(store).version == name


def huge_faiss(folder):
    """A flat index that says it holds 2^40 floats."""
    data = bytearray((folder / "items.faiss").read_bytes())
    place = data.index(struct.pack("<Q", 12 * 3 * 4)) if struct.pack("<Q", 12 * 3 * 4) in data else None
    place = data.index(struct.pack("<Q", 12 * 3)) if place is None else place
    data[place : place + 8] = struct.pack("<Q", 1 << 40)
    (folder / "items.faiss").write_bytes(data)


def huge_safetensors(folder):
    """A header of 2^40 bytes."""
    data = (folder / "encoder.safetensors").read_bytes()
    (folder / "encoder.safetensors").write_bytes(struct.pack("<Q", 1 << 40) + data[8:])


def huge_tensor(folder):
    """A header that promises a tensor far longer than the file."""
    header = {"item_table": {"dtype": "F32", "shape": [1 << 30, 1 << 10], "data_offsets": [0, 1 << 42]}}
    raw = json.dumps(header).encode()
    (folder / "items.safetensors").write_bytes(struct.pack("<Q", len(raw)) + raw)


def huge_parquet(folder):
    """A footer of 2^31 - 1 bytes."""
    data = (folder / "vocabulary.parquet").read_bytes()
    (folder / "vocabulary.parquet").write_bytes(data[:-8] + struct.pack("<I", (1 << 31) - 1) + b"PAR1")


OPEN_IN_LITTLE_MEMORY = """
import resource, sys
import torch, faiss, pyarrow.parquet
from bseq_plugin import Retriever, StoreError
Retriever.open(sys.argv[1])  # whatever is loaded once is loaded now
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 2**29, used + 2**29))
try: Retriever.open(sys.argv[2])
except StoreError as error: print("refused", error)
"""


@pytest.mark.parametrize("make", [huge_faiss, huge_safetensors, huge_tensor, huge_parquet])
def test_a_length_of_a_terabyte_does_not_take_the_memory(small, tmp_path, make):
    store, name = small
    shutil.copytree(store.path, tmp_path / "good")
    reseal(store, name, lambda folder, manifest: (make(folder), same_pair(folder, manifest)))
    command = [sys.executable, "-c", OPEN_IN_LITTLE_MEMORY, tmp_path / "good", store.path]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.stdout.startswith("refused"), done.stderr[-1500:]


def test_a_copy_in_the_documented_order_is_old_or_new_at_every_step(two_versions, tmp_path, publish_text):
    """A store behind a file system without rename: versions first, in each MANIFEST.json last, then CURRENT."""
    store, old, new = two_versions
    copy = tmp_path / "copy"
    steps = []
    for name in (old, new):
        files = sorted(path.name for path in store.folder(name).iterdir() if path.name != MANIFEST)
        steps += [store.folder(name) / file for file in [*files, MANIFEST]]
    old_pointer = store.path / "old pointer"
    store.point_to(old)
    shutil.copy(store.path / CURRENT, old_pointer)
    store.point_to(new)
    first = [*steps[: len(steps) // 2], old_pointer]
    served = []
    for source in [*first, *steps[len(steps) // 2 :], store.path / CURRENT]:
        name = CURRENT if source == old_pointer else str(source.relative_to(store.path))
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source, copy / name)
        if source in first[:-1]:
            with pytest.raises(StoreError, match="nothing is published"):
                Store(copy).current()
        else:
            served.append(Store(copy).current().name)
    assert served == [old] * (len(steps) // 2 + 1) + [new]


def test_a_store_version_is_read_without_the_vectors_file_for_others(small):
    """``item_vectors.safetensors`` is for other programs: it holds what the model's own vectors are."""
    store, _ = small
    version = store.current()
    vectors = load_file(version.file("item_vectors.safetensors"))["item_vectors"]
    served = Retriever.open(store)
    assert vectors.equal(served.model.item_vectors_VD[1:])
    save_file({"x": vectors}, store.path / "elsewhere.safetensors")  # a file beside the versions disturbs nobody
    assert Retriever.open(store).version == version.name
