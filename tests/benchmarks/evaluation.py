"""Memory and time of evaluating an image with 847 classes: a band at a time, and the plain way.

    python -m tests.benchmarks.evaluation [--size 2000x2000 ...] [--frameworks fcclip,gkc,deeplabv3]
        [--model RN50] [--classes 847] [--threads N] [--no-plain]

Frameworks with default heads and random weights see the image at the published 800 / 1333; truth has its
full size. The plain way is the usual code: class scores at full size, then their arg max. Each way runs in a
process of its own, so that its peak of resident memory is its own; the part after the forward pass is timed
up to and with the confusion matrix, in seconds of processor time. Prints a Markdown table; "pixels" are those
that both ways agree on.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from ovstrans.clip.load import create_image_encoder, model_info
from ovstrans.clip.text import TextClassifier
from ovstrans.evaluation.inference import Inference, classify_pixels
from ovstrans.evaluation.metrics import ConfusionMatrix
from ovstrans.frameworks import registry
from ovstrans.frameworks.base import Framework
from ovstrans.frameworks.mask2former_inference import semantic
from ovstrans.frameworks.mask_framework import MaskFramework
from ovstrans.vocabulary.vocabulary import Vocabulary

PUBLISHED = Inference(800, 1333)
WAYS = ("bands", "bands, masks first", "plain", "plain, masks first")
SYNONYMS = 1.6
"""Names per class, as ADE20K-847 has them."""
MIB = 2**20


def framework_for(name: str, model: str, classes: int) -> Framework:
    """With default options and random weights, in eval mode."""
    torch.manual_seed(0)
    dim, _, mean, std = model_info(model)
    rows = int(SYNONYMS * classes)
    text = TextClassifier(
        F.normalize(torch.randn(rows, dim), dim=1),
        torch.arange(rows) * classes // rows,
        Vocabulary.from_names("random", [f"class {number}" for number in range(classes)]),
    )
    return registry.build(name, encoder=create_image_encoder(model), mean=mean, std=std, text=text, options={}).eval()


def plain_classes(
    framework: Framework, images: Tensor, size: tuple[int, int], masks_first: bool
) -> tuple[Tensor, float]:
    """Classes [H, W] by full-size scores [K, H, W], and the seconds of the forward pass."""
    start = time.process_time()
    shape = (int(images.shape[-2]), int(images.shape[-1]))
    if not isinstance(framework, MaskFramework):
        low = framework.logits(images)
        seconds = time.process_time() - start
        return framework.resize(low, shape, size)[0].argmax(0), seconds
    probabilities, masks = framework.predict_masks(images)
    seconds = time.process_time() - start
    masks = framework.resize(masks, shape, size if masks_first else None)
    scores = semantic(probabilities[..., :-1], masks)
    if not masks_first:
        scores = F.interpolate(scores, size, mode="bilinear", align_corners=False)
    return scores[0].argmax(0), seconds


def measure(name: str, options: argparse.Namespace) -> dict[str, float]:
    """One way, in this process: MiB above the model after the forward pass and at the end, and seconds of both."""
    way, size = options.way, sizes_of(options.size)[0]
    masks_first = way.endswith("masks first")
    framework = framework_for(name, options.model, options.classes)
    images = torch.rand(1, 3, *PUBLISHED.size(*size), generator=torch.Generator().manual_seed(1))
    confusion = ConfusionMatrix(options.classes)
    label = torch.randint(0, options.classes, size, generator=torch.Generator().manual_seed(2))
    with torch.inference_mode():
        framework.scores(images[..., :64, :64])
        model = resident()
        start = time.process_time()
        if way.startswith("plain"):
            classes, forward = plain_classes(framework, images, size, masks_first)
            after_forward = 0.0
        else:
            scores = framework.scores(images)[0]
            forward, after_forward = time.process_time() - start, peak()
            classes = classify_pixels(scores.resize(size, masks_first=masks_first)).classes
        confusion.add(classes, label, ignore=65535)
    rest = time.process_time() - start - forward
    torch.save(classes.short(), options.out)
    return {
        "forward_mib": after_forward - model,
        "peak_mib": peak() - model,
        "forward_s": forward,
        "evaluation_s": rest,
    }


def resident() -> float:
    """MiB of memory that this process holds now; what it held at most, where the system does not tell."""
    status = Path("/proc/self/statm")
    if not status.exists():
        return peak()
    return int(status.read_text(encoding="ascii").split()[1]) * resource.getpagesize() / MIB


def peak() -> float:
    """MiB of memory that this process held at most."""
    found = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return found / MIB if sys.platform == "darwin" else found / 1024


def sizes_of(texts: list[str]) -> list[tuple[int, int]]:
    """Heights and widths of `HxW`."""
    return [(int(text.split("x")[0]), int(text.split("x")[1])) for text in texts]


def child(name: str, way: str, size: str, out: Path, options: argparse.Namespace) -> dict[str, float] | None:
    """`measure` in a process of its own; None where it was killed, for want of memory."""
    words = ["--frameworks", name, "--way", way, "--size", size, "--model", options.model, "--out", str(out)]
    words += ["--classes", str(options.classes), "--threads", str(options.threads)]
    command = [sys.executable, "-m", "tests.benchmarks.evaluation", *words]
    ended = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    return json.loads(ended.stdout.splitlines()[-1]) if ended.returncode == 0 else None


def main() -> None:
    """Measure all and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", nargs="+", default=["2000x2000"])
    parser.add_argument("--frameworks", default="fcclip,gkc,deeplabv3")
    parser.add_argument("--model", default="RN50")
    parser.add_argument("--classes", type=int, default=847)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--no-plain", action="store_true", help="the plain way needs up to 22 GiB at 2000x2000")
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.way:
        print(json.dumps(measure(options.frameworks, options)))
        return
    print(
        f"{options.model}, random weights, {options.classes} classes, seen at 800 / 1333; "
        f"torch {torch.__version__}, {options.threads} threads, {platform.machine()}\n"
    )
    print("| framework | image | way | MiB above model | of it forward | forward s | rest s | memory | time | pixels |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    for size in options.size:
        for name in options.frameworks.split(","):
            for order in ("", ", masks first") if name != "deeplabv3" else ("",):
                print_case(name, size, order, options)


def print_case(name: str, size: str, order: str, options: argparse.Namespace) -> None:
    """Two rows of the table: bands, and the plain way with what it takes in multiples of them."""
    with tempfile.TemporaryDirectory() as folder:
        outs = [Path(folder) / "bands.pt", Path(folder) / "plain.pt"]
        ours = child(name, f"bands{order}", size, outs[0], options)
        assert ours is not None
        cells = [f"{ours[key]:,.0f}" for key in ("peak_mib", "forward_mib")]
        cells += [f"{ours[key]:.1f}" for key in ("forward_s", "evaluation_s")]
        print("|", " | ".join([name, size, f"bands{order}", *cells, "1", "1", ""]), "|", flush=True)
        if options.no_plain:
            return
        plain = child(name, f"plain{order}", size, outs[1], options)
        if plain is None:
            print("|", " | ".join([name, size, f"plain{order}", "out of memory", *[""] * 6]), "|", flush=True)
            return
        same = (torch.load(outs[0]) == torch.load(outs[1])).double().mean()
        ratios = [f"{plain[key] / ours[key]:.1f}" for key in ("peak_mib", "evaluation_s")]
        cells = [f"{plain['peak_mib']:,.0f}", "", f"{plain['forward_s']:.1f}", f"{plain['evaluation_s']:.1f}"]
        print("|", " | ".join([name, size, f"plain{order}", *cells, *ratios, f"{same:.6f}"]), "|", flush=True)


if __name__ == "__main__":
    main()
