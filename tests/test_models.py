"""The networks of the papers as payloads: their totals are known exactly."""

from __future__ import annotations

import pytest

from commbench.errors import UsageError
from commbench.payloads.models import MODELS, parameters
from commbench.payloads.schemes import SchemeOptions, make_spec
from tests.command import commbench

TOTALS = {
    "alexnet": 60_965_224,
    "alexnet-tv": 61_100_840,
    "vgg16": 138_357_544,
    "resnet50": 25_557_032,
    "resnet152": 60_192_808,
    "inception3": 23_834_568,
    "inception3-aux": 27_161_264,
    "inception4": 42_679_816,
    "googlenet": 6_998_552,
    "lenet": 431_080,
    "cifar10-quick": 145_578,
    "softmax": 7_850,
}


def test_every_model_has_a_known_total() -> None:
    assert set(MODELS) == set(TOTALS)


@pytest.mark.parametrize(("model", "total"), TOTALS.items())
def test_trainable_parameters(model: str, total: int) -> None:
    tensors = parameters(model)
    assert sum(each.nbytes for each in tensors) == 4 * total
    assert len({each.name for each in tensors}) == len(tensors)


def test_resnet50_has_161_tensors_in_layer_order() -> None:
    tensors = parameters("resnet50")
    assert len(tensors) == 161
    assert tensors[0].shape == (64, 3, 7, 7) and tensors[-2].shape == (1000, 2048)


def test_grouped_convolutions_see_half_of_the_input() -> None:
    shapes = {each.name: each.shape for each in parameters("alexnet")}
    assert shapes["conv2.weight"] == (256, 48, 5, 5)


def test_scheme_has_a_buffer_for_each_tensor() -> None:
    spec = make_spec("model:lenet", SchemeOptions(seed=3))
    assert (spec.scheme, spec.seed) == ("model:lenet", 3)
    assert spec.sizes == (2000, 80, 100_000, 200, 1_600_000, 2000, 20_000, 40)


def test_unknown_model_lists_those_that_are() -> None:
    with pytest.raises(UsageError, match=r"model:lenet5: no such model; allowed: alexnet, "):
        make_spec("model:lenet5")
    commbench("run", "-C", "tcp", "--scheme", "model:lenet5").one_line(2, "model:lenet5", "softmax")


def test_a_model_goes_over_the_wire() -> None:
    done = commbench("run", "-C", "tcp", "--scheme", "model:softmax", "-i", "50", "-c")
    assert "model:softmax" in done.ok().stdout
