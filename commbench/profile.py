"""``commbench profile``: the parameter tensors of a PyTorch model and the time of each layer.

What Chapter 3 of the thesis on network slack in distributed deep learning wanted, for any model: it
timed the forward pass of layers with hooks, divided the backward pass by a profiler's estimate and
counted weights only. Here both passes are timed layer by layer and all parameters count.

PyTorch is no dependency: the user's module brings it.
"""

from __future__ import annotations

import csv
import importlib
import io
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from commbench.errors import ChannelUnavailable, UsageError

COLUMNS = ("layer", "tensor", "shape", "nbytes", "forward_ns", "backward_ns")
Clock = Callable[[], int]
_clock: Clock = time.perf_counter_ns  # noqa: TID251 - of a model's layers, no loop of ours


@dataclass(slots=True)
class Layer:
    """A module that owns parameters; one duration in ns for each iteration."""

    name: str
    module: Any
    forward_ns: list[int] = field(default_factory=list)
    backward_ns: list[int] = field(default_factory=list)


def profile(
    target: str, shape: Sequence[int] | None, iterations: int, clock: Clock = _clock
) -> str:
    """The table of ``MODULE:CALLABLE`` as CSV: a row for each parameter tensor.

    The callable returns a ``torch.nn.Module``, which then needs ``shape``, or a pair of it and its
    input (a tensor or a tuple of them). Layers stand in the order in which the forward pass meets
    them, those that it does not meet last; the times are medians over ``iterations`` after one
    that is not counted, stand in the first row of a layer, and are empty where nothing was timed.
    Raises UsageError, ChannelUnavailable.
    """
    torch = _torch()
    model, inputs = _model(torch, target, shape)
    layers = _layers(model)
    timer = Timer(torch, model, layers, clock)
    try:
        for _ in range(iterations + 1):
            _iterate(torch, model, inputs, target)
            timer.commit()
    finally:
        timer.remove()
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows(_rows(timer.in_order()))
    return out.getvalue()


class Timer:
    """Hooks on every layer. A layer's backward pass begins when the gradient of its output is
    there and ends when that of its input is."""

    def __init__(self, torch: Any, model: Any, layers: Sequence[Layer], clock: Clock) -> None:
        self._torch, self._clock = torch, clock
        self._cuda = any(each.is_cuda for each in model.parameters())
        self._layers = layers
        self._met: list[Layer] = []
        self._began: dict[str, int] = {}
        self._forward: dict[str, int] = {}
        self._backward: dict[str, int] = {}
        self._count = 0
        self._handles = [handle for layer in layers for handle in self._hook(layer)]

    def _hook(self, layer: Layer) -> Iterator[Any]:
        module, name = layer.module, layer.name

        def enter(*_: Any) -> None:
            if layer not in self._met:
                self._met.append(layer)
            self._began[name] = self._now()

        def leave(_module: Any, _inputs: Any, output: Any) -> None:
            self._add(self._forward, name)
            for tensor in _tensors(self._torch, output):
                if tensor.requires_grad:
                    tensor.register_hook(begin_backward)

        def begin_backward(_gradient: Any) -> None:
            self._began[name] = self._now()

        def end_backward(*_: Any) -> None:
            self._add(self._backward, name)

        yield module.register_forward_pre_hook(enter)
        yield module.register_forward_hook(leave)
        yield module.register_full_backward_hook(end_backward)

    def _now(self) -> int:
        if self._cuda:
            self._torch.cuda.synchronize()
        return self._clock()

    def _add(self, spent: dict[str, int], name: str) -> None:
        """A layer that is used several times in a pass has the sum."""
        spent[name] = spent.get(name, 0) + self._now() - self._began[name]

    def commit(self) -> None:
        """An iteration is over; the first one, which allocates, does not count."""
        if self._count > 0:
            for layer in self._met:
                if layer.name in self._forward:
                    layer.forward_ns.append(self._forward[layer.name])
                if layer.name in self._backward:
                    layer.backward_ns.append(self._backward[layer.name])
        self._count += 1
        self._forward.clear()
        self._backward.clear()

    def in_order(self) -> list[Layer]:
        return [*self._met, *(layer for layer in self._layers if layer not in self._met)]

    def remove(self) -> None:
        for handle in self._handles:
            handle.remove()


def parse_shape(text: str, flag: str = "--input") -> tuple[int, ...]:
    """``1x3x224x224``. Raises UsageError naming ``flag``."""
    parts = text.lower().split("x")
    if not all(part.isdecimal() and 0 < int(part) < 1 << 31 for part in parts):
        raise UsageError(f"{flag} {text}: allowed: whole numbers such as 32x3x224x224")
    return tuple(map(int, parts))


def _torch() -> Any:
    try:
        return importlib.import_module("torch")
    except ImportError as error:
        raise ChannelUnavailable(
            f"commbench profile needs PyTorch ({error}): pip install torch"
        ) from None


def _model(torch: Any, target: str, shape: Sequence[int] | None) -> tuple[Any, tuple[Any, ...]]:
    made = _call(target)
    model, given = made if isinstance(made, tuple) and len(made) == 2 else (made, None)
    if not isinstance(model, torch.nn.Module):
        raise UsageError(
            f"{target}: returned {type(made).__name__}; allowed: a torch.nn.Module, or a pair of "
            "it and its input"
        )
    if not any(True for _ in model.parameters()):
        raise UsageError(f"{target}: the model has no parameters")
    if given is not None:
        return model, given if isinstance(given, tuple) else (given,)
    if shape is None:
        raise UsageError(f"{target}: returned no input; give --input, such as 32x3x224x224")
    device = next(model.parameters()).device
    return model, (torch.randn(*shape, device=device),)


def _call(target: str) -> Any:
    module, colon, name = target.partition(":")
    if not (module and colon and name):
        raise UsageError(f"{target}: allowed: MODULE:CALLABLE, such as torchvision.models:resnet50")
    sys.path.insert(0, str(Path.cwd()))  # as python -m does
    try:
        function = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise UsageError(f"{target}: cannot be loaded: {error}") from None
    finally:
        sys.path.pop(0)
    try:
        return function()
    except Exception as error:
        raise UsageError(f"{target}: failed: {type(error).__name__}: {error}") from None


def _layers(model: Any) -> list[Layer]:
    return [
        Layer(name, module)
        for name, module in model.named_modules()
        if any(True for _ in module.parameters(recurse=False))
    ]


def _iterate(torch: Any, model: Any, inputs: tuple[Any, ...], target: str) -> None:
    model.zero_grad()
    # Of an input that needs no gradient, the first layer's backward pass would have no end.
    fresh = [
        each.detach().clone().requires_grad_() if each.is_floating_point() else each
        for each in inputs
    ]
    try:
        outputs = [each for each in _tensors(torch, model(*fresh)) if each.requires_grad]
        sum(each.sum() for each in outputs).backward()
    except Exception as error:
        raise UsageError(f"{target}: a pass failed: {type(error).__name__}: {error}") from None


def _tensors(torch: Any, output: Any) -> Iterator[Any]:
    """All tensors in what a module returned."""
    if isinstance(output, torch.Tensor):
        yield output
    elif isinstance(output, dict):
        for each in output.values():
            yield from _tensors(torch, each)
    elif isinstance(output, list | tuple):
        for each in output:
            yield from _tensors(torch, each)


def _rows(layers: Sequence[Layer]) -> Iterator[tuple[object, ...]]:
    """Each tensor once: one that two layers share belongs to the first."""
    seen: set[int] = set()
    for layer in layers:
        times = (_median(layer.forward_ns), _median(layer.backward_ns))
        for name, tensor in layer.module.named_parameters(recurse=False):
            if id(tensor) in seen:
                continue
            seen.add(id(tensor))
            shape = "x".join(map(str, tensor.shape))
            nbytes = tensor.numel() * tensor.element_size()
            full = f"{layer.name}.{name}".lstrip(".")
            yield (layer.name or "model", full, shape, nbytes, *times)
            times = ("", "")


def _median(values: Sequence[int]) -> int | str:
    return round(median(values)) if values else ""
