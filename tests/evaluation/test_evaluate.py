"""Evaluation: at the resolution of the truth, whatever the model saw."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ovstrans.datasets.sample import Sample, Segment
from ovstrans.errors import InputError, MismatchError
from ovstrans.evaluation.evaluate import DatasetResult, evaluate, fail_together, original_message
from ovstrans.evaluation.inference import Inference, predict_image
from ovstrans.evaluation.metrics import ConfusionMatrix, compute_metrics
from ovstrans.frameworks.mask2former_inference import QueryScores
from ovstrans.frameworks.scores import MapScores, Scores
from ovstrans.vocabulary.vocabulary import Vocabulary

CLASSES = 4


class Blocks:
    """Images whose red, in steps of 60, is their class; sizes change, a corner is ignored."""

    name, split, ignore = "blocks", "val", 255
    published_size: tuple[int, int] | None = None
    videos: Sequence[range] = ()

    def __init__(self, length: int = 5, labels: bool = True, classes: int = CLASSES) -> None:
        names = tuple((f"c{i}",) for i in range(classes))
        self.vocabulary = Vocabulary(name="blocks", classes=names, novel=frozenset({classes - 1}))
        self.length, self.labels = length, labels

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Sample:
        if index >= self.length:
            raise IndexError(index)
        height, width = (40, 60) if index < 3 else (64, 32)
        generator = torch.Generator().manual_seed(index)
        coarse = torch.randint(0, CLASSES, (height // 4, width // 4), generator=generator)
        label = coarse.repeat_interleave(4, 0).repeat_interleave(4, 1).to(torch.uint8)
        image = torch.stack([label * 60, torch.zeros_like(label), torch.full_like(label, 7)])
        label = label.clone()
        label[:5, :5] = 255
        return Sample(image=image, label=label if self.labels else None, name=f"blocks-{index}")


class Reader(nn.Module):
    """Scores class c by how near red is to 60 c; `wrong` classes are read as their neighbour below."""

    def __init__(self, classes: int = CLASSES, wrong: int = -1, stride: int = 1) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(3)
        self.classes, self.wrong, self.stride = classes, wrong, stride
        self.seen: list[tuple[int, ...]] = []

    def scores(self, images: Tensor, text: object = None) -> list[Scores]:
        return [MapScores(maps, (images.shape[-2], images.shape[-1])) for maps in self.segment(images)]

    def segment(self, images: Tensor) -> Tensor:
        assert not self.training and not self.norm.training
        assert images.dtype == torch.float32 and float(images.max()) <= 1
        self.seen.append(tuple(images.shape))
        level = images[:, :1] * 255 / 60
        steps = torch.arange(self.classes, dtype=torch.float32).view(1, -1, 1, 1)
        scores = -(level - steps).abs()
        if self.wrong >= 0:
            scores[:, self.wrong] -= 10
        return scores


def test_a_perfect_reader_scores_100_and_the_report_is_plain_json() -> None:
    result = evaluate(Reader(), Blocks())
    assert (result.dataset, result.split, result.images, result.denominator) == ("blocks", "val", 5, "present")
    for value in (result.miou, result.fwiou, result.macc, result.pacc):
        assert value == pytest.approx(100)
    for value in (result.miou_base, result.miou_novel, result.hiou):
        assert value == pytest.approx(100)
    assert [entry.name for entry in result.per_class] == ["c0", "c1", "c2", "c3"]
    report = result.to_json()
    assert json.loads(json.dumps(report, allow_nan=False)) == report


def test_errors_count_where_they_belong() -> None:
    result = evaluate(Reader(wrong=3), Blocks())
    assert result.miou_novel == 0 and result.hiou == 0
    ious = [entry.iou for entry in result.per_class]
    assert ious[0] == ious[1] == pytest.approx(100)
    pixels = [entry.pixels for entry in result.per_class]
    assert ious[2] == pytest.approx(100 * pixels[2] / (pixels[2] + pixels[3]))
    assert sum(pixels) == 3 * 40 * 60 + 2 * 64 * 32 - 5 * 25


def test_the_model_sees_the_evaluation_size_and_the_truth_keeps_its_own() -> None:
    model = Reader()
    shapes = []
    result = evaluate(
        model, Blocks(), inference=Inference(16, 24), on_image=lambda i, s, p: shapes.append((i, tuple(p.shape)))
    )
    assert model.seen == [(3, 3, 16, 24), (2, 3, 24, 12)]
    assert shapes == [(0, (40, 60)), (1, (40, 60)), (2, (40, 60)), (3, (64, 32)), (4, (64, 32))]
    assert result.miou is not None and 0 < result.miou < 100


def test_batches_hold_neighbours_of_one_size_and_change_no_result() -> None:
    model = Reader(wrong=1)
    together = evaluate(model, Blocks(), batch_size=2)
    assert [shape[0] for shape in model.seen] == [2, 1, 1, 1]  # blocks of two, and sizes change within the second
    assert together == evaluate(model, Blocks(), batch_size=1) == evaluate(model, Blocks(), batch_size=5)


def test_limit_takes_the_first_images() -> None:
    seen: list[str] = []
    result = evaluate(Reader(), Blocks(), limit=2, on_image=lambda i, s, p: seen.append(s.name))
    assert result.images == 2 and seen == ["blocks-0", "blocks-1"]


def test_the_framework_is_left_in_the_mode_it_was_in() -> None:
    model = Reader().train()
    model.norm.eval()
    evaluate(model, Blocks(1))
    assert model.training and not model.norm.training
    predict_image(model, Blocks()[0].image)
    assert model.training and not model.norm.training


def test_refusals_are_one_line() -> None:
    with pytest.raises(InputError, match="blocks-0 has no label"):
        evaluate(Reader(), Blocks(labels=False))
    with pytest.raises(MismatchError, match="scores 3 classes, blocks has 4"):
        evaluate(Reader(3), Blocks())
    with pytest.raises(InputError, match="no image to evaluate"):
        evaluate(Reader(), Blocks(0))


def test_nan_scores_are_refused() -> None:
    class Broken(Reader):
        def segment(self, images: Tensor) -> Tensor:
            return super().segment(images).index_fill(1, torch.tensor([2]), float("nan"))

    with pytest.raises(InputError, match="NaN"):
        evaluate(Broken(), Blocks())
    with pytest.raises(InputError, match="NaN"):
        predict_image(Broken(), Blocks()[0].image)


def test_a_prediction_has_the_size_of_its_image() -> None:
    sample = Blocks()[0]
    model = Reader()
    found = predict_image(model, sample.image, inference=Inference(20))
    assert found.classes.shape == (40, 60) and found.confidence is None and model.seen == [(1, 3, 20, 30)]
    assert torch.equal(predict_image(model, sample.image).classes, (sample.image[0] // 60).long())
    assert predict_image(model, sample.image, size=(7, 5)).classes.shape == (7, 5)


class Mini(Blocks):
    """Blocks for a network: its batches must not depend on who evaluates what."""

    def __init__(self, length: int, videos: Sequence[range] = (), broken: int = -1) -> None:
        super().__init__(length)
        self.videos, self.broken = videos, broken

    def __getitem__(self, index: int) -> Sample:
        if index == self.broken:
            raise InputError(f"blocks-{index}.png: cannot be read")
        return super().__getitem__(index)


class Net(nn.Module):
    """A small convolutional network; its sums depend on the batch by rounding."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.net = nn.Sequential(nn.Conv2d(3, 32, 5, padding=2), nn.ReLU(), nn.Conv2d(32, CLASSES, 3, padding=1))

    def scores(self, images: Tensor, text: object = None) -> Sequence[Scores]:
        return [MapScores(maps, (images.shape[-2], images.shape[-1])) for maps in self.net(images)]


CASES: dict[str, tuple[Mini, int]] = {
    "even": (Mini(4), 1),
    "uneven": (Mini(5), 2),
    "one rank without an image": (Mini(1), 1),
    "one rank without a block": (Mini(5), 8),
    "videos stay whole": (Mini(5, videos=[range(0, 3), range(4, 5)]), 2),
}


def _evaluate_shares(rank: int, world: int, folder: str) -> None:
    torch.set_num_threads(1)  # OpenMP's pool does not survive a fork
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=world)
    try:
        found: dict[str, Any] = {}
        for name, (dataset, batch_size) in CASES.items():
            seen: list[int] = []
            done: list[int] = []
            result = evaluate(
                Net(),
                dataset,
                batch_size=batch_size,
                on_image=lambda index, *_: seen.append(index),  # noqa: B023
                progress=lambda progress: done.append(progress.done),  # noqa: B023
            )
            assert result.confusion is not None
            counts = result.confusion.counts.tolist()
            found[name] = {"report": result.to_json(), "seen": seen, "done": done, "counts": counts}
        try:
            evaluate(Net(), Mini(5, broken=3), batch_size=1)
        except InputError as error:
            found["error"], found["said"] = str(error), original_message(error)
        try:
            with fail_together():
                raise [InputError("no such file"), RuntimeError("our bug")][rank]
        except Exception as error:
            found["worse"] = [type(error).__name__, str(error)]
        (Path(folder) / f"{rank}.json").write_text(json.dumps(found), encoding="utf-8")
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.skipif(sys.platform != "linux", reason="forks, which spares the children a slow import")
def test_two_processes_report_what_one_does(tmp_path: Path) -> None:
    """The same counts to the last one, every image once, and no one waits for a rank that failed."""
    processes = torch.multiprocessing.start_processes(
        _evaluate_shares, args=(2, str(tmp_path)), nprocs=2, start_method="fork"
    )
    assert processes is None  # joined, and none failed
    found = [json.loads((tmp_path / f"{rank}.json").read_text(encoding="utf-8")) for rank in (0, 1)]
    for name, (dataset, batch_size) in CASES.items():
        alone = evaluate(Net(), dataset, batch_size=batch_size)
        assert alone.confusion is not None
        counts = alone.confusion.counts.tolist()
        first, second = (each[name] for each in found)
        assert first["report"] == second["report"] == alone.to_json(), name
        assert first["counts"] == second["counts"] == counts, name
        assert sum(map(sum, counts)) == sum(entry.pixels for entry in alone.per_class)
        for each in (first, second):  # progress is that of both ranks together
            assert each["done"][-1] == min(2 * len(each["seen"]), len(dataset)), name
        assert sorted(first["seen"] + second["seen"]) == list(range(len(dataset))), name
    assert not found[1]["one rank without an image"]["seen"] and not found[1]["one rank without a block"]["seen"]
    assert found[0]["videos stay whole"]["seen"] == [0, 1, 2, 4]
    assert found[1]["error"] == "blocks-3.png: cannot be read"
    assert found[0]["error"] == "rank 0 stops, since rank 1 failed: blocks-3.png: cannot be read"
    assert [each["said"] for each in found] == ["blocks-3.png: cannot be read"] * 2
    # whoever passes over bad input would wait for a rank that has left with a bug
    assert found[0]["worse"] == ["OvstransError", "rank 0 stops, since rank 1 failed: our bug"]
    assert found[1]["worse"] == ["RuntimeError", "our bug"]


def test_videos_are_reported_with_their_consistency() -> None:
    video = evaluate(Reader(), Mini(5, videos=[range(0, 2), range(3, 5)])).video
    assert video is not None and video.videos == 2 and video.windows[8].mvc is None  # none has 8 frames
    assert evaluate(Reader(), Blocks()).video is None


class Segments(Blocks):
    """Blocks with panoptic truth: a segment of stuff per class."""

    def __getitem__(self, index: int) -> Sample:
        sample = super().__getitem__(index)
        assert sample.label is not None
        kinds = [int(kind) for kind in sample.label.unique() if kind != 255]
        sample.segments = [Segment(kind + 1, kind, False, int((sample.label == kind).sum())) for kind in kinds]
        sample.segment_map = torch.where(sample.label == 255, 0, sample.label.int() + 1)
        return sample


class Panoptic(nn.Module):
    """A query per class whose mask is where red says so."""

    panoptic_masks_first = True

    def __init__(self) -> None:
        super().__init__()
        self.orders: list[bool] = []

    def scores(self, images: Tensor, text: object = None) -> Sequence[Scores]:
        level = (images[:, :1] * 255 / 60).round() - torch.arange(CLASSES).view(1, -1, 1, 1)
        probabilities = torch.cat([0.9 * torch.eye(CLASSES), torch.full((CLASSES, 1), 0.1)], dim=1)
        size = (int(images.shape[-2]), int(images.shape[-1]))
        return [QueryScores(probabilities, 30 - 60 * each.abs(), size) for each in level]

    def panoptic_from_scores(self, scores: QueryScores, text: object = None) -> tuple[Tensor, list[Segment]]:
        self.orders.append(scores.masks_first)
        return scores.panoptic(set(), object_threshold=0.5, overlap_threshold=0.5)


def test_panoptic_quality_where_both_can() -> None:
    model = Panoptic()
    result = evaluate(model, Segments(), panoptic=True)
    assert result.panoptic is not None
    assert result.panoptic.all.pq == pytest.approx(100) and result.miou == pytest.approx(100)
    assert result.panoptic.num_stuff == CLASSES and model.orders == [True] * 5
    assert evaluate(model, Segments()).panoptic is None
    assert evaluate(model, Blocks(), panoptic=True).panoptic is None
    assert evaluate(Reader(), Segments(), panoptic=True).panoptic is None
    with pytest.raises(InputError, match="panoptic quality: not possible with windows or a mirrored image"):
        evaluate(model, Segments(), panoptic=True, inference=Inference(flip=True))


def test_a_dataset_is_evaluated_at_its_published_size_unless_told_otherwise() -> None:
    model, dataset = Reader(), Blocks(1)
    dataset.published_size = (20, 25)
    assert evaluate(model, dataset).inference == Inference(20, 25)
    assert evaluate(model, dataset, inference=Inference()).inference == Inference()
    assert [shape[-2:] for shape in model.seen] == [(17, 25), (40, 60)]


def test_the_report_is_what_metrics_say_of_the_counts() -> None:
    dataset, confusion = Blocks(), ConfusionMatrix(CLASSES)
    model = Reader(wrong=0)

    def add(index: int, sample: Sample, prediction: Tensor) -> None:
        assert sample.label is not None
        confusion.add(prediction, sample.label, ignore=255)

    result = evaluate(model, dataset, denominator="union", on_image=add)
    expected = compute_metrics(confusion, dataset.vocabulary.names, novel={3}, denominator="union")
    assert {name: getattr(result, name) for name in vars(expected)} == vars(expected)


@pytest.mark.parametrize("videos", [(), [range(0, 2)]])
def test_a_result_is_read_again_from_its_report(videos: Sequence[range]) -> None:
    dataset = Segments()
    dataset.videos = videos
    result = evaluate(Panoptic(), dataset, panoptic=True, inference=Inference(20, amp=torch.bfloat16))
    report = json.loads(json.dumps(result.to_json()))
    again = DatasetResult.from_json(report)
    assert again == result and again.to_json() == report and again.confusion is None
    assert list(report)[:6] == ["dataset", "split", "images", "size", "inference", "mIoU"]
    assert report["size"] == 20 and report["inference"]["amp"] == "bfloat16"
    assert ("video" in report) == bool(videos)
    for broken in ({}, {**report, "inference": {"side": 3}}, {**report, "per_class": [{}]}, {**report, "panoptic": []}):
        with pytest.raises(InputError, match="not the metrics of a dataset"):
            DatasetResult.from_json(broken)


def test_a_result_shows_its_figures_in_a_line() -> None:
    shown = repr(evaluate(Reader(), Blocks()))
    assert shown.startswith("DatasetResult(blocks:val, 5 images, 4 classes (present): mIoU 100.00 %")
    assert "\n" not in shown and len(shown) < 200


def test_progress_counts_images() -> None:
    seen: list[tuple[str, int, int]] = []
    evaluate(Reader(), Blocks(), limit=3, progress=lambda now: seen.append((now.task, now.done, now.total)))
    assert seen == [("evaluate blocks:val", done, 3) for done in range(4)]
