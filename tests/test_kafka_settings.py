"""What may be passed to librdkafka, and that secrets stay where they are."""

from __future__ import annotations

from pathlib import Path

import pytest

from commbench.channels.kafka_settings import (
    KafkaSettings,
    check_option,
    is_secret,
    read_config,
)
from commbench.errors import UsageError

CONFIG = """\
# how to log in
security.protocol=SASL_SSL
sasl.mechanism = PLAIN

sasl.username=me
sasl.password=pass=word
ssl.ca.location=/etc/ca.pem
"""


def config(folder: Path, text: str | bytes, mode: int = 0o600) -> Path:
    path = folder / "kafka.properties"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    path.chmod(mode)
    return path


def test_a_config_file(tmp_path: Path) -> None:
    assert read_config(config(tmp_path, CONFIG)) == {
        "security.protocol": "SASL_SSL",
        "sasl.mechanism": "PLAIN",
        "sasl.username": "me",
        "sasl.password": "pass=word",
        "ssl.ca.location": "/etc/ca.pem",
    }


def test_secrets_reach_nothing_that_is_shown(tmp_path: Path) -> None:
    given = read_config(config(tmp_path, CONFIG))
    settings = KafkaSettings(record_nbytes=1, bootstrap_servers="b:1", given=given)
    seen = repr(settings.shown()) + repr(settings)
    assert "pass=word" not in seen and "'me'" not in seen
    assert settings.shown()["sasl.mechanism"] == "PLAIN"
    assert settings.shown()["sasl.password"] == "(redacted)"
    assert settings.producer("b:1")["sasl.password"] == "pass=word"


@pytest.mark.parametrize(
    "name",
    [
        "sasl.password",
        "ssl.key.password",
        "ssl.keystore.password",
        "ssl.key.pem",
        "sasl.oauthbearer.client.secret",
        "sasl.username",
    ],
)
def test_a_secret_is_no_option(name: str) -> None:
    assert is_secret(name)
    with pytest.raises(UsageError, match=r"--kafka-config FILE") as said:
        check_option(name, "hunter2")
    assert "hunter2" not in str(said.value)


@pytest.mark.parametrize(
    "name", ["socket.nagle.disable", "sticky.partitioning.linger.ms", "ssl.keystore.location"]
)
def test_others_are_options(name: str) -> None:
    assert not is_secret(name)
    check_option(name, "1")


@pytest.mark.parametrize(
    ("name", "flag"),
    [("acks", "--acks"), ("linger.ms", "--linger-ms"), ("test.mock.num.brokers", "--brokers")],
)
def test_what_a_flag_sets_is_no_option(name: str, flag: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=rf"-o {name}=1: {name} is set by {flag}"):
        check_option(name, "1")
    with pytest.raises(UsageError, match=rf"line 1: {name} is set by {flag}"):
        read_config(config(tmp_path, f"{name}=1\n"))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("acks\n", "line 1: allowed: NAME=VALUE"),
        ("\n#\n=1\n", "line 3: allowed: NAME=VALUE"),
        (b"\xff\xfe=1", "is not UTF-8 text"),
        ("a.b=" + "x" * 70_000, "allowed: up to 65536 bytes"),
    ],
)
def test_a_bad_config_file(text: str | bytes, said: str, tmp_path: Path) -> None:
    path = config(tmp_path, text)
    with pytest.raises(UsageError, match=said) as error:
        read_config(path)
    assert str(error.value).startswith(f"--kafka-config {path}")


def test_a_config_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"cannot be read: No such file"):
        read_config(tmp_path / "none")


def test_a_secret_that_others_may_read(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"others may read it; chmod 600"):
        read_config(config(tmp_path, CONFIG, 0o644))
    assert read_config(config(tmp_path, "security.protocol=SSL\n", 0o644))


def test_a_large_record_fits_the_topic() -> None:
    assert KafkaSettings(record_nbytes=100).topic_config() == {}
    large = KafkaSettings(record_nbytes=1 << 20)
    assert int(large.topic_config()["max.message.bytes"]) > 1 << 20
    assert int(large.producer("b:1")["message.max.bytes"]) > 1 << 20


def test_acks_that_are_none() -> None:
    with pytest.raises(UsageError, match=r"--acks 2: allowed: 0, 1, all"):
        KafkaSettings(record_nbytes=1, acks="2")


def test_the_mock_cluster_is_not_logged_in_to(tmp_path: Path) -> None:
    given = read_config(config(tmp_path, f"{CONFIG}compression.type=lz4\n"))
    told = KafkaSettings(record_nbytes=1, given=given).producer("b:1")
    assert not [name for name in told if name.startswith(("sasl.", "security.", "ssl."))]
    assert told["compression.type"] == "lz4"
