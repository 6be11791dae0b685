"""Atomic writes and the errors of reading."""

import json
import stat
from pathlib import Path

import pytest
import torch

from ovstrans import files
from ovstrans.errors import InputError, MissingFileError


def test_a_failed_write_leaves_the_old_file_and_no_litter(tmp_path):
    path = tmp_path / "out" / "a.json"
    files.write_json(path, {"x": 1})
    with pytest.raises(RuntimeError), files.atomic_path(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert json.loads(path.read_text()) == {"x": 1}
    assert [item.name for item in path.parent.iterdir()] == ["a.json"]


def test_written_files_have_ordinary_permissions(tmp_path):
    files.write_text(tmp_path / "a.txt", "x")
    (tmp_path / "b.txt").write_text("x")
    assert stat.S_IMODE((tmp_path / "a.txt").stat().st_mode) == stat.S_IMODE((tmp_path / "b.txt").stat().st_mode)


def test_json_has_no_nan(tmp_path):
    with pytest.raises(ValueError, match="Out of range float"):
        files.write_json(tmp_path / "a.json", {"x": float("nan")})
    assert not list(tmp_path.iterdir())


def test_outputs_are_checked_before_the_work(tmp_path):
    (tmp_path / "file").write_text("x")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "inside").write_text("x")
    with pytest.raises(InputError, match="exists already.*`force=True`"):
        files.check_output(tmp_path / "file")
    with pytest.raises(InputError, match="a folder is in the way"):
        files.check_output(tmp_path / "folder")
    with pytest.raises(InputError, match="is not a folder"):
        files.check_output(tmp_path / "file" / "below" / "a.json")
    with pytest.raises(InputError, match="exists already"):
        files.check_output(tmp_path / "folder", directory=True)
    assert files.check_output(tmp_path / "file", force=True) == tmp_path / "file"
    assert files.check_output(tmp_path / "new" / "deep" / "a.json")
    (tmp_path / "empty").mkdir()
    assert files.check_output(tmp_path / "empty", directory=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "file", "folder"]
    with pytest.raises(InputError, match="give another `json`, or `force=True`"):
        files.check_output(tmp_path / "file", option="json")


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="a folder in which not even root can make a file")
@pytest.mark.parametrize("name", ["/proc/x", "/proc/new/deep/a.json"])
def test_permissions_are_tried_not_asked_for(name):
    with pytest.raises(InputError, match=r"nothing can be written in /proc \(.+\); give another `out`"):
        files.check_output(name)


def test_devices_are_no_outputs():
    with pytest.raises(InputError, match="not an ordinary file"):
        files.check_output("/dev/null", force=True)


def test_unwritable_folder_is_one_clear_error(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match="cannot be written"):
        files.write_text(tmp_path / "file" / "a.txt", "x")


def test_reading_names_the_fault(tmp_path):
    (tmp_path / "a.json").write_text("{broken")
    (tmp_path / "b.json").write_text('{"schema": "other/1"}')
    (tmp_path / "c.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="a.json: not valid JSON"):
        files.read_json(tmp_path / "a.json")
    with pytest.raises(InputError, match="schema is 'other/1', 'mine/1' is needed"):
        files.read_json(tmp_path / "b.json", "mine/1")
    with pytest.raises(InputError, match="c.json"):
        files.read_json(tmp_path / "c.json")
    with pytest.raises(FileNotFoundError, match="none.json: no such file"):
        files.read_json(tmp_path / "none.json")
    with pytest.raises(InputError, match="is a folder"):
        files.read_json(tmp_path)


def test_tensors_round_trip_with_metadata(tmp_path):
    tensors = {"a": torch.randn(3, 4).T, "b": torch.tensor(2)}
    files.write_tensors(tmp_path / "t.safetensors", tensors, {"format": "x"})
    back, metadata = files.read_tensors(tmp_path / "t.safetensors")
    assert torch.equal(back["a"], tensors["a"])
    assert metadata == {"format": "x"}


def test_a_missing_input_is_not_taken_for_an_output_that_cannot_be_written(tmp_path):
    with pytest.raises(MissingFileError) as caught, files.atomic_path(tmp_path / "out"):
        files.existing_file(tmp_path / "in")
    assert str(caught.value) == f"{tmp_path / 'in'}: no such file"
    assert not list(tmp_path.iterdir())


def test_several_missing_files_are_one_error():
    files.refuse_missing([])
    with pytest.raises(MissingFileError, match=r"^a: no such file \(and 2 more\)$"):
        files.refuse_missing([f"{name}: no such file" for name in "abc"])
