"""GGUF copies of safetensors folders, made once by a child process and kept beside the models."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import sys
from pathlib import Path

from llamastead_server.domain.errors import NotSupported, Unavailable

_CONVERTER_VERSION = "1"
_INPUTS = ("*.safetensors", "*.json", "*.jinja")


class GgufConversion:
    """Converts Hugging Face folders for llama.cpp.

    Args:
        cache_dir: Folder of the converted files; made when first needed.
    """

    def __init__(self, cache_dir: Path) -> None:
        self._cache_dir = cache_dir

    async def converted(self, folder: Path) -> Path:
        """Returns the GGUF form of a folder, converting it first unless an up-to-date copy is there.

        Raises:
            NotSupported: The checkpoint is of a kind that cannot be converted; the message says why.
            Unavailable: The conversion failed, for example for want of disk space.
        """
        target = await asyncio.to_thread(self._target, folder)
        if not await asyncio.to_thread(target.exists):
            await self._run(folder, target)
            await asyncio.to_thread(self._share, target)
            await asyncio.to_thread(self._forget_older, target)
        return target

    def _target(self, folder: Path) -> Path:
        fingerprint = hashlib.sha256(_CONVERTER_VERSION.encode())
        for file in sorted(file for pattern in _INPUTS for file in folder.glob(pattern)):
            status = file.stat()
            fingerprint.update(f"{file.name}\0{status.st_size}\0{status.st_mtime_ns}\0".encode())
        place = hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:8]
        if not self._cache_dir.exists():
            self._cache_dir.mkdir(parents=True, exist_ok=True)
            self._share(self._cache_dir)
        return self._cache_dir / f"{folder.name}-{place}-{fingerprint.hexdigest()[:16]}.gguf"

    async def _run(self, folder: Path, target: Path) -> None:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "llamastead_server.workers.gguf", str(folder), str(target),
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        assert process.stderr is not None
        try:
            said = await process.stderr.read()
            status = await process.wait()
        finally:
            if process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
        if status:
            reason = said.decode(errors="replace").strip().rsplit("\n", 1)[-1].removeprefix("ERROR ")
            kind = NotSupported if status == 2 else Unavailable
            raise kind(f"The model in {folder.name!r} cannot be converted to GGUF: {reason or 'the converter died.'}")

    def _share(self, path: Path) -> None:
        """Lets those who may read the models use the copies too; what the server writes is private by default."""
        mode = self._cache_dir.parent.stat().st_mode
        path.chmod(mode & (0o777 if path.is_dir() else 0o666))

    def _forget_older(self, target: Path) -> None:
        stem = target.stem.rsplit("-", 1)[0]
        for other in self._cache_dir.glob("*.gguf"):
            if other != target and other.stem.rsplit("-", 1)[0] == stem:
                other.unlink(missing_ok=True)
