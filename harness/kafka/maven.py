"""Kafka's jars, fetched once by Maven with the user's own settings, and the Java that runs them."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import tempfile
from pathlib import Path

from commbench.errors import ChannelUnavailable, UsageError

VERSION = "4.1.1"
LEAST_JAVA = 17
FETCH_S = 900.0  # some 60 files; a mirror may be slow
_PLUGIN = "3.8.1"
_MARK = "complete"  # written last: a folder without it was left by a fetch that was stopped
_POM = """\
<project xmlns="http://maven.apache.org/POM/4.0.0">
  <modelVersion>4.0.0</modelVersion>
  <groupId>commbench</groupId>
  <artifactId>kafka-jars</artifactId>
  <version>1</version>
  <packaging>pom</packaging>
  <dependencies>{dependencies}</dependencies>
  <build><plugins><plugin>
    <artifactId>maven-dependency-plugin</artifactId>
    <version>{plugin}</version>
  </plugin></plugins></build>
</project>
"""
_DEPENDENCY = """
    <dependency>
      <groupId>{group}</groupId>
      <artifactId>{name}</artifactId>
      <version>{version}</version>
      <scope>runtime</scope>
    </dependency>"""
# The last brings a log to a broker that fails; Kafka's own release adds it, its poms do not.
_LOGGING = ("org.apache.logging.log4j", "log4j-slf4j-impl", "2.24.3")


def cache_folder() -> Path:
    """The user's cache folder for all of Kafka."""
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "commbench" / "kafka"


def find_java() -> str:
    """A Java that Kafka runs on. Raises ChannelUnavailable: what to install, in one line."""
    java = _program("java", "JAVA_HOME") or shutil.which("java")
    if java is None:
        raise ChannelUnavailable(
            f"kafka: there is no java; install Java {LEAST_JAVA} or newer "
            f"(Debian: default-jre-headless)"
        )
    version = java_version(java)
    if version < LEAST_JAVA:
        raise ChannelUnavailable(
            f"kafka: {java} is Java {version}; Kafka needs Java {LEAST_JAVA} or newer "
            f"(Debian: default-jre-headless; JAVA_HOME chooses another)"
        )
    return java


def java_version(java: str) -> int:
    """Its feature release: 17. Raises ChannelUnavailable when it does not say."""
    try:
        done = subprocess.run([java, "-version"], capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ChannelUnavailable(f"kafka: {java} does not run: {error}") from None
    match = re.search(r'version "(?:1\.)?(\d+)', done.stderr + done.stdout)
    if done.returncode or match is None:
        raise ChannelUnavailable(f"kafka: {java} -version does not say which Java it is")
    return int(match[1])


def check_version(version: str) -> str:
    """It goes into file names and a pom. Raises UsageError."""
    match = re.fullmatch(r"(\d{1,3})\.\d{1,3}\.\d{1,3}", version)
    if match is None or int(match[1]) < 4:
        raise UsageError(f"--version {version}: allowed: a release of Kafka, 4.0.0 or newer")
    return version


def fetched(version: str) -> Path | None:
    """The folder of the jars when they are in the cache."""
    folder = cache_folder() / version
    return folder if (folder / _MARK).exists() else None


def jars(version: str) -> Path:
    """The folder of the jars of this release; Maven fetches them the first time.

    Raises ChannelUnavailable when there is no Maven or it cannot have them.
    """
    found = fetched(version)
    if found is not None:
        return found
    mvn = _program("mvn", "MAVEN_HOME") or shutil.which("mvn")
    if mvn is None:
        raise ChannelUnavailable(
            f"kafka: there is no mvn to fetch Kafka {version}; install Maven (Debian: maven)"
        )
    cache = cache_folder()
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache, prefix=f"{version}.") as work:
        new = _fetch(mvn, version, Path(work))
        folder = cache / version
        with contextlib.suppress(OSError):  # another process was quicker, or a stopped one
            new.rename(folder)
        if not (folder / _MARK).exists():
            shutil.rmtree(folder, ignore_errors=True)
            new.rename(folder)
    return folder


def _fetch(mvn: str, version: str, work: Path) -> Path:
    """Run Maven in ``work``; the folder that it filled."""
    pom, new = work / "pom.xml", work / "jars"
    needed = [("org.apache.kafka", name, version) for name in ("kafka_2.13", "kafka-tools")]
    dependencies = "".join(
        _DEPENDENCY.format(group=group, name=name, version=release)
        for group, name, release in (*needed, _LOGGING)
    )
    pom.write_text(_POM.format(dependencies=dependencies, plugin=_PLUGIN))
    command = [mvn, "-B", "-q", "-f", str(pom), "dependency:copy-dependencies"]
    command += ["-DincludeScope=runtime", f"-DoutputDirectory={new}"]
    code, said = _run(command, FETCH_S)
    if code is None:
        raise ChannelUnavailable(f"kafka: mvn did not fetch Kafka {version} within {FETCH_S:g} s")
    if code or not any(new.glob("kafka-tools-*.jar")):
        raise ChannelUnavailable(f"kafka: mvn cannot fetch Kafka {version}: {_first_error(said)}")
    (new / _MARK).touch()
    return new


def _run(command: list[str], timeout_s: float) -> tuple[int | None, str]:
    """Status (None: too late) and output; nothing of it is left, also when we are interrupted."""
    with subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
    ) as process:
        try:
            said, _ = process.communicate(timeout=timeout_s)
            return process.returncode, said
        except subprocess.TimeoutExpired:
            return None, ""
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def _first_error(said: str) -> str:
    errors = [line for line in said.splitlines() if line.startswith("[ERROR] ")]
    line = (errors or said.splitlines() or ["it said nothing"])[0]
    return line.removeprefix("[ERROR] ")[:400]


def _program(name: str, home: str) -> str | None:
    """The one of the environment variable, when that is set and it is there."""
    folder = os.environ.get(home)
    path = Path(folder, "bin", name) if folder else None
    return str(path) if path and os.access(path, os.X_OK) else None
