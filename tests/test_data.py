"""Whatever names images is read by index, in one order, and what is wrong with it is said in one line."""

from __future__ import annotations

import json
import shutil
import threading
import time

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset, SubsetRandomSampler, TensorDataset

from quantopsy.core import QuantopsyError
from quantopsy.data import Preprocess, evenly_spaced_order, open_data, prefetch, sources

PLAIN = {"mean": [0, 0, 0], "std": [255, 255, 255]}
X = torch.randn(10, 3, 6, 5, generator=torch.Generator().manual_seed(0))
Y = torch.arange(10) % 4


def picture(path, seed=0, size=(12, 9)):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return pixels


def refused(said, data, **options):
    """Opening ``data`` and reading all of it fails with one line that matches ``said``."""

    def read_all():
        images = open_data(data, **options)
        images.batch(range(len(images)))

    with pytest.raises(QuantopsyError, match=said) as caught:
        read_all()
    assert "\n" not in str(caught.value)


@pytest.fixture
def labelled(tmp_path):
    """Five pictures with labels.csv."""
    root = tmp_path / "pictures"
    for i in range(5):
        picture(root / f"{i}.png", i)
    (root / "labels.csv").write_text("file,label\n" + "".join(f"{i}.png,{i * 10}\n" for i in range(5)))
    return root


# --- what the items of a Python object mean


class Singles(Dataset):
    def __len__(self):
        return len(X)

    def __getitem__(self, index):
        return X[index], int(Y[index])


class Streamed(IterableDataset):
    def __iter__(self):
        yield from zip(X, Y.tolist(), strict=True)


FORMS = {
    "dataset": Singles,
    "tensor dataset": lambda: TensorDataset(X, Y),
    "loader": lambda: DataLoader(Singles(), 4),
    "shuffled loader": lambda: DataLoader(Singles(), 4, shuffle=True, drop_last=True),
    "loader of a stream": lambda: DataLoader(Streamed(), 4),
    "list of pairs": lambda: list(zip(X, Y, strict=True)),
    "list of batches": lambda: [(X[:4], Y[:4]), (X[4:], Y[4:])],
    "batches with lists of labels": lambda: [(X[:4], Y[:4].tolist()), (X[4:], Y[4:].tolist())],
    "generator": lambda: ((x, y) for x, y in zip(X, Y, strict=True)),
    "arrays": lambda: [(x.double().numpy(), y.numpy()) for x, y in zip(X, Y, strict=True)],
    "nested": lambda: [((x,), y) for x, y in zip(X, Y, strict=True)],
}


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_every_form_of_the_same_images_is_the_same_data(form):
    images = open_data(form())
    batch = images.batch([7, 0, 3])
    assert len(images) == 10
    assert images.has_labels
    assert images.input_names is None
    torch.testing.assert_close(batch.inputs, (X[[7, 0, 3]],), rtol=0, atol=0)
    assert batch.labels.tolist() == Y[[7, 0, 3]].tolist()
    assert batch.indices.tolist() == [7, 0, 3]
    assert images.fingerprint == open_data(Singles()).fingerprint
    assert images.describe().endswith("3x6x5, labelled")


def test_a_tensor_is_images_without_labels():
    images = open_data(X)
    assert not images.has_labels
    assert images.batch([1]).labels is None
    assert images.fingerprint != open_data(Singles()).fingerprint


def test_named_inputs_keep_their_names():
    items = [{"image": x, "scale": x[0, 0], "target": y} for x, y in zip(X, Y, strict=True)]
    images = open_data(items)
    batch = images.batch([2, 4])
    assert images.input_names == ("image", "scale")
    assert {name: tuple(x.shape) for name, x in batch.inputs.items()} == {"image": (2, 3, 6, 5), "scale": (2, 5)}
    assert batch.labels.tolist() == Y[[2, 4]].tolist()
    assert open_data(DataLoader(items, 3)).batch([2]).inputs["scale"].shape == (1, 5)


def test_several_inputs_and_a_label_map():
    maps = torch.zeros(10, 6, 5, dtype=torch.int32)
    batch = open_data(TensorDataset(X, X + 1, maps)).batch([0, 1])
    assert len(batch.inputs) == 2
    assert batch.labels.shape == (2, 6, 5)
    assert batch.labels.dtype == torch.int64
    both = open_data([(a, a + 1) for a in X])
    assert not both.has_labels
    assert len(both.batch([0]).inputs) == 2


def test_a_sampler_selects():
    loader = DataLoader(Singles(), 2, sampler=SubsetRandomSampler([8, 1, 5]))
    assert open_data(loader).batch([0, 1, 2]).labels.tolist() == Y[[1, 5, 8]].tolist()


def test_data_by_module_and_name(tmp_path, monkeypatch):
    (tmp_path / "my_images.py").write_text(
        "import torch\n"
        "def validation(): return [(torch.ones(3, 4, 4) * i, i) for i in range(3)]\n"
        "def broken(): raise OSError('disk\\nis gone')\n"
        "def nothing(): return []\n"
        "table = 3\n"
    )
    monkeypatch.chdir(tmp_path)
    assert open_data("my_images:validation").batch([2]).labels.tolist() == [2]
    refused("nearest are validation", "my_images:validatoin")
    refused("disk is gone", "my_images:broken")
    refused("no image", "my_images:nothing")
    refused("not callable", "my_images:table")
    refused("'not_there' cannot be imported", "not_there:images")


# --- folders of pictures


def test_a_folder_with_labels(labelled):
    images = open_data(labelled, preprocess=PLAIN)
    batch = images.batch([4, 1])
    assert batch.labels.tolist() == [40, 10]
    expected = np.asarray(Image.open(labelled / "4.png"), dtype=np.float32).transpose(2, 0, 1) / 255
    np.testing.assert_array_equal(batch.inputs[0][0].numpy(), expected)
    assert images.describe() == "5 images of pictures, 3x9x12, labelled"
    assert images.name(1).endswith("1.png")


def test_a_folder_per_class_and_a_folder_of_pictures(tmp_path):
    for name in ("zebra/1.png", "ant/2.png", "ant/deep/3.JPG", ".hidden/4.png"):
        picture(tmp_path / "classes" / name)
    images = open_data(str(tmp_path / "classes"), preprocess=PLAIN)
    assert images.batch(range(3)).labels.tolist() == [0, 0, 1]
    picture(tmp_path / "loose" / "b.png")
    assert not open_data(tmp_path / "loose", preprocess=PLAIN).has_labels


def test_a_copy_of_a_folder_has_its_fingerprint_and_a_changed_one_has_not(labelled, tmp_path):
    fingerprint = open_data(labelled, preprocess=PLAIN).fingerprint
    copy = shutil.copytree(labelled, tmp_path / "copy")
    assert open_data(copy, preprocess=PLAIN).fingerprint == fingerprint
    assert open_data(copy, preprocess={**PLAIN, "channels": "BGR"}).fingerprint != fingerprint
    picture(copy / "3.png", 99)
    assert open_data(copy, preprocess=PLAIN).fingerprint != fingerprint


def test_large_folders_are_hashed_by_sizes_and_some_files(labelled, monkeypatch):
    whole = open_data(labelled, preprocess=PLAIN).fingerprint
    monkeypatch.setattr(sources, "HASHED_BYTES", 0)
    monkeypatch.setattr(sources, "HASHED_FILES", 2)
    part = open_data(labelled, preprocess=PLAIN).fingerprint
    assert part != whole
    with (labelled / "4.png").open("ab") as file:
        file.write(b"x")
    assert open_data(labelled, preprocess=PLAIN).fingerprint != part


def test_what_is_wrong_with_a_folder_is_named(tmp_path, labelled):
    refused("no such folder", tmp_path / "absent")
    refused("it is a file", labelled / "0.png", preprocess=PLAIN)
    (tmp_path / "empty").mkdir()
    refused("no pictures", tmp_path / "empty", preprocess=PLAIN)
    picture(labelled.parent / "mixed" / "a.png")
    picture(labelled.parent / "mixed" / "cat" / "a.png")
    refused("ambiguous", labelled.parent / "mixed", preprocess=PLAIN)
    refused("preprocessing that the network was trained with.*--preprocess", labelled)


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ("name,label\n0.png,1\n", "no column 'file'"),
        ("file,class\n0.png,1\n", "no column 'label'"),
        ("", "no header"),
        ("file,label\n", "lists no image"),
        ("file,label\n0.png,1\n9.png,1\n", "line 3: file '9.png' does not exist"),
        ("file,label\n0.png,cat\n", "line 2: label 'cat' is not an integer"),
        ("file,label\n0.png\n", "label None is not an integer"),
        (b"file,label\n\xff\xfe,1\n", "cannot be read"),
    ],
)
def test_what_is_wrong_with_labels_is_named(labelled, table, said):
    (labelled / "labels.csv").write_bytes(table if isinstance(table, bytes) else table.encode())
    refused(said, labelled, preprocess=PLAIN)


def test_a_broken_picture_is_named_or_left_out(labelled):
    data = (labelled / "2.png").read_bytes()
    (labelled / "2.png").write_bytes(data[: len(data) // 2])
    refused("2.png: it cannot be read", labelled, preprocess=PLAIN)
    (labelled / "0.png").write_text("no picture")
    refused("0.png: it cannot be read .not a picture", labelled, preprocess=PLAIN)
    images = open_data(labelled, preprocess=PLAIN, skip_bad=True)
    assert len(images) == 3
    assert [name.rsplit("/", 1)[-1] for name in images.bad] == ["0.png", "2.png"]
    assert images.batch([0, 1, 2]).labels.tolist() == [10, 30, 40]
    assert "2 bad left out" in images.describe()


def test_a_folder_of_nothing_but_broken_pictures_is_refused(tmp_path):
    (tmp_path / "a.png").write_text("no picture")
    refused("every image is bad", tmp_path, preprocess=PLAIN, skip_bad=True)


def test_pictures_of_different_shapes_are_named_with_both(labelled):
    picture(labelled / "3.png", size=(20, 20))
    refused(r"3.png: its shape is \(3, 20, 20\), that of the first image \(3, 9, 12\)", labelled, preprocess=PLAIN)
    assert open_data(labelled, preprocess={**PLAIN, "crop": 8}).batch(range(5)).inputs[0].shape == (5, 3, 8, 8)


# --- preprocessing


@pytest.mark.parametrize(
    "how",
    [
        {"resize": 8, "crop": 6, "interpolation": "bicubic"},
        {"resize": [7, 11], "channels": "BGR"},
        {"resize": 40, "crop": 20},
        {"crop": 5, "mean": [1, 2, 3], "std": [4, 5, 6]},
    ],
)
def test_preprocessing_equals_the_zoos(zoo, tmp_path, how):
    how = {"mean": [123, 117, 104], "std": [58, 57, 56], **how}
    for size in ((12, 9), (9, 30)):
        picture(tmp_path / "a.png", size=size)
        opened = Image.open(tmp_path / "a.png").convert("RGB")
        np.testing.assert_array_equal(Preprocess.read(how)(opened), zoo._prepare(opened, how).numpy())


@pytest.mark.parametrize("name", ["efficientnet_lite0", "squeezenet1_1", "mobilenet_v2_10"])
def test_the_zoos_preprocessing_is_read(zoo, name):
    Preprocess.read(zoo.NETWORKS[name]["preprocess"])


def test_grey_pictures_are_one_channel(tmp_path):
    picture(tmp_path / "a.png")
    images = open_data(tmp_path, preprocess={"mean": [0], "std": [1], "channels": "GRAY"})
    assert images.batch([0]).inputs[0].shape == (1, 1, 9, 12)


def test_preprocessing_comes_from_a_file_too(tmp_path, labelled):
    file = tmp_path / "how.json"
    file.write_text(json.dumps(PLAIN))
    assert len(open_data(labelled, preprocess=file)) == 5
    file.write_text("{mean")
    refused("how.json: not JSON", labelled, preprocess=file)
    refused("absent.json", labelled, preprocess=tmp_path / "absent.json")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"resise": 3}, "'resise'.*did you mean 'resize'"),
        ({"colour": 3}, "'colour'.*fields are"),
        ({"mean": [1, 2]}, "preprocess mean"),
        ({"mean": "imagenet"}, "preprocess mean"),
        ({"std": [1, 0, 1]}, "preprocess std"),
        ({"resize": 2.5}, "preprocess resize"),
        ({"resize": [1, 2, 3]}, "preprocess resize"),
        ({"crop": 0}, "preprocess crop"),
        ({"interpolation": "nearest"}, "preprocess interpolation"),
        ({"channels": "RBG"}, "preprocess channels"),
    ],
)
def test_what_is_wrong_with_preprocessing_is_named(changes, said):
    with pytest.raises(QuantopsyError, match=said):
        Preprocess.read({**PLAIN, **changes})


def test_missing_preprocessing_fields_are_named():
    with pytest.raises(QuantopsyError, match="'std': it is missing"):
        Preprocess.read({"mean": [0, 0, 0]})
    with pytest.raises(QuantopsyError, match="not an object"):
        Preprocess.read([1])


def test_pictures_in_a_dataset_are_preprocessed_and_tensors_are_not(labelled):
    pairs = [(Image.open(labelled / f"{i}.png").convert("RGB"), i) for i in range(3)]
    assert open_data(pairs, preprocess=PLAIN).batch([0]).inputs[0].shape == (1, 3, 9, 12)
    refused("picture without preprocessing", pairs)
    refused("gives tensors", Singles(), preprocess=PLAIN)
    refused("gives tensors", DataLoader(Singles()), preprocess=PLAIN)


# --- what is wrong with items


class Augmented(Singles):
    def __getitem__(self, index):
        return X[index] + torch.rand(()), 0


class Failing(Singles):
    def __getitem__(self, index):
        if index == 6:
            raise ValueError("no such\nrow")
        return super().__getitem__(index)


def with_nan():
    x = X.clone()
    x[3, 1, 2, 2] = float("nan")
    x[5, 0, 0, 0] = float("-inf")
    return x


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ([], "no image"),
        (iter(()), "no image"),
        (7, "a int is no collection"),
        ([("a", "b")], "holds a str"),
        ([()], "no input"),
        ([X[0], X[1, :2]], r"image 1 of list: its shape is \(2, 6, 5\)"),
        ([(X[0], 1), X[1]], "image 1 of list: it has no label"),
        ([(X[0], 1), (X[1], X[2], 1)], "its inputs are 2 unnamed"),
        ([(X[0], Y), (X[1], Y[:2])], "its label has shape"),
        ([{"x": X[0], "y": 1, "label": 1}], "could be the label"),
        ([(X[:4], Y[:3])], "different first dimensions"),
        (with_nan(), "image 3 of Tensor: it holds a NaN or infinite"),
        (Augmented(), "two reads of it differ"),
        (Failing(), "image 6 of Failing: reading it failed .ValueError: no such row"),
        ((1 / 0 for _ in range(2)), "item 0 of generator: reading it failed"),
    ],
)
def test_what_is_wrong_with_items_is_named(data, said):
    refused(said, data)


def test_bad_items_are_left_out_when_asked():
    images = open_data(with_nan(), skip_bad=True)
    assert images.bad == ("image 3 of Tensor", "image 5 of Tensor")
    torch.testing.assert_close(images.batch([3]).inputs[0][0], X[4])
    assert len(open_data(Failing(), skip_bad=True)) == 9


def test_a_stream_is_kept_only_within_bounds(monkeypatch):
    monkeypatch.setattr(sources, "MATERIALISED_BYTES", 5000)
    refused("give a torch Dataset", (x for x in X.repeat(4, 1, 1, 1)))

    def endless():
        while True:
            yield X[0]

    refused("give a torch Dataset", endless())


def test_images_are_read_when_they_are_asked_for():
    read = []

    class Watched(Singles):
        def __getitem__(self, index):
            read.append(index)
            return super().__getitem__(index)

    images = open_data(Subset(Watched(), range(10)))
    read.clear()
    images.batch([4, 2])
    assert read == [4, 2]


# --- order and reading ahead


@given(st.integers(0, 400))
def test_the_order_is_a_permutation(n):
    assert sorted(evenly_spaced_order(n)) == list(range(n))


@pytest.mark.parametrize("n", [7, 64, 1000, 1024])
def test_every_prefix_is_nearly_evenly_spaced(n):
    order = evenly_spaced_order(n)
    for m in range(1, n + 1):
        taken = np.sort(order[:m])
        # Star discrepancy: how far the count up to any position is from its share.
        count = np.arange(1, m + 1)
        share = m * (taken + 1) / n
        assert np.abs(count - share).max() <= 2.0 + np.log2(m + 1) / 2.0
        gaps = np.diff(np.concatenate([taken, [taken[0] + n]]))
        assert gaps.max() <= 2.62 * n / m + 3


@pytest.mark.parametrize("period", [2, 4, 8, 10])
def test_classes_that_alternate_are_all_taken(period):
    taken = evenly_spaced_order(5000)[:200] % period
    assert np.bincount(taken, minlength=period).min() > 0.5 * 200 / period


def threads():
    return [t for t in threading.enumerate() if t.name.startswith("quantopsy-prefetch")]


def test_prefetch_gives_the_batches_in_order():
    images = open_data(TensorDataset(X, Y))
    tiles = [[0, 1, 2], [5, 4], [9]]
    batches = list(prefetch(images, tiles))
    assert [batch.indices.tolist() for batch in batches] == tiles
    torch.testing.assert_close(batches[1].inputs[0], X[[5, 4]])
    assert list(prefetch(images, [])) == []


def test_prefetch_reads_one_tile_ahead_and_no_more():
    images = open_data(TensorDataset(X, Y))
    asked = []

    def tiles():
        for i in range(10):
            asked.append(i)
            yield [i]

    ahead = []
    for position, _ in enumerate(prefetch(images, tiles())):
        time.sleep(0.002)
        ahead.append(len(asked) - 1 - position)
    assert max(ahead) == 1


def test_prefetch_raises_where_the_tile_is_asked_for_and_leaves_no_thread():
    batches = prefetch(open_data(Failing()), [[0], [6], [7]])
    assert next(batches).indices.tolist() == [0]
    with pytest.raises(QuantopsyError, match="image 6"):
        next(batches)
    assert not threads()


def test_prefetch_stops_with_its_reader():
    batches = prefetch(open_data(Singles()), ([i % 10] for i in range(1000)))
    next(batches)
    batches.close()
    assert not threads()
