"""What several processes accumulate apart equals what one does, to the last count."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

from ovstrans.datasets.sample import Segment
from ovstrans.evaluation.metrics import ConfusionMatrix, compute_metrics
from ovstrans.evaluation.panoptic import PanopticQuality
from ovstrans.evaluation.video import VideoConsistency
from ovstrans.vocabulary.vocabulary import Vocabulary

CLASSES, VIDEOS, FRAMES = 4, 5, 11


def _accumulate(rank: int, world: int) -> dict:
    """The reports of a share of the videos, whole ones, joined with the others' where there are any."""
    confusion, video = ConfusionMatrix(CLASSES), VideoConsistency()
    quality = PanopticQuality(Vocabulary("v", tuple((f"c{index}",) for index in range(CLASSES))))
    segments = [Segment(id=index + 1, class_index=index, isthing=False, area=0) for index in range(CLASSES)]
    for number in range(rank, VIDEOS, world):
        generator = torch.Generator().manual_seed(number)
        label = torch.randint(CLASSES, (6, 8), generator=generator)
        for _ in range(FRAMES):
            noise = torch.rand(label.shape, generator=generator) < 0.05
            guess = torch.where(noise, torch.randint(CLASSES, label.shape, generator=generator), label)
            confusion.add(guess, label, ignore=255)
            quality.add(guess + 1, segments, label + 1, segments)
            video.add(number, guess, label, 255)
    for accumulator in (confusion, quality, video):
        accumulator.all_reduce()
    return {
        "counts": confusion.counts.tolist(),
        **compute_metrics(confusion).to_json(),
        "pq": quality.result().to_json(),
        "vc": video.result().to_json(),
    }


def _share(rank: int, world: int, folder: str) -> None:
    torch.set_num_threads(1)  # OpenMP's pool does not survive a fork
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=world)
    try:
        (Path(folder) / f"{rank}.json").write_text(json.dumps(_accumulate(rank, world)), encoding="utf-8")
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.skipif(sys.platform != "linux", reason="forks, which spares the children a slow import")
def test_uneven_shares_of_two_processes_make_the_whole(tmp_path: Path) -> None:
    torch.multiprocessing.start_processes(_share, args=(2, str(tmp_path)), nprocs=2, start_method="fork")
    alone = _accumulate(0, 1)
    assert alone["vc"]["videos"] == VIDEOS and 0 < alone["vc"]["mVC8"] < 100
    for rank in (0, 1):
        found = json.loads((tmp_path / f"{rank}.json").read_text(encoding="utf-8"))
        found_quality, quality = found.pop("pq"), alone["pq"]
        assert found == {key: value for key, value in alone.items() if key != "pq"}
        assert [entry["tp"] for entry in found_quality["per_class"]] == [entry["tp"] for entry in quality["per_class"]]
        assert found_quality["PQ"] == pytest.approx(quality["PQ"], rel=1e-12)  # sums of IoU, rounded in another order
