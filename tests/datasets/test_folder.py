"""`folder:`: every layout it can describe, and every fault it names."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ovstrans.datasets.description import read_description
from ovstrans.datasets.folder import FolderDataset, ImageFolder
from ovstrans.datasets.images import read_image, read_label
from ovstrans.datasets.sample import Sample
from ovstrans.errors import InputError, MismatchError

TOML = 'classes = ["sky", "road, street", "car"]\nimages = "{split}"\nlabels = "{split}annot"\n'
LABEL = np.array([[0, 1, 2, 255], [2, 2, 1, 0]], dtype=np.uint8)


def put_image(
    path: Path, *, size: tuple[int, int] = (4, 2), color: tuple[int, ...] = (10, 200, 30), mode: str = "RGB"
) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, color[:3]).convert(mode).save(path)


def put_label(path: Path, values: np.ndarray = LABEL) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values).save(path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "dataset.toml").write_text(TOML, encoding="utf-8")
    for name in ("b", "a"):
        put_image(tmp_path / "train" / f"{name}.png")
        put_label(tmp_path / "trainannot" / f"{name}.png")
    return tmp_path


def opened(path: Path, split: str = "train", **options: bool) -> FolderDataset:
    return FolderDataset(read_description(path), split, **options)


def describe(folder: Path, text: str) -> None:
    (folder / "dataset.toml").write_text(text, encoding="utf-8")


def fault(path: Path, split: str = "train") -> str:
    """The one line that opening and reading everything ends in."""
    with pytest.raises(InputError) as caught:
        dataset = opened(path, split)
        for index in range(len(dataset)):
            dataset[index]
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_dangling_symlinks_are_missing_files(folder: Path) -> None:
    image, label = folder / "train/c.png", folder / "trainannot/a.png"
    image.symlink_to("gone.png")
    put_label(folder / "trainannot/c.png")
    assert f"{image}: no such file, only a link to gone.png" in fault(folder)
    label.unlink()
    label.symlink_to(label)  # to itself
    first, second = opened(folder, allow_missing=True).missing
    assert first.startswith(f"{image}: ") and f"has no label map {label}" in second
    with pytest.raises(InputError, match="c.png: no such file, only a link to gone.png"):
        ImageFolder(folder / "train")
    image.unlink()
    image.symlink_to("a.png")  # a link to something is a file
    assert len(ImageFolder(folder / "train")) == 3


def test_images_and_labels_come_in_order_as_pairs(folder: Path) -> None:
    dataset = opened(folder)
    sample = dataset[0]
    assert [dataset[i].name for i in range(len(dataset))] == ["a", "b"]
    assert (dataset.name, dataset.split, dataset.ignore) == (folder.name, "train", 255)
    assert dataset.vocabulary.classes == (("sky",), ("road", "street"), ("car",))
    assert sample.image.shape == (3, 2, 4) and sample.image.dtype == torch.uint8
    assert sample.image[:, 0, 0].tolist() == [10, 200, 30]
    assert sample.label is not None and sample.label.dtype == torch.uint8
    assert sample.label.tolist() == LABEL.tolist()


def test_without_labels_no_label_map_is_needed(folder: Path) -> None:
    (folder / "trainannot").rename(folder / "elsewhere")
    assert opened(folder, labels=False)[0].label is None


def test_offset_and_ignore_values_are_mapped(folder: Path) -> None:
    describe(folder, TOML + "offset = 1\nignore = [0, 7]\n")
    for name in "ab":
        put_label(folder / "trainannot" / f"{name}.png", np.array([[0, 1, 2, 3], [7, 7, 3, 1]], dtype=np.uint8))
    label = opened(folder)[0].label
    assert label is not None
    assert label.tolist() == [[255, 0, 1, 2], [255, 255, 2, 0]]


def test_a_class_value_may_be_255_unless_ignored(folder: Path) -> None:
    names = ", ".join(f'"c{i}"' for i in range(300))
    describe(folder, TOML.replace('"sky", "road, street", "car"', names))
    wide = np.array([[255, 256, 299, 65535], [0, 1, 2, 3]], dtype=np.uint16)
    for name in "ab":
        put_label(folder / "trainannot" / f"{name}.png", wide)
    dataset = opened(folder)
    label = dataset[0].label
    assert dataset.ignore == 65535
    assert label is not None and label.dtype == torch.int64
    assert label.tolist() == wide.tolist()


def test_the_description_may_lie_elsewhere(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("mine") / "street.toml"
    path.write_text(f'root = "{folder}"\nname = "street"\n' + TOML, encoding="utf-8")
    dataset = opened(path)
    assert (len(dataset), dataset.name) == (2, "street")


def test_suffixes_and_deep_folders(tmp_path: Path) -> None:
    describe(
        tmp_path,
        'classes = ["sky", "road", "car"]\nimages = "left/{split}"\nlabels = "fine/{split}"\n'
        'image_suffix = "_left.png"\nlabel_suffix = "_fine_ids.png"\n',
    )
    put_image(tmp_path / "left/val/ulm/0_left.png")
    put_image(tmp_path / "left/val/ulm/0_right.png")
    put_label(tmp_path / "fine/val/ulm/0_fine_ids.png")
    dataset = opened(tmp_path, "val")
    assert [dataset[i].name for i in range(len(dataset))] == ["ulm/0"]


def test_the_longest_image_suffix_is_removed_from_the_name(tmp_path: Path) -> None:
    describe(
        tmp_path,
        'classes = ["sky", "road", "car"]\nimages = "images"\nlabels = "labels"\n'
        'image_suffix = [".png", "_left.png"]\n',
    )
    put_image(tmp_path / "images/0_left.png")
    put_label(tmp_path / "labels/0.png")
    assert opened(tmp_path, "all")[0].name == "0"


def test_splits_by_folder_by_place_and_by_list(folder: Path) -> None:
    (folder / "lists").mkdir()
    (folder / "lists/some.txt").write_text("# one\nb.png\n\n", encoding="utf-8")
    (folder / "lists/bare.txt").write_text("b\na\n", encoding="utf-8")
    describe(
        folder,
        TOML + '[splits]\nfit = "train"\n'
        'val = { images = "train", labels = "trainannot", list = "lists/some.txt" }\n'
        'test = { images = "train", labels = "trainannot", list = "lists/bare.txt" }\n',
    )
    found = {s: [x.name for x in iterate(opened(folder, s))] for s in ("fit", "val", "test")}
    assert found == {"fit": ["a", "b"], "val": ["b"], "test": ["b", "a"]}
    assert "no split 'train'; it has fit, val, test" in fault(folder, "train")


def test_a_folder_without_splits_has_one_called_all(folder: Path) -> None:
    describe(folder, 'classes = ["sky", "road", "car"]\nimages = "train"\nlabels = "trainannot"\n')
    assert len(opened(folder, "all")) == 2
    assert "it has all" in fault(folder, "val")


def iterate(dataset: FolderDataset) -> list[Sample]:
    return [dataset[i] for i in range(len(dataset))]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (TOML + "imagess = 'x'\n", "did you mean 'images'"),
        (TOML.replace("images =", "pictures ="), "unknown key 'pictures'"),
        ('classes = ["a"]\nlabels = "x"\n', "images is missing"),
        ('classes = ["a"]\nimages = "x"\n', "labels is missing"),
        ('images = "x"\nlabels = "y"\n', "classes is missing"),
        (TOML + "offset = -1\n", "offset is -1"),
        (TOML + "offset = 65534\n", "do not fit"),
        (TOML + 'ignore = ["x"]\n', "ignore is 'x'"),
        (TOML + "image_suffix = 3\n", "image_suffix is 3"),
        (TOML + "root = 3\n", "root is 3"),
        (TOML + "splits = 3\n", "splits must be a section"),
        (TOML + "[splits]\ntrain = 3\n", "splits.train is 3"),
        (TOML + "[splits]\ntrain = { image = 'x' }\n", "did you mean 'images'"),
        ("classes = [", "not valid TOML"),
    ],
)
def test_a_wrong_description_is_named_with_its_fault(folder: Path, text: str, message: str) -> None:
    describe(folder, text)
    line = fault(folder)
    assert message in line
    assert str(folder / "dataset.toml") in line


def test_a_missing_description_is_named(tmp_path: Path) -> None:
    assert f"{tmp_path / 'dataset.toml'}: missing" in fault(tmp_path)


def test_missing_folders_are_named(folder: Path) -> None:
    assert str(folder / "val") in fault(folder, "val")
    (folder / "trainannot").rename(folder / "elsewhere")
    assert str(folder / "trainannot") in fault(folder)


def test_an_empty_folder_is_named(folder: Path) -> None:
    (folder / "val").mkdir()
    (folder / "valannot").mkdir()
    (folder / "val" / "notes.txt").write_text("x", encoding="utf-8")
    assert f"{folder / 'val'}: no image" in fault(folder, "val")


def test_an_image_without_label_map_is_named(folder: Path) -> None:
    (folder / "trainannot/a.png").unlink()
    line = fault(folder)
    assert str(folder / "train/a.png") in line and str(folder / "trainannot/a.png") in line
    (folder / "trainannot/b.png").unlink()
    assert "and 1 more" in fault(folder)


def test_list_faults_are_named(folder: Path) -> None:
    describe(folder, TOML + 'list = "{split}.txt"\n')
    assert "no such list file" in fault(folder)
    (folder / "train.txt").write_text("\n", encoding="utf-8")
    assert "lists no image" in fault(folder)
    (folder / "train.txt").write_text("c\n", encoding="utf-8")
    assert str(folder / "train/c") in fault(folder)


def test_a_size_mismatch_is_named(folder: Path) -> None:
    put_label(folder / "trainannot/a.png", LABEL[:, :3])
    line = fault(folder)
    assert "3x2" in line and "4x2" in line and str(folder / "trainannot/a.png") in line
    with pytest.raises(MismatchError):
        opened(folder)[0]


@pytest.mark.parametrize("value", [3, 254])
def test_a_label_value_outside_the_names_is_named(folder: Path, value: int) -> None:
    values = LABEL.copy()
    values[1, 2] = value
    put_label(folder / "trainannot/b.png", values)
    line = fault(folder)
    assert f"label value {value} is none of the 3 classes (0 to 2)" in line
    assert str(folder / "trainannot/b.png") in line


def test_a_label_value_beyond_16_bits_is_named(folder: Path) -> None:
    Image.fromarray(LABEL).save(folder / "trainannot/b.tif")
    Image.fromarray(np.full((2, 4), -5, dtype=np.int32)).save(folder / "trainannot/a.tif")
    describe(folder, TOML + 'label_suffix = ".tif"\n')
    assert "label value -5" in fault(folder)
    Image.fromarray(np.full((2, 4), 70000, dtype=np.int32)).save(folder / "trainannot/a.tif")
    assert "label value 70000" in fault(folder)


def test_a_label_map_of_colours_is_refused(folder: Path) -> None:
    put_image(folder / "trainannot/a.png")
    assert fault(folder).startswith(f"{folder / 'trainannot/a.png'}: a label map must hold one number per pixel")


@pytest.mark.parametrize("place", ["train/a.png", "trainannot/a.png"])
@pytest.mark.parametrize("damage", ["text", "cut", "empty"])
def test_a_corrupt_file_is_named(folder: Path, place: str, damage: str) -> None:
    noise = np.random.default_rng(0).integers(0, 3, (200, 200), dtype=np.uint8)
    Image.fromarray(noise).save(folder / place)
    whole = (folder / place).read_bytes()
    (folder / place).write_bytes({"text": b"not an image", "cut": whole[: len(whole) // 2], "empty": b""}[damage])
    assert str(folder / place) in fault(folder)


def test_palette_label_maps_are_read_as_indices(tmp_path: Path) -> None:
    picture = Image.fromarray(LABEL, mode="P")
    picture.putpalette([90, 90, 90] * 256)
    picture.save(tmp_path / "l.png")
    assert read_label(tmp_path / "l.png").tolist() == LABEL.tolist()


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_16_bit_label_maps_stay_16_bit(tmp_path: Path, suffix: str) -> None:
    values = np.array([[0, 300], [65535, 846]], dtype=np.uint16)
    Image.fromarray(values).save(tmp_path / f"l{suffix}")
    assert read_label(tmp_path / f"l{suffix}").tolist() == values.tolist()


def test_exif_rotation_is_honoured(tmp_path: Path) -> None:
    picture = Image.new("RGB", (6, 4), (0, 0, 0))
    picture.paste((255, 255, 255), (0, 0, 3, 4))  # the left half is white
    exif = Image.Exif()
    exif[0x0112] = 6  # turn clockwise to see it upright: left becomes top
    picture.save(tmp_path / "r.png", exif=exif)
    image = read_image(tmp_path / "r.png")
    assert image.shape == (3, 6, 4)
    assert image[0, 0].tolist() == [255] * 4 and image[0, -1].tolist() == [0] * 4


@pytest.mark.parametrize(
    ("mode", "name"), [("L", "x.png"), ("RGBA", "x.png"), ("CMYK", "x.jpg"), ("P", "x.png"), ("1", "x.png")]
)
def test_every_kind_of_image_becomes_rgb(tmp_path: Path, mode: str, name: str) -> None:
    put_image(tmp_path / name, color=(255, 255, 255), mode=mode)
    image = read_image(tmp_path / name)
    assert image.shape == (3, 2, 4) and image.dtype == torch.uint8
    assert int(image.min()) >= 250


def test_a_16_bit_image_is_scaled_not_cut_off(tmp_path: Path) -> None:
    Image.fromarray(np.array([[0, 128 * 256], [65535, 255]], dtype=np.uint16)).save(tmp_path / "x.png")
    assert read_image(tmp_path / "x.png")[1].tolist() == [[0, 128], [255, 0]]


def test_any_folder_of_images(tmp_path: Path) -> None:
    put_image(tmp_path / "b/deep/2.JPG")
    put_image(tmp_path / "a.png")
    put_image(tmp_path / ".thumbs/hidden.png")
    (tmp_path / "readme.txt").write_text("x", encoding="utf-8")
    dataset = ImageFolder(tmp_path)
    assert [dataset[i].name for i in range(len(dataset))] == ["a", "b/deep/2"]
    assert dataset[0].label is None and len(dataset.vocabulary) == 0


def test_a_folder_without_images_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no image in it"):
        ImageFolder(tmp_path)
    with pytest.raises(InputError, match="no such folder"):
        ImageFolder(tmp_path / "missing")
