"""The torch blocks: sizes against published counts, the loss by hand, weights whole or refused."""

import re
from pathlib import Path
from typing import Any
from urllib.error import URLError

import pytest
import safetensors.torch
import timm
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F

from cxrbench.core.digest import digest_file
from cxrbench.core.errors import ConfigError, DataError, MissingInputError
from cxrbench.nn import backbones
from cxrbench.nn.autoencoder import Autoencoder, Decoder, Encoder, reconstruction_mse
from cxrbench.nn.backbones import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    ImageNetInput,
    build_backbone,
    load_whole,
    read_weights,
    to_unit,
)
from cxrbench.nn.losses import masked_bce

TINY = "resnet10t"


def parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


# --- sizes (METHOD_CARDS section 0)


@pytest.mark.parametrize(
    ("name", "outputs", "count"), [("densenet121", 14, 6_968_206), ("vgg16", 1, 134_264_641)]
)
def test_published_networks_have_their_published_size(name: str, outputs: int, count: int) -> None:
    with torch.device("meta"):
        net, weights = build_backbone(name, outputs, "none")
    assert parameters(net) == count
    assert weights.source == "none"


def test_the_autoencoder_has_its_published_size() -> None:
    assert parameters(Encoder()) == 865
    assert parameters(Decoder()) == 160
    assert parameters(Autoencoder(clip_code=True)) == 865 + 160


@pytest.mark.parametrize(("side", "code"), [(896, 224), (128, 32), (64, 16)])
def test_a_code_has_a_quarter_of_the_side(side: int, code: int) -> None:
    with torch.inference_mode():
        found, image = Autoencoder(clip_code=False)(torch.rand(1, 1, side, side))
    assert found.shape == (1, 1, code, code)
    assert image.shape == (1, 1, side, side)


# --- the autoencoder


def test_the_code_is_clipped_only_when_that_is_asked() -> None:
    torch.manual_seed(0)
    free, clipped = Autoencoder(clip_code=False), Autoencoder(clip_code=True)
    clipped.load_state_dict(free.state_dict())
    with torch.no_grad():
        free.encoder.mix.weight.mul_(20)
        clipped.encoder.mix.weight.mul_(20)
        image = torch.rand(2, 1, 32, 32)
        code, cut = free.encode(image), clipped.encode(image)
    assert code.min() < 0 or code.max() > 1
    assert torch.equal(cut, code.clamp(0, 1))
    assert torch.equal(clipped(image)[0], cut)


def test_an_autoencoder_can_start_as_plain_resizing() -> None:
    # Smooth, because the 5 x 5 windows lie 1.5 pixels beside those of an area mean.
    image = F.interpolate(torch.rand(2, 1, 4, 4), scale_factor=32, mode="bilinear")
    small = F.interpolate(image, scale_factor=0.25, mode="area")
    for seed in range(5):
        torch.manual_seed(seed)
        with torch.no_grad():
            code, back = Autoencoder(clip_code=True, as_resizing=True)(image)
        inner = (..., slice(2, -2), slice(2, -2))  # the border sees the padding
        pair = torch.stack([code[inner].flatten(), small[inner].flatten()])
        assert torch.corrcoef(pair)[0, 1] > 0.9
        assert ((code > 0) & (code < 1)).float().mean() > 0.95, "the clip has a gradient"
        assert F.mse_loss(back, image) < 0.02
    torch.manual_seed(0)
    plain = Autoencoder(clip_code=True)
    torch.manual_seed(0)
    assert torch.equal(plain.encoder.mix.bias, Encoder().mix.bias), "as coded: torch's own"


def test_reconstructions_are_images() -> None:
    decoder = Decoder()
    with torch.no_grad():
        decoder.expand.weight.mul_(50)
        image = decoder(torch.randn(1, 1, 8, 8))
    assert image.min() >= 0
    assert image.max() <= 1


def test_the_decoder_lays_each_channel_at_its_place_of_a_block() -> None:
    """PixelShuffle: channel 4 i + j is row i, column j of every 4 x 4 block."""
    decoder = Decoder()
    with torch.no_grad():
        decoder.expand.weight.zero_()
        decoder.expand.bias.copy_(torch.arange(16) / 16)
        image = decoder(torch.rand(1, 1, 3, 5))[0, 0]
    block = (torch.arange(16) / 16).view(4, 4)
    assert torch.equal(image, block.repeat(3, 5))


def test_the_reconstruction_error_is_float32_under_autocast() -> None:
    image = torch.rand(1, 1, 16, 16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = reconstruction_mse(image.bfloat16(), image)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(F.mse_loss(image.bfloat16().float(), image).item())


# --- the loss


def entries(rows: int = 7, labels: int = 3) -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    return torch.randn(rows, labels), torch.randint(0, 2, (rows, labels)).float()


def test_the_loss_is_plain_when_all_is_known() -> None:
    logits, target = entries()
    known = torch.ones_like(target, dtype=torch.bool)
    expected = F.binary_cross_entropy_with_logits(logits, target)
    torch.testing.assert_close(masked_bce(logits, target, known), expected)


def test_the_loss_is_the_mean_over_what_is_known() -> None:
    logits, target = entries()
    known = torch.rand(7, 3, generator=torch.Generator().manual_seed(1)) < 0.5
    p = torch.sigmoid(logits.double())
    each = -(target * p.log() + (1 - target) * (1 - p).log())
    assert masked_bce(logits, target, known).item() == pytest.approx(each[known].mean().item())


def test_the_loss_of_nothing_known_is_zero_with_a_zero_gradient() -> None:
    logits, target = entries()
    logits.requires_grad_()
    loss = masked_bce(logits, target, torch.zeros(7, 3, dtype=torch.bool))
    assert loss.item() == 0
    loss.backward()
    assert torch.equal(logits.grad, torch.zeros(7, 3))


def test_the_gradient_goes_through_known_entries_only() -> None:
    logits, target = entries()
    logits.requires_grad_()
    known = torch.zeros(7, 3, dtype=torch.bool)
    known[2, 1] = known[5, 0] = True
    masked_bce(logits, target, known).backward()
    assert torch.equal(logits.grad != 0, known)
    expected = (torch.sigmoid(logits) - target)[known] / 2
    torch.testing.assert_close(logits.grad[known], expected.detach())


def test_the_loss_is_float32_under_autocast_and_finite_at_the_ends() -> None:
    logits, target = torch.tensor([[90.0, -90.0]]), torch.tensor([[0.0, 1.0]])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = masked_bce(logits.bfloat16(), target, torch.ones(1, 2, dtype=torch.bool))
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(90.0)


# --- the input


def test_grey_is_repeated_and_normalised_as_imagenet() -> None:
    image = torch.rand(2, 1, 4, 4)
    found = ImageNetInput()(image)
    assert found.shape == (2, 3, 4, 4)
    transform = torchvision.transforms.Normalize(IMAGENET_MEAN, IMAGENET_STD)
    torch.testing.assert_close(found, transform(image.repeat(1, 3, 1, 1)))
    assert not ImageNetInput().state_dict(), "constants must not lie in published weights"


def test_bytes_become_the_unit_interval() -> None:
    found = to_unit(torch.tensor([0, 51, 255], dtype=torch.uint8))
    assert found.tolist() == pytest.approx([0.0, 0.2, 1.0])
    image = torch.rand(3)
    assert to_unit(image) is image


# --- weights


def small() -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))


def test_whole_weights_are_loaded() -> None:
    net, other = small(), small()
    assert load_whole(net, other.state_dict(), source="x") == ()
    assert all(torch.equal(net.state_dict()[n], v) for n, v in other.state_dict().items())


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda s: s.pop("0.weight"), "1 absent or of another shape (0.weight), 0 unknown"),
        (lambda s: s.pop("1.running_mean"), "(1.running_mean)"),
        (lambda s: s.update({"3.weight": torch.zeros(1)}), "0 absent or of another shape (), 1 unknown (3.weight)"),
        (lambda s: s.update({"0.weight": torch.zeros(4, 4)}), "1 absent or of another shape (0.weight)"),
        (lambda s: s.update({"0.weight": torch.zeros(3, 4)}), "(0.weight)"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("replaceable", [(), ("2",)])
def test_weights_that_do_not_fit_are_refused_and_change_nothing(
    spoil: Any, says: str, replaceable: tuple[str, ...]
) -> None:
    net, state = small(), dict(small().state_dict())
    before = {name: value.clone() for name, value in net.state_dict().items()}
    spoil(state)
    with pytest.raises(DataError, match=re.escape(says)) as error:
        load_whole(net, state, source="pretrained=x.pth", replaceable=replaceable)
    assert str(error.value).startswith("pretrained=x.pth: ")
    assert all(torch.equal(before[n], v) for n, v in net.state_dict().items())


@pytest.mark.parametrize(
    "change",
    [
        lambda s: [s.pop("2.weight"), s.pop("2.bias")],
        lambda s: s.update({"2.weight": torch.zeros(1000, 4), "2.bias": torch.zeros(1000)}),
    ],
)
def test_only_the_head_may_be_new_and_it_is_told(change: Any) -> None:
    net, state = small(), dict(small().state_dict())
    head = net[2].weight.clone()
    change(state)
    with pytest.raises(DataError):
        load_whole(small(), state, source="x")
    assert load_whole(net, state, source="x", replaceable=("2",)) == ("2",)
    assert torch.equal(net[2].weight, head)
    assert torch.equal(net[0].weight, state["0.weight"])


def test_a_replaceable_name_is_a_layer_and_not_a_beginning() -> None:
    net = nn.ModuleDict({"fc": nn.Linear(2, 2), "fc2": nn.Linear(2, 2)})
    state = {n: v for n, v in net.state_dict().items() if not n.startswith("fc2")}
    with pytest.raises(DataError, match="fc2"):
        load_whole(net, state, source="x", replaceable=("fc",))


def test_the_old_names_of_published_densenets_are_read() -> None:
    old = {"a.denselayer1.norm.1.weight": torch.ones(2), "a.denselayer1.norm.1.bias": torch.ones(2)}
    net = nn.ModuleDict(
        {"a": nn.ModuleDict({"denselayer1": nn.ModuleDict({"norm1": nn.LayerNorm(2)})})}
    )
    load_whole(net, old, source="x")
    assert torch.equal(net["a"]["denselayer1"]["norm1"].bias, torch.ones(2))


@pytest.mark.parametrize(
    ("name", "form"),
    [("densenet121", "state_dict"), (TINY, "pth"), (TINY, "state_dict"), (TINY, "safetensors")],
)
def test_local_weights(tmp_path: Path, name: str, form: str) -> None:
    torch.manual_seed(0)
    donor, _ = build_backbone(name, 5, "none")
    path = tmp_path / f"w.{'safetensors' if form == 'safetensors' else 'pth'}"
    if form == "safetensors":
        safetensors.torch.save_file(donor.state_dict(), path)
    else:
        state = donor.state_dict()
        torch.save({"state_dict": state, "epoch": 3} if form == "state_dict" else state, path)
    net, weights = build_backbone(name, 2, str(path))
    assert weights.source == path.name
    assert weights.sha256 == digest_file(path)
    assert len(weights.new_layers) == 1
    head = weights.new_layers[0]
    same = {n for n, v in net.state_dict().items() if torch.equal(v, donor.state_dict()[n])
            if v.shape == donor.state_dict()[n].shape}  # fmt: skip
    assert {n for n in net.state_dict() if not n.startswith(head)} <= same
    net, weights = build_backbone(name, 5, str(path))
    assert weights.new_layers == ()
    with torch.inference_mode():
        image = torch.rand(1, 3, 64, 64)
        assert torch.equal(net.eval()(image), donor.eval()(image))


def test_the_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    torch.save(build_backbone(TINY, 2, "none")[0].state_dict(), path)
    with pytest.raises(DataError, match="do not fit the network"):
        build_backbone("densenet121", 2, str(path))


class Payload:
    """What a hostile checkpoint does when it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> Any:
        return Path.touch, (self.target,)


@pytest.mark.parametrize("name", ["w.pth", "w.safetensors", "w.bin"])
def test_a_hostile_file_of_weights_is_refused_and_not_run(tmp_path: Path, name: str) -> None:
    mark, path = tmp_path / "was-run", tmp_path / name
    torch.save({"weight": torch.zeros(1), "x": Payload(mark)}, path)
    with pytest.raises(DataError, match=re.escape(str(path))):
        read_weights(path)
    assert not mark.exists()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"<html>404</html>",
        b"version https://git-lfs.github.com/spec/v1",
        b"PK\x03\x04" + b"\0" * 60,
    ],
)
@pytest.mark.parametrize("name", ["w.pth", "w.safetensors"])
def test_what_is_no_file_of_weights_is_refused(tmp_path: Path, content: bytes, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(DataError, match=re.escape(str(path))):
        read_weights(path)


@pytest.mark.parametrize(
    "content", [[torch.zeros(1)], {"a": 1}, {"state_dict": 3}, {1: torch.zeros(1)}, torch.zeros(2)]
)
def test_a_file_without_named_tensors_is_refused(tmp_path: Path, content: Any) -> None:
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(DataError, match="holds no dictionary of tensors"):
        read_weights(tmp_path / "w.pth")


def test_a_truncated_file_of_weights_is_refused(tmp_path: Path) -> None:
    for name, save in (("w.pth", torch.save), ("w.safetensors", safetensors.torch.save_file)):
        path = tmp_path / name
        save(small().state_dict(), path)
        path.write_bytes(path.read_bytes()[:-100])
        with pytest.raises(DataError, match=name):
            read_weights(path)


def test_absent_weights(tmp_path: Path) -> None:
    with pytest.raises(MissingInputError, match="no such file of weights"):
        build_backbone(TINY, 2, str(tmp_path / "absent.pth"))
    with pytest.raises(MissingInputError, match="no such file of weights"):
        build_backbone(TINY, 2, str(tmp_path))


def offline(*args: Any, **options: Any) -> None:
    raise URLError("Name or service not known")


def test_imagenet_weights_that_cannot_be_had_stop_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", offline)
    monkeypatch.setattr(torchvision.models._api, "load_state_dict_from_url", offline)
    with pytest.raises(MissingInputError) as error:
        build_backbone("densenet121", 14, "imagenet")
    text = str(error.value)
    assert "ImageNet weights of densenet121 cannot be had here" in text
    assert "--set params.pretrained=none" in text
    assert "--set params.pretrained=/path/to/weights.pth" in text
    assert "Name or service not known" in text


def test_imagenet_weights_of_timm_that_cannot_be_had_stop_the_run(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    create = timm.create_model

    def create_offline(name: str, pretrained: bool = False, **options: Any) -> nn.Module:
        return offline() if pretrained else create(name, **options)

    monkeypatch.setattr(backbones.timm, "create_model", create_offline)
    with pytest.raises(MissingInputError, match=r"--set params\.pretrained=none"):
        build_backbone(TINY, 2, "imagenet")


def test_a_network_without_imagenet_weights_is_never_random_in_silence() -> None:
    assert not timm.get_pretrained_cfg("convnext_atto_rms").has_weights
    with pytest.raises(MissingInputError, match="weights of convnext_atto_rms cannot be had here"):
        build_backbone("convnext_atto_rms", 2, "imagenet")


def test_imagenet_weights_are_taken_whole_but_for_the_head(monkeypatch: pytest.MonkeyPatch) -> None:
    donor, _ = build_backbone("densenet121", 1000, "none")
    state = {  # as the file of 2017 names them
        re.sub(r"(denselayer\d+\.(?:norm|conv))([12])", r"\1.\2", n): v
        for n, v in donor.state_dict().items()
        if not n.endswith("num_batches_tracked")
    }
    assert state.keys() != donor.state_dict().keys()
    monkeypatch.setattr(torchvision.models._api, "load_state_dict_from_url", lambda *a, **o: state)
    net, weights = build_backbone("densenet121", 14, "imagenet")
    assert weights.source == "imagenet"
    assert weights.new_layers == ("classifier",)
    body = {n: v for n, v in net.state_dict().items() if not n.startswith("classifier")}
    assert all(torch.equal(v, donor.state_dict()[n]) for n, v in body.items())


@pytest.mark.parametrize(
    ("name", "hint"),
    [("densnet121", "densenet121"), ("vgg_16", "vgg16"), ("resnet10", "resnet10t")],
)
def test_an_unknown_network_gets_the_nearest(name: str, hint: str) -> None:
    with pytest.raises(ConfigError, match=rf"params\.backbone: unknown network '{name}'.*{hint}"):
        build_backbone(name, 2, "none")


@pytest.mark.parametrize("name", [TINY, "mobilenetv3_small_050", "deit_tiny_distilled_patch16_224"])
@pytest.mark.parametrize("outputs", [1, 14])
def test_networks_of_timm(name: str, outputs: int, tmp_path: Path) -> None:
    donor, _ = build_backbone(name, 3, "none")
    torch.save(donor.state_dict(), tmp_path / "w.pth")
    net, weights = build_backbone(name, outputs, str(tmp_path / "w.pth"))
    assert weights.new_layers
    with torch.inference_mode():
        assert net.eval()(torch.rand(2, 3, 224, 224)).shape == (2, outputs)
