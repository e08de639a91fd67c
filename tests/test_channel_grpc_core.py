"""The grpc-core channel: the contract in real processes, and what it has alone, over sockets."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import pytest

from commbench.channels.grpc_core import GrpcCoreChannel
from commbench.testing import ChannelContract

pytestmark = pytest.mark.skipif(
    GrpcCoreChannel.missing() is not None, reason=GrpcCoreChannel.missing() or ""
)


class TestGrpcCore(ChannelContract):
    channel = "grpc-core"
    loops = ("native",)


class TestGrpcCoreSerialized(ChannelContract):
    channel = "grpc-core"
    loops = ("native",)
    options: ClassVar[Mapping[str, str]] = {"mode": "serialized"}


class TestGrpcCoreChannels(ChannelContract):
    channel = "grpc-core"
    loops = ("native",)
    options: ClassVar[Mapping[str, str]] = {"channels": "3"}
