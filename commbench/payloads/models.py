"""Parameter tensors of the networks in the papers, in layer order, computed from layer shapes.

Trainable parameters only, as a framework exchanges them in data-parallel training: weights, biases,
and scale and shift of batch normalisation; running means and variances stay on the worker. The
shapes are those of Caffe (lenet, cifar10-quick, alexnet, googlenet), torchvision (alexnet-tv,
vgg16, resnets, inception3) and of Szegedy et al., arXiv:1602.07261 (inception4).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from math import prod

from commbench.errors import UsageError

FLOAT32 = 4  # bytes of an element


@dataclass(frozen=True, slots=True)
class Tensor:
    """One parameter tensor; ``shape`` as the framework stores it, output first."""

    name: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Bytes in float32."""
        return FLOAT32 * prod(self.shape)


Layers = Iterator[Tensor]
Kernel = int | tuple[int, int]


def parameters(model: str) -> tuple[Tensor, ...]:
    """The tensors of a network. Raises UsageError listing those that are known."""
    if model not in MODELS:
        raise UsageError(f"--scheme model:{model}: no such model; allowed: {', '.join(MODELS)}")
    return tuple(MODELS[model]())


# ---------------------------------------------------------------------- layers


def _conv(name: str, into: int, out: int, kernel: Kernel, groups: int = 1) -> Layers:
    yield Tensor(f"{name}.weight", (out, into // groups, *_square(kernel)))
    yield Tensor(f"{name}.bias", (out,))


def _conv_bn(name: str, into: int, out: int, kernel: Kernel) -> Layers:
    """A convolution without bias, then batch normalisation."""
    yield Tensor(f"{name}.conv.weight", (out, into, *_square(kernel)))
    yield Tensor(f"{name}.bn.weight", (out,))
    yield Tensor(f"{name}.bn.bias", (out,))


def _fc(name: str, into: int, out: int) -> Layers:
    yield Tensor(f"{name}.weight", (out, into))
    yield Tensor(f"{name}.bias", (out,))


def _square(kernel: Kernel) -> tuple[int, int]:
    return (kernel, kernel) if isinstance(kernel, int) else kernel


Layer = Callable[[str, int, int, Kernel], Layers]
Step = tuple[int, Kernel]  # output channels, kernel


def _chain(name: str, into: int, steps: Iterable[Step], layer: Layer = _conv_bn) -> Layers:
    """Convolutions one after the other."""
    for number, (out, kernel) in enumerate(steps, start=1):
        yield from layer(f"{name}.{number}", into, out, kernel)
        into = out


def _branches(name: str, into: int, *branches: Iterable[Step], layer: Layer = _conv_bn) -> Layers:
    """Chains side by side on the same input."""
    for number, steps in enumerate(branches, start=1):
        yield from _chain(f"{name}.branch{number}", into, steps, layer)


def _split(name: str, into: int, out: int) -> Layers:
    """1x3 and 3x1 side by side."""
    yield from _conv_bn(f"{name}a", into, out, (1, 3))
    yield from _conv_bn(f"{name}b", into, out, (3, 1))


# ---------------------------------------------------------------------- networks


def _softmax() -> Layers:
    yield from _fc("fc", 784, 10)


def _lenet() -> Layers:
    yield from _conv("conv1", 1, 20, 5)
    yield from _conv("conv2", 20, 50, 5)
    yield from _fc("ip1", 800, 500)
    yield from _fc("ip2", 500, 10)


def _cifar10_quick() -> Layers:
    yield from _chain("conv", 3, [(32, 5), (32, 5), (64, 5)], _conv)
    yield from _fc("ip1", 1024, 64)
    yield from _fc("ip2", 64, 10)


def _alexnet() -> Layers:
    yield from _conv("conv1", 3, 96, 11)
    yield from _conv("conv2", 96, 256, 5, groups=2)
    yield from _conv("conv3", 256, 384, 3)
    yield from _conv("conv4", 384, 384, 3, groups=2)
    yield from _conv("conv5", 384, 256, 3, groups=2)
    yield from _classifier(9216)


def _alexnet_tv() -> Layers:
    yield from _chain("conv", 3, [(64, 11), (192, 5), (384, 3), (256, 3), (256, 3)], _conv)
    yield from _classifier(9216)


def _vgg16() -> Layers:
    widths = [64, 64, 128, 128, 256, 256, 256, *[512] * 6]
    yield from _chain("conv", 3, [(width, 3) for width in widths], _conv)
    yield from _classifier(25088)


def _classifier(into: int) -> Layers:
    """The three fully connected layers of AlexNet and VGG."""
    for number, (before, after) in enumerate(pairwise((into, 4096, 4096, 1000)), start=6):
        yield from _fc(f"fc{number}", before, after)


def _resnet(*blocks: int) -> Layers:
    """``blocks``: bottleneck blocks in each of the four stages (He et al., arXiv:1512.03385)."""
    yield from _conv_bn("conv1", 3, 64, 7)
    into = 64
    for stage, (count, width) in enumerate(zip(blocks, (64, 128, 256, 512), strict=True), start=2):
        for block in range(1, count + 1):
            name = f"conv{stage}_{block}"
            yield from _chain(name, into, [(width, 1), (width, 3), (4 * width, 1)])
            if block == 1:
                yield from _conv_bn(f"{name}.shortcut", into, 4 * width, 1)
            into = 4 * width
    yield from _fc("fc", into, 1000)


# Input, 1x1, 3x3 reduce, 3x3, 5x5 reduce, 5x5, pool projection: Szegedy et al., arXiv:1409.4842,
# table 1.
_GOOGLENET = {
    "3a": (192, 64, 96, 128, 16, 32, 32),
    "3b": (256, 128, 128, 192, 32, 96, 64),
    "4a": (480, 192, 96, 208, 16, 48, 64),
    "4b": (512, 160, 112, 224, 24, 64, 64),
    "4c": (512, 128, 128, 256, 24, 64, 64),
    "4d": (512, 112, 144, 288, 32, 64, 64),
    "4e": (528, 256, 160, 320, 32, 128, 128),
    "5a": (832, 256, 160, 320, 32, 128, 128),
    "5b": (832, 384, 192, 384, 48, 128, 128),
}


def _googlenet() -> Layers:
    """Without the two auxiliary classifiers."""
    yield from _conv("conv1", 3, 64, 7)
    yield from _conv("conv2.reduce", 64, 64, 1)
    yield from _conv("conv2", 64, 192, 3)
    for name, (into, one, reduce3, three, reduce5, five, pool) in _GOOGLENET.items():
        chains = ([(one, 1)], [(reduce3, 1), (three, 3)], [(reduce5, 1), (five, 5)], [(pool, 1)])
        yield from _branches(f"inception_{name}", into, *chains, layer=_conv)
    yield from _fc("fc", 1024, 1000)


def _inception3(auxiliary: bool = False) -> Layers:
    """Szegedy et al., arXiv:1512.00567, as torchvision builds it."""
    yield from _chain("stem", 3, [(32, 3), (32, 3), (64, 3), (80, 1), (192, 3)])
    double = [(64, 1), (96, 3), (96, 3)]
    for name, into, pool in (("5b", 192, 32), ("5c", 256, 64), ("5d", 288, 64)):
        chains: tuple[list[Step], ...] = ([(64, 1)], [(48, 1), (64, 5)], [*double], [(pool, 1)])
        yield from _branches(f"mixed_{name}", into, *chains)
    yield from _branches("mixed_6a", 288, [(384, 3)], double)
    for name, c in (("6b", 128), ("6c", 160), ("6d", 160), ("6e", 192)):
        seven: list[Step] = [(c, 1), (c, (1, 7)), (192, (7, 1))]
        twice: list[Step] = [(c, 1), (c, (7, 1)), (c, (1, 7)), (c, (7, 1)), (192, (1, 7))]
        yield from _branches(f"mixed_{name}", 768, [(192, 1)], seven, twice, [(192, 1)])
    if auxiliary:
        yield from _chain("aux", 768, [(128, 1), (768, 5)])
        yield from _fc("aux.fc", 768, 1000)
    last: list[Step] = [(192, 1), (192, (1, 7)), (192, (7, 1)), (192, 3)]
    yield from _branches("mixed_7a", 768, [(192, 1), (320, 3)], last)
    for name, into in (("7b", 1280), ("7c", 2048)):
        yield from _branches(f"mixed_{name}", into, [(320, 1)], [(384, 1)])
        yield from _split(f"mixed_{name}.branch2.2", 384, 384)
        yield from _chain(f"mixed_{name}.branch3", into, [(448, 1), (384, 3)])
        yield from _split(f"mixed_{name}.branch3.3", 384, 384)
        yield from _chain(f"mixed_{name}.branch4", into, [(192, 1)])
    yield from _fc("fc", 2048, 1000)


def _inception4() -> Layers:
    yield from _chain("stem", 3, [(32, 3), (32, 3), (64, 3)])
    yield from _branches("mixed_3a", 64, [(96, 3)])
    long: list[Step] = [(64, 1), (64, (1, 7)), (64, (7, 1)), (96, 3)]
    yield from _branches("mixed_4a", 160, [(64, 1), (96, 3)], long)
    yield from _branches("mixed_5a", 192, [(192, 3)])
    for number in range(1, 5):
        chains: list[list[Step]] = [[(96, 1)], [(64, 1), (96, 3)], [(64, 1), (96, 3), (96, 3)]]
        yield from _branches(f"inception_a{number}", 384, *chains, [(96, 1)])
    yield from _branches("reduction_a", 384, [(384, 3)], [(192, 1), (224, 3), (256, 3)])
    once: list[Step] = [(192, 1), (224, (1, 7)), (256, (7, 1))]
    twice: list[Step] = [(192, 1), (192, (7, 1)), (224, (1, 7)), (224, (7, 1)), (256, (1, 7))]
    for number in range(1, 8):
        yield from _branches(f"inception_b{number}", 1024, [(384, 1)], once, twice, [(128, 1)])
    wide: list[Step] = [(256, 1), (256, (1, 7)), (320, (7, 1)), (320, 3)]
    yield from _branches("reduction_b", 1024, [(192, 1), (192, 3)], wide)
    for number in range(1, 4):
        name = f"inception_c{number}"
        yield from _branches(name, 1536, [(256, 1)], [(384, 1)])
        yield from _split(f"{name}.branch2.2", 384, 256)
        yield from _chain(f"{name}.branch3", 1536, [(384, 1), (448, (3, 1)), (512, (1, 3))])
        yield from _split(f"{name}.branch3.4", 512, 256)
        yield from _chain(f"{name}.branch4", 1536, [(256, 1)])
    yield from _fc("fc", 1536, 1000)


MODELS: Mapping[str, Callable[[], Layers]] = {
    "alexnet": _alexnet,
    "alexnet-tv": _alexnet_tv,
    "vgg16": _vgg16,
    "resnet50": lambda: _resnet(3, 4, 6, 3),
    "resnet152": lambda: _resnet(3, 8, 36, 3),
    "inception3": _inception3,
    "inception3-aux": lambda: _inception3(auxiliary=True),
    "inception4": _inception4,
    "googlenet": _googlenet,
    "lenet": _lenet,
    "cifar10-quick": _cifar10_quick,
    "softmax": _softmax,
}
