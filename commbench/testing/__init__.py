"""The tests that every channel passes; a channel's test file is a three-line subclass.

::

    class TestTcp(ChannelContract):
        channel = "tcp"

The scenarios (``commbench.testing.scenarios``) run once per class in real processes, four ranks
under the launcher that the channel needs, for the native loop, the Python loop and one against the
other; each test looks at the outcome of one scenario.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import pytest

from commbench.testing.scenarios import NAMES

DEADLINE_S = 110.0
LOOPS = ("native", "python", "mixed")


@dataclass(frozen=True, slots=True)
class Finished:
    """What a contract run did: "scenario/loop" of all that passed, and what it printed."""

    loops: tuple[str, ...]
    passed: frozenset[str]
    exit_code: int
    output: str


class ChannelContract:
    """Subclass it and name the ``channel`` (a registered name or "module:Class").

    ``loops``: a channel without a native engine says ``("python",)``.
    """

    channel: ClassVar[str]
    options: ClassVar[Mapping[str, str]] = {}
    loops: ClassVar[tuple[str, ...]] = LOOPS
    launcher: ClassVar[str] = "process"
    ranks: ClassVar[int] = 4
    environment: ClassVar[Mapping[str, str]] = {}
    deadline_s: ClassVar[float] = DEADLINE_S

    @pytest.fixture(scope="class")
    @classmethod
    def finished(cls, tmp_path_factory: pytest.TempPathFactory) -> Finished:
        from commbench.harness.launch import launch

        out = tmp_path_factory.mktemp("contract") / "finished"
        options = [f"--option={key}={value}" for key, value in cls.options.items()]
        launched = launch(
            [
                f"--channel={cls.channel}",
                f"--loops={','.join(cls.loops)}",
                f"--out={out}",
                *options,
            ],
            cls.ranks,
            launcher=cls.launcher,
            module="commbench.testing.worker",
            env=cls.environment,
            timeout_s=cls.deadline_s,
            capture=True,
        )
        passed = out.read_text().split() if out.exists() else []
        return Finished(
            cls.loops, frozenset(passed), launched.exit_code, launched.stdout + launched.stderr
        )

    @pytest.mark.parametrize("scenario", NAMES)
    def test_contract(self, finished: Finished, scenario: str) -> None:
        for loop in finished.loops:
            assert f"{scenario}/{loop}" in finished.passed, finished.output

    def test_ends_well(self, finished: Finished) -> None:
        assert finished.exit_code == 0, finished.output
