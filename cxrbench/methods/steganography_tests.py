"""Does a translated film hide the film that it was made from? The measurements, as functions.

Chu et al. (2017): a CycleGAN may write what it must forget into a faint, high-frequency, non-local signal that
its partner reads. Bashkirova et al. (2019) measure it on known pairs; nothing here needs a pair.

A cycle is (there, back): x of one domain, g = there(x) of the other, back(g) should be x. y is a real film of g's
domain, in which nobody has written: the control. Images are [B, C, S, S] in [-1, 1]; errors are mean absolute
differences in shares of the grey range; levels are in grey levels of 255.
"""

import io
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from cxrbench.nn.blur import gaussian_blur

Net = Callable[[Tensor], Tensor]
Change = Callable[[Tensor], Tensor]
NOISE_LEVELS = (0.0, 0.5, 1.0, 2.0, 3.0, 5.0, 8.0, 16.0)
TOLD = 3.0  # the level at which Chu et al. saw the hidden signal break
QUALITIES = (95, 85, 75, 50, 30)
BLURS = (0.5, 1.0, 2.0)  # pixels
FACTORS = (2, 4)  # of shrinking before enlarging again
HIGH = 0.25  # cycles a pixel: above it a film itself has little
RADII = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0)  # largest changes that a targeted attack is allowed
REACH = 7  # side in pixels of what the linear decoder sees of each place
RIDGE = 1e-3
DECODER_NOISE = 8.0  # level that the linear decoder learns under, so that it reads no faint signal
BLOCK = 8  # films at once


class Cycle(NamedTuple):
    """Two generators, one against the other."""

    there: Net
    back: Net


def run(net: Net, images: Tensor) -> Tensor:
    """A network on images, a few at a time."""
    return torch.cat([net(block) for block in torch.split(images, BLOCK)])


def apart(a: Tensor, b: Tensor) -> Tensor:
    """The error [B] between images."""
    return (a - b).abs().flatten(1).mean(1) / 2


def _mean(a: Tensor, b: Tensor) -> float:
    return float(apart(a, b).mean())


# --- 2 and 3: noise and other corruptions


def noise(level: float, seed: int) -> Change:
    """Adds Gaussian noise of std `level`; the same noise, scaled, at every level of a seed."""

    def change(image: Tensor) -> Tensor:
        random = torch.Generator().manual_seed(seed)
        drawn = torch.randn(image.shape, generator=random).to(image)
        return image + 2 * level / 255 * drawn

    return change


def eight_bits(image: Tensor) -> Tensor:
    """Rounded to 8 bits, as a saved film is."""
    return torch.round((image.clamp(-1, 1) + 1) * 127.5) / 127.5 - 1


def jpeg(quality: int) -> Change:
    """Through a JPEG file; three channels as colour, others each alone."""

    def saved(pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        stream = io.BytesIO()
        Image.fromarray(pixels).save(stream, "JPEG", quality=quality)
        return np.asarray(Image.open(stream, formats=("JPEG",)))

    def change(image: Tensor) -> Tensor:
        pixels = ((image.clamp(-1, 1) + 1) * 127.5).round().byte().cpu().numpy()
        if pixels.shape[1] == 3:
            read = np.stack([saved(one.transpose(1, 2, 0)).transpose(2, 0, 1) for one in pixels])
        else:
            read = np.stack([[saved(channel) for channel in one] for one in pixels])
        return torch.from_numpy(read).to(image) / 127.5 - 1

    return change


def blur(sigma: float) -> Change:
    """Gaussian blur of a std in pixels."""
    return lambda image: gaussian_blur(image, sigma).to(image)


def shrink(factor: int) -> Change:
    """Averaged to a smaller image and enlarged again, bicubic."""

    def change(image: Tensor) -> Tensor:
        size = image.shape[-2:]
        small = F.interpolate(image, size=[max(1, side // factor) for side in size], mode="area")
        return F.interpolate(small, size=size, mode="bicubic").clamp(-1, 1)

    return change


def corruptions() -> dict[str, dict[float, Change]]:
    """By family and strength."""
    return {
        "jpeg": {quality: jpeg(quality) for quality in QUALITIES},
        "blur": {sigma: blur(sigma) for sigma in BLURS},
        "shrink": {factor: shrink(factor) for factor in FACTORS},
        "eight_bits": {8: eight_bits},
    }


class Trial:
    """A cycle's films, kept so that each corruption costs three passes.

    `x` films of one domain, `y` real films of the other.
    """

    def __init__(self, cycle: Cycle, x: Tensor, y: Tensor) -> None:
        self.cycle, self.x, self.y = cycle, x, y
        self.made = run(cycle.there, x)
        self.returned, self.y_away = run(cycle.back, self.made), run(cycle.back, y)

    def under(self, change: Change) -> dict[str, float]:
        """What a corruption of g and of y does.

        - `error`: |back(g') - x|. A hidden signal that breaks lets it rise.
        - `control`: |there(back(y')) - y|, the same of films in which nothing can be hidden on the way in.
        - `moved`: |back(g') - back(g)|, how far the corruption moves what is read from g.
        - `moved_real`: |back(y') - back(y)|, the same of a real film; `moved` far above it means that more is
          read from the corrupted detail of g than a real film has there.
        """
        read = run(self.cycle.back, change(self.made))
        away = run(self.cycle.back, change(self.y))
        return {
            "error": _mean(read, self.x),
            "control": _mean(run(self.cycle.there, away), self.y),
            "moved": _mean(read, self.returned),
            "moved_real": _mean(away, self.y_away),
        }


def noise_curve(trial: Trial, seed: int) -> dict[str, Any]:
    """The four errors by level of noise on g and y, and two numbers of the curves `error` and `control`.

    `rise_at_3`: the error at level 3 over that without noise. `area`: the mean over levels 0 to 16 of the error over
    that without noise; 1 is a flat curve. `readings`: `moved` over `moved_real` at level 3, which is 1 where back
    reads a generated film as it reads a real one.
    """
    rows = [trial.under(noise(level, seed)) for level in NOISE_LEVELS]
    curves = {name: [row[name] for row in rows] for name in rows[0]}
    at = NOISE_LEVELS.index(TOLD)
    found: dict[str, Any] = {"levels": list(NOISE_LEVELS), **curves}
    for name in ("error", "control"):
        values = np.array(curves[name])
        area = float(np.trapezoid(values, NOISE_LEVELS)) / NOISE_LEVELS[-1]
        found[name + "_rise_at_3"] = _over(values[at], values[0])
        found[name + "_area"] = _over(area, values[0])
    found["readings"] = _over(curves["moved"][at], curves["moved_real"][at])
    return found


def corruption_sweep(trial: Trial) -> dict[str, dict[str, dict[str, float]]]:
    """The four errors by family and strength of corruption."""
    return {
        family: {f"{strength:g}": trial.under(change) for strength, change in changes.items()}
        for family, changes in corruptions().items()
    }


def _over(value: float, base: float) -> float | None:
    return float(value / base) if base else None


# --- 4: the spectrum


def spectrum(films: Tensor) -> tuple[list[float], list[float], float]:
    """Frequencies in cycles a pixel, mean power at each, and the share of the power above 0.25 cycles a pixel.

    Of films [N, 1, S, S]; their means are taken away and a Hann window keeps their borders out.
    """
    side = films.shape[-1]
    window = torch.hann_window(side, periodic=False, dtype=torch.float64, device=films.device)
    image = films[:, 0].double()
    image = (image - image.mean((1, 2), keepdim=True)) * window[:, None] * window
    power = torch.fft.fft2(image).abs().square().mean(0).cpu()
    steps = torch.fft.fftfreq(side, dtype=torch.float64)
    radius = torch.hypot(steps[:, None], steps)
    ring = (radius * side).round().long()
    count = side // 2 + 1
    inside = ring < count
    total = torch.bincount(ring[inside], power[inside], count)
    mean = total / torch.bincount(ring[inside], minlength=count)
    share = float(power[radius > HIGH].sum() / power.sum().clamp(min=1e-300))
    return [n / side for n in range(count)], mean.tolist(), share


# --- 5: locality


def locality(
    net: Net, images: Tensor, *, level: float, seed: int
) -> tuple[dict[str, float], Tensor]:
    """How much of what a change in one patch does, is done elsewhere; and the mean effect by place [S, S].

    A patch of an eighth of the side, at a place drawn for each image, is changed by up to `level` at every pixel.
    `outside`: the share of |dF| outside the patch; `far`: outside three times its side. Any convolution has some
    outside; far beyond what a real film shows means that the signal is read from afar.
    The map has each image's patch rolled to the centre.
    """
    side = images.shape[-1]
    patch = max(2, side // 8)
    random = torch.Generator().manual_seed(seed)
    corners = torch.randint(patch, side - 2 * patch + 1, (len(images), 2), generator=random)
    drawn = torch.rand(len(images), 1, patch, patch, generator=random) * 2 - 1
    changed = images.clone()
    for n, (top, left) in enumerate(corners.tolist()):
        here = (n, slice(None), slice(top, top + patch), slice(left, left + patch))
        changed[here] += (2 * level / 255 * drawn[n]).to(images)
    effect = (run(net, changed) - run(net, images)).abs().mean(1)
    centre = (side - patch) // 2
    rolled = torch.stack(
        [
            one.roll((centre - top, centre - left), (0, 1))
            for one, (top, left) in zip(effect, corners.tolist(), strict=True)
        ]
    )
    whole = float(rolled.sum())
    near = float(rolled[:, centre : centre + patch, centre : centre + patch].sum())
    low, high = centre - patch, centre + 2 * patch
    around = float(rolled[:, low:high, low:high].sum())
    shares = (
        {"outside": max(1 - near / whole, 0.0), "far": max(1 - around / whole, 0.0)}
        if whole
        else {}
    )
    return {"moved": float(effect.mean()) / 2, **shares}, rolled.mean(0)


# --- 6: a targeted attack


def targeted(
    back: Net, y: Tensor, wanted: Tensor, *, steps: int, tolerance: float
) -> dict[str, Any]:
    """The largest change of a real film that makes back read another film from it.

    PGD, in ever smaller steps, on the error between back(y + d) and `wanted` with |d| at most each radius; each begins
    with what the one before found.
    `left` is the error that remains over the first one, by radius; `needed` the smallest radius at which it is at
    most `tolerance` for an image, None where none was enough. A small radius means that back obeys a signal
    which no eye sees.
    """
    first = apart(run(back, y), wanted).clamp(min=1e-12)
    best, change = torch.ones_like(first), torch.zeros_like(y)
    left: list[float] = []
    needed: list[float | None] = [None] * len(y)
    for radius in RADII:
        moving = change.clone()
        for n in range(steps + 1):
            error, slope = _slope(back, y, moving, wanted)
            better = error / first < best
            best = torch.where(better, error / first, best)
            change = torch.where(better[:, None, None, None], moving, change)
            if n < steps:
                step = 2 * (2 * radius / 255) * (steps - n) / steps**2  # they add up to the radius
                moving = (moving - step * slope.sign()).clamp(-2 * radius / 255, 2 * radius / 255)
                moving = (y + moving).clamp(-1, 1) - y
        left.append(float(best.mean()))
        for k, share_of_one in enumerate(best.tolist()):
            if needed[k] is None and share_of_one <= tolerance:
                needed[k] = radius
    reached = [radius for radius in needed if radius is not None]
    median = float(np.median(reached)) if 2 * len(reached) > len(needed) else None
    return {"radii": list(RADII), "left": left, "needed": needed, "median_needed": median}


def _slope(back: Net, y: Tensor, change: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
    """The error [B] and its gradient by the change, whatever gradient mode is on outside."""
    errors, slopes = [], []
    parts = (torch.split(one, BLOCK) for one in (y, change, wanted))
    for film, moved, target in zip(*parts, strict=True):
        with torch.enable_grad():
            free = moved.detach().clone().requires_grad_()
            error = apart(back(film + free), target)
            [slope] = torch.autograd.grad(error.sum(), free)
        errors.append(error.detach())
        slopes.append(slope)
    return torch.cat(errors), torch.cat(slopes)


# --- 7: other decoders


def other_seed(cycle: Cycle, other: Cycle, x: Tensor) -> dict[str, float]:
    """What an independent decoder reads of x.

    `error`: |back(there(x)) - x|, by the generator that learned together with there. `others_error`: the same by the
    back of another seed, which knows no secret of this one. `hidden`: how much more that is. `others_own`: what
    the other back reaches with its own partner, so that a poor one is seen.
    """
    made = run(cycle.there, x)
    own, others = _mean(run(cycle.back, made), x), _mean(run(other.back, made), x)
    others_own = _mean(run(other.back, run(other.there, x)), x)
    return {"error": own, "others_error": others, "hidden": others - own, "others_own": others_own}


def fresh_decoder(net: Net, made: Tensor, returned: Tensor, x: Tensor) -> dict[str, Any]:
    """What a network reads of translations that learned on others, under noise; films [N, 1, S, S] in [0, 1].

    `hidden`: its error over that of `returned`, the generator's own reading. At most 0 where the translations show all
    that the generator reads from them. `unchanged`: the error of the translations themselves; a network that is not
    below it has learned nothing, and its gap says nothing.
    """
    read, own, unchanged = (float((a - x).abs().mean()) for a in (run(net, made), returned, made))
    found = {"error": own, "others_error": read, "hidden": read - own, "unchanged": unchanged}
    return {"films": len(x), **found}


def linear_decoder(made: Tensor, returned: Tensor, x: Tensor, seed: int) -> dict[str, Any]:
    """What a decoder that cannot read a faint signal makes of g: a filter of 7 x 7 pixels, by ridge regression.

    Fitted on the first half of the films [N, 1, S, S] in [0, 1] with noise of level 8 on g, measured on the second
    without. `hidden`: its error over that of `returned`, the generator's own reading, on the same films. Below 0
    where back reads no more than a filter does.
    """
    half = len(x) // 2
    if not half:
        return {"films": 0}
    noisy = noise(DECODER_NOISE / 2, seed)(made)  # films in [0, 1] span half of what generators do
    width = REACH**2 + 1
    gram = RIDGE * len(x[:half].flatten()) * torch.eye(width, dtype=torch.float64).to(made.device)
    gram[-1, -1] = 0
    moment = gram.new_zeros(width)
    for film, wanted in zip(noisy[:half], x[:half], strict=True):
        seen = _patches(film[None])
        gram += seen.T @ seen
        moment += seen.T @ wanted.double().flatten()
    weights = torch.linalg.solve(gram, moment)
    read = torch.stack([(_patches(film[None]) @ weights).clamp(0, 1) for film in made[half:]])
    films = x[half:].double()
    error = float((read - films.flatten(1)).abs().mean())
    own = float((returned[half:].double() - films).abs().mean())
    return {"films": len(films), "error": own, "others_error": error, "hidden": error - own}


def _patches(films: Tensor) -> Tensor:
    """The 7 x 7 neighbourhood of every pixel and a 1, [N S S, 50] float64."""
    around = F.pad(films.double() - 0.5, [REACH // 2] * 4, mode="reflect")
    seen = F.unfold(around, REACH).transpose(1, 2).flatten(0, 1)
    return torch.cat((seen, torch.ones_like(seen[:, :1])), 1)
