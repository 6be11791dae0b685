"""Loading CLIPs: names, files, offline tags, wrong architectures."""

import open_clip
import pytest
import torch
from safetensors.torch import save_file

from ovstrans.clip import load
from ovstrans.clip.load import create_image_encoder, load_clip, model_info, random_clip
from ovstrans.clip.models import DEFAULT_MODEL
from ovstrans.clip.text import embed_texts
from ovstrans.clip.weights import weights_sha256
from ovstrans.datasets.scenes.dataset import draw_scene
from ovstrans.datasets.scenes.drawing import SHAPES, STUFF
from ovstrans.errors import InputError, MismatchError


@pytest.fixture(scope="module")
def mini():
    return random_clip(seed=3)


def test_whole_clip_from_a_file(tmp_path, mini):
    save_file(
        {key: value.contiguous() for key, value in mini.model.state_dict().items()},
        tmp_path / "clip.safetensors",
    )
    clip = load_clip(pretrained=str(tmp_path / "clip.safetensors"))
    assert clip.weights_sha256 == mini.weights_sha256
    assert clip.has_text
    assert not clip.model.training
    images = torch.rand(2, 3, 96, 96)
    assert torch.equal(clip.model.encode_image(images), mini.model.encode_image(images))


def test_image_encoder_alone(tmp_path, mini):
    save_file(
        {key: value.contiguous() for key, value in mini.visual.state_dict().items()},
        tmp_path / "encoder.safetensors",
    )
    clip = load_clip(pretrained=str(tmp_path / "encoder.safetensors"))
    assert clip.weights_sha256 == mini.weights_sha256
    assert not clip.has_text


def test_half_precision_weights_become_float32(tmp_path, mini):
    state = {
        key: value.half() if value.is_floating_point() else value for key, value in mini.model.state_dict().items()
    }
    torch.save(state, tmp_path / "clip.pt")
    clip = load_clip(pretrained=str(tmp_path / "clip.pt"))
    assert clip.visual.conv1.weight.dtype == torch.float32
    assert torch.equal(clip.visual.conv1.weight, mini.visual.conv1.weight.half().float())


def test_quickgelu_follows_the_tag(tmp_path, monkeypatch):
    """OpenAI's weights were trained with QuickGELU; open_clip's plain RN50 configuration has GELU."""
    path = tmp_path / "rn50.safetensors"
    model = open_clip.create_model("RN50-quickgelu", pretrained=None)
    save_file({key: value.contiguous() for key, value in model.state_dict().items()}, path)
    monkeypatch.setattr(load.open_clip, "download_pretrained", lambda settings: str(path))
    clip = load_clip("RN50", "openai")
    tokens = clip.tokenizer(["a star"])
    with torch.no_grad():
        assert torch.equal(clip.model.encode_text(tokens), model.eval().encode_text(tokens))
    assert clip.image_size == 224


def test_offline_tag_says_what_it_does_and_what_to_do(monkeypatch, caplog):
    said = []
    caplog.set_level("INFO", logger="ovstrans")

    def unreachable(settings):
        said.extend(caplog.messages)
        raise OSError("no route")

    monkeypatch.setattr(load.open_clip, "download_pretrained", unreachable)
    with pytest.raises(InputError, match=r"RN50 .*resnet50_clip\.openai.*could not be fetched.*give the file"):
        load_clip("RN50", "openai")
    assert said == ["fetching RN50 (openai) ..."]  # before the wait, not after it


def test_unknown_names():
    with pytest.raises(InputError, match="did you mean 'RN50'"):
        load_clip("RN5O")
    with pytest.raises(InputError, match="cannot be pruned, its image encoder is vitamin_base_224, a hybrid of"):
        load_clip("ViTamin-B")
    with pytest.raises(InputError, match="tags are openai"):
        load_clip("RN50", "nonsense")
    with pytest.raises(InputError, match=r"`model=convnext_tiny`: .*as `pretrained`"):
        load_clip("convnext_tiny")
    with pytest.raises(InputError, match="`pretrained=nonsense`: neither a file nor a tag of convnext_tiny; it has"):
        load_clip("convnext_tiny", "nonsense")
    with pytest.raises(InputError, match=r"missing\.safetensors: no such file"):
        load_clip(DEFAULT_MODEL, "missing.safetensors")


def test_another_architecture_names_the_first_mismatch(tmp_path, mini):
    state = {key: value.contiguous() for key, value in mini.visual.state_dict().items()}
    wider = {**state, "layer2.0.conv1.weight": torch.zeros(64, 96, 1, 1)}
    missing = {key: value for key, value in state.items() if key != "layer3.1.conv2.weight"}
    extra = {**state, "layer3.9.conv1.weight": torch.zeros(1)}
    for name, tensors in (
        ("layer2.0.conv1.weight", wider),
        ("layer3.1.conv2.weight", missing),
        ("layer3.9.conv1.weight", extra),
    ):
        save_file(tensors, tmp_path / "w.safetensors")
        with pytest.raises(MismatchError, match=name):
            load_clip(pretrained=str(tmp_path / "w.safetensors"))


def test_nan_weights_are_refused(tmp_path, mini):
    state = {key: value.clone() for key, value in mini.visual.state_dict().items()}
    state["layer1.0.conv1.weight"][0, 0] = float("nan")
    save_file(state, tmp_path / "w.safetensors")
    with pytest.raises(InputError, match="layer1.0.conv1.weight holds 1 values"):
        load_clip(pretrained=str(tmp_path / "w.safetensors"))


def test_encoder_on_meta_matches_the_model(mini):
    with torch.device("meta"):
        encoder = create_image_encoder()
    assert {k: v.shape for k, v in encoder.state_dict().items()} == {
        k: v.shape for k, v in mini.visual.state_dict().items()
    }
    assert model_info(DEFAULT_MODEL)[:2] == (mini.embed_dim, mini.image_size)


def test_random_weights_follow_the_seed():
    assert (
        random_clip(seed=1).weights_sha256 == random_clip(seed=1).weights_sha256 != random_clip(seed=2).weights_sha256
    )


def test_bundled_weights_are_a_trained_open_clip_model():
    """The card's promise in small: held-out shapes and grounds are named, by open_clip alone."""
    clip = load_clip()
    model = open_clip.create_model(f"local-dir:{load.bundled_folder()}")
    assert weights_sha256(model.visual.state_dict()) == clip.weights_sha256
    assert sum(item.stat().st_size for item in load.bundled_folder().iterdir()) <= 20e6


def test_bundled_weights_keep_the_cards_promise():
    """Zero-shot on fresh images: at least 75 % of the shapes and 90 % of the grounds."""
    clip = load_clip()
    mean, std = torch.tensor(clip.mean).view(3, 1, 1), torch.tensor(clip.std).view(3, 1, 1)
    for split, names, at, least in (("single", SHAPES, 1, 0.75), ("ground", STUFF, 0, 0.9)):
        scenes = [draw_scene(split, index, 77, 96, 96) for index in range(80)]
        pixels = torch.stack([torch.from_numpy(scene.image).permute(2, 0, 1) for scene in scenes]) / 255
        with torch.inference_mode():
            images = clip.model.encode_image((pixels - mean) / std, normalize=True)
        best = (images @ embed_texts(clip, list(names), ("a {}", "{}")).T).argmax(dim=1).tolist()
        truth = [getattr(scene.elements[at], "shape" if at else "stuff") for scene in scenes]
        right = sum(names[guess] == name for guess, name in zip(best, truth, strict=True))
        assert right >= least * len(scenes)


def test_repr_holds_no_weights():
    clip = random_clip(seed=1)
    assert repr(clip).startswith("Clip(name='RN-mini', pretrained=''") and len(repr(clip)) < 400
