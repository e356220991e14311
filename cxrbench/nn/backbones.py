"""Classification networks by name, and where their weights come from.

`densenet121` and `vgg16` are torchvision's; any other name is timm's. `pretrained` is `imagenet`, `none`
or the path of a file of weights; weights that cannot be loaded whole stop the run.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.error import URLError

import safetensors
import safetensors.torch
import timm
import torch
import torchvision
from torch import Tensor, nn
from torchvision.models import DenseNet

from cxrbench.core.digest import digest_file
from cxrbench.core.errors import ConfigError, DataError, MissingInputError
from cxrbench.core.nearest import nearest
from cxrbench.core.store import Store
from cxrbench.nn.densenet import chain_blocks

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
HEADS = {"densenet121": "classifier", "vgg16": "classifier.6"}  # the last linear layer
State = dict[str, Tensor]
STORED = "sha256:"


@dataclass(frozen=True)
class Weights:
    """Where the initial weights came from, for the record."""

    source: str
    sha256: str | None = None
    new_layers: tuple[str, ...] = ()  # layers that the source did not hold, or of another width


class ImageNetInput(nn.Module):
    """Grey [B, 1, H, W] in [0, 1] to ImageNet-normalised [B, 3, H, W]."""

    mean: Tensor
    std: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(IMAGENET_STD).view(1, 3, 1, 1), persistent=False)

    def forward(self, image: Tensor) -> Tensor:
        return (image.expand(-1, 3, -1, -1) - self.mean) / self.std


def to_unit(image: Tensor) -> Tensor:
    """uint8 pixels to float32 in [0, 1]; float images pass."""
    return image.float() / 255 if image.dtype == torch.uint8 else image


def _make(name: str, outputs: int) -> tuple[nn.Module, tuple[str, ...]]:
    """A network with random weights, and the names of its last layers."""
    if name in HEADS:
        net = torchvision.models.get_model(name, weights=None, num_classes=outputs)
        return chain_blocks(net) if isinstance(net, DenseNet) else net, (HEADS[name],)
    if not timm.is_model(name):
        raise ConfigError(
            f"params.backbone: unknown network {name!r}; "
            f"{nearest(name, [*HEADS, *timm.list_models()])}"
        )
    net = timm.create_model(name, pretrained=False, num_classes=outputs)
    config: Any = net.pretrained_cfg
    heads = config["classifier"]  # a distilled network has two
    return net, (heads,) if isinstance(heads, str) else tuple(heads)


def build_backbone(name: str, outputs: int, pretrained: str) -> tuple[nn.Module, Weights]:
    """A network [B, 3, H, W] -> logits [B, outputs] with its initial weights.

    Raises MissingInputError when the weights are not there or not whole.
    """
    net, heads = _make(name, outputs)
    if pretrained == "none":
        return net, Weights("none")
    if pretrained == "imagenet":
        state, source, sha = _imagenet(name), "imagenet", None
    else:
        path = stored_weights(pretrained) or Path(pretrained).expanduser()
        state, source, sha = read_weights(path), path.name, digest_file(path)
    new = load_whole(net, state, source=f"pretrained={pretrained}", replaceable=heads)
    return net, Weights(source, sha, new)


def stored_weights(name: str) -> Path | None:
    """The file behind a `sha256:...` name, which a plan gives to a file of weights."""
    if not name.startswith(STORED):
        return None
    return Store.default().root / "weights" / name.removeprefix(STORED)


def _imagenet(name: str) -> State:
    try:
        if name in HEADS:
            weights = torchvision.models.get_model_weights(name).DEFAULT
            return dict(weights.get_state_dict(progress=False, check_hash=True))
        return dict(timm.create_model(name, pretrained=True).state_dict())
    except (URLError, OSError, RuntimeError) as error:
        raise MissingInputError(
            f"params.pretrained: the ImageNet weights of {name} cannot be had here "
            f"({type(error).__name__}: {error}); pass --set params.pretrained=none to start from random "
            f"weights, or --set params.pretrained=/path/to/weights.pth"
        ) from error


def read_weights(path: Path) -> State:
    """The tensors of a `.safetensors` or PyTorch file; nothing in the file is ever executed."""
    if not path.is_file():
        raise MissingInputError(f"{path}: no such file of weights")
    try:
        if path.suffix == ".safetensors":
            return dict(safetensors.torch.load_file(path))
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (safetensors.SafetensorError, RuntimeError, EOFError, ValueError, KeyError) as error:
        raise DataError(f"{path}: not a readable file of weights ({error})") from None
    except Exception as error:  # the unpickler's refusals have many types
        raise DataError(
            f"{path}: refused ({type(error).__name__}); it is not plain tensors"
        ) from None
    state = content.get("state_dict", content) if isinstance(content, dict) else None
    if not isinstance(state, dict) or not all(
        isinstance(n, str) and isinstance(v, Tensor) for n, v in state.items()
    ):
        raise DataError(f"{path}: holds no dictionary of tensors")
    return state


# The published DenseNet weights predate a renaming of its layers.
_OLD_DENSENET = re.compile(
    r"^(.*denselayer\d+\.(?:norm|relu|conv))\.((?:[12])\.(?:weight|bias|running_mean|running_var))$"
)


def load_whole(
    net: nn.Module, state: State, *, source: str, replaceable: tuple[str, ...] = ()
) -> tuple[str, ...]:
    """Load every tensor; only layers named in `replaceable` may be absent or of another shape.

    Returns the layers that were left as they were. Raises DataError that names what does not fit.
    """
    state = {_OLD_DENSENET.sub(r"\1\2", name): value for name, value in state.items()}
    own = net.state_dict()
    wrong = {n for n in own if n not in state or state[n].shape != own[n].shape}
    wrong -= {n for n in wrong if n.endswith("num_batches_tracked")}
    new = {n for n in wrong if n.startswith(tuple(f"{layer}." for layer in replaceable))}
    extra = {n for n in state if n not in own}
    extra -= {n for n in extra if n.startswith(tuple(f"{layer}." for layer in replaceable))}
    if wrong - new or extra:
        raise DataError(
            f"{source}: the weights do not fit the network: "
            f"{len(wrong - new)} absent or of another shape ({', '.join(sorted(wrong - new)[:5])}), "
            f"{len(extra)} unknown ({', '.join(sorted(extra)[:5])})"
        )
    net.load_state_dict({n: v for n, v in state.items() if n in own and n not in new}, strict=False)
    return tuple(sorted({n.rpartition(".")[0] for n in new}))
