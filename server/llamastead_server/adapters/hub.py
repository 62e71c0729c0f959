"""Models from a Hugging Face hub into the models folder."""

from __future__ import annotations

import errno
import fcntl
import glob
import hashlib
import os
import re
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import urlsplit

from huggingface_hub import HfApi, get_hf_file_metadata, hf_hub_url
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.file_download import http_get
from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]

from llamastead_server.domain.errors import (
    Conflict,
    InvalidRequest,
    LlamasteadError,
    NotFound,
    PermissionDenied,
    Unavailable,
)

_REFERENCE = re.compile(
    r"(?P<repo>[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95})(?::(?P<file>[A-Za-z0-9][\w./-]{0,200}))?"
)
_PART = re.compile(r"-(\d{5})-of-(\d{5})\.gguf$")
_WHOLE_FOLDER = (".safetensors", ".json", ".jinja", ".model", ".txt")
_DOWNLOADING = ".downloading"
_PART_SUFFIX = ".part"
_SPARE_BYTES = 64 << 20
_SHA256 = re.compile(r"[0-9a-f]{64}")

Progress = Callable[[str, int, int], None]
"""Told the file's name, its number from 1 and the number of files, when each begins."""


@dataclass(frozen=True, slots=True)
class _File:
    name: str
    size: int


def pull(reference: str, models_dir: Path, progress: Progress | None = None) -> Path:
    """Downloads a model from the configured hub; see `Hub.pull`."""
    return Hub(models_dir).pull(reference, progress)


class Hub:
    """Downloads models; blocking, so call it from a command or a thread.

    Interrupted downloads continue where they stopped, also after a crash. Files appear in the models folder only
    when the whole model is there.

    Args:
        models_dir: Folder of the installed models.
        endpoint: Address of the hub; `None` is HF_ENDPOINT, else the public one.
        token: Access token for gated models; `None` is HF_TOKEN or the saved login.
    """

    def __init__(self, models_dir: Path, *, endpoint: str | None = None, token: str | None = None) -> None:
        self._models_dir = models_dir
        self._api = HfApi(endpoint=endpoint, token=token)

    def pull(self, reference: str, progress: Progress | None = None) -> Path:
        """Downloads `org/repo`, `org/repo:file.gguf` or `org/repo:Q4_K_M`; returns where the model lies.

        Args:
            reference: What to download. A repository with one GGUF model needs no more than its name; without
                any, its safetensors folder is downloaded (EXL2, GPTQ and unquantised models).
            progress: Told when each file begins; a progress bar is also drawn on a terminal.

        Raises:
            InvalidRequest: The reference is malformed, or must say which file; the message lists them.
            NotFound: The hub has no such repository or file.
            PermissionDenied: The model is gated; the message says what to do.
            Unavailable: The hub cannot be reached.
            Conflict: The disk is too full.
        """
        match = _REFERENCE.fullmatch(reference.strip())
        if match is None or ".." in reference:
            raise InvalidRequest(
                f"Invalid reference {reference!r}: write <org/repo> or <org/repo>:<file or quantisation>."
            )
        repo, wanted = match["repo"], match["file"]
        try:
            return self._pull(repo, wanted, progress)
        except LlamasteadError:
            raise
        except Exception as error:
            raise _explained(error, repo) from error

    def _pull(self, repo: str, wanted: str | None, progress: Progress | None) -> Path:
        files = _choose(repo, self._files(repo), wanted)
        target = self._models_dir / repo
        staging = self._models_dir / _DOWNLOADING / repo
        missing = [file for file in files if not _complete(target / file.name, file.size)]
        unfetched = [file for file in missing if not _complete(staging / file.name, file.size)]
        self._check_space(unfetched, staging)
        for number, file in enumerate(unfetched, 1):
            if progress is not None:
                progress(file.name, number, len(unfetched))
            self._download(repo, file, staging / file.name)
        # config.json makes a folder a model, so it comes last; each step is one rename.
        for file in sorted(missing, key=lambda file: file.name == "config.json"):
            place = target / file.name
            place.parent.mkdir(parents=True, exist_ok=True)
            (staging / file.name).replace(place)
        shutil.rmtree(staging, ignore_errors=True)
        only_gguf = all(file.name.endswith(".gguf") for file in files)
        return target / files[0].name if only_gguf else target

    def _download(self, repo: str, file: _File, place: Path) -> None:
        """Downloads one file, continuing what an earlier try of the same content left.

        The hub library's own download starts over after an interruption, so only its single request is used.
        """
        url = hf_hub_url(repo, file.name, endpoint=self._api.endpoint)
        metadata = get_hf_file_metadata(url, token=self._api.token, endpoint=self._api.endpoint)
        headers = build_hf_headers(token=self._api.token)
        if urlsplit(metadata.location).netloc != urlsplit(url).netloc:
            headers.pop("authorization", None)
        version = (metadata.etag or "unknown").strip('"')
        part = place.with_name(f"{place.name}.{hashlib.sha256(version.encode()).hexdigest()[:16]}{_PART_SUFFIX}")
        part.parent.mkdir(parents=True, exist_ok=True)
        for other in place.parent.glob(f"{glob.escape(place.name)}.*{_PART_SUFFIX}"):
            if other != part:
                other.unlink()
        with part.open("ab") as output:
            _lock(output, repo)
            http_get(
                metadata.location,
                output,
                resume_size=output.tell(),
                headers=headers,
                expected_size=metadata.size if metadata.size is not None else file.size,
                displayed_filename=file.name,
            )
            output.flush()
            os.fsync(output.fileno())
        if _SHA256.fullmatch(version) and _sha256(part) != version:
            part.unlink()
            raise Unavailable(f"{file.name} of {repo} arrived damaged and was thrown away. Run it again.")
        part.replace(place)

    def _files(self, repo: str) -> Sequence[_File]:
        info = self._api.model_info(repo, files_metadata=True)
        return [_File(sibling.rfilename, sibling.size or 0) for sibling in info.siblings or ()]

    def _check_space(self, missing: Sequence[_File], staging: Path) -> None:
        staging.mkdir(parents=True, exist_ok=True)
        needed = sum(file.size for file in missing)
        begun = sum(file.stat().st_size for file in staging.rglob(f"*{_PART_SUFFIX}") if file.is_file())
        free = shutil.disk_usage(staging).free
        if needed - begun + _SPARE_BYTES > free:
            raise Conflict(
                f"Not enough disk space in {self._models_dir}: {needed >> 20} MiB needed, {free >> 20} MiB free."
            )


def _choose(repo: str, files: Sequence[_File], wanted: str | None) -> Sequence[_File]:
    models: dict[str, list[_File]] = {}
    for file in sorted(files, key=lambda file: file.name):
        if file.name.endswith(".gguf") and not Path(file.name).name.startswith("mmproj"):
            models.setdefault(_PART.sub(".gguf", file.name), []).append(file)
    if wanted is not None:
        fitting = [name for name in models if _fits(name, wanted)]
        exact = [name for name in fitting if wanted in (name, *(part.name for part in models[name]))]
        chosen = exact or fitting
    else:
        chosen = list(models)
    if len(chosen) == 1:
        return models[chosen[0]]
    if models:
        listing = "\n".join(f"  {repo}:{name}  ({sum(p.size for p in models[name]) >> 20} MiB)" for name in models)
        problem = f"{repo} has no single file for {wanted!r}" if wanted else f"{repo} has several models"
        raise InvalidRequest(f"{problem}. Choose one:\n{listing}")
    folder = [file for file in files if "/" not in file.name and file.name.endswith(_WHOLE_FOLDER)]
    if wanted is not None or not any(file.name.endswith(".safetensors") for file in folder):
        raise NotFound(f"{repo} holds no {wanted or '.gguf or .safetensors model'}.")
    return folder


def _fits(name: str, wanted: str) -> bool:
    """Whether a file is the wanted one, by its name or by the quantisation in it."""
    if wanted.endswith(".gguf"):
        return _PART.sub(".gguf", wanted) in (name, Path(name).name)
    quantisation = re.escape(wanted)
    return re.search(rf"(^|[-._/]){quantisation}([-._/]|$)", name.removesuffix(".gguf"), re.IGNORECASE) is not None


def _lock(output: BinaryIO, repo: str) -> None:
    try:
        fcntl.flock(output, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise Conflict(f"{repo} is being downloaded by another process.") from None


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _complete(path: Path, size: int) -> bool:
    return path.is_file() and path.stat().st_size == size


def _explained(error: Exception, repo: str) -> LlamasteadError:
    if isinstance(error, GatedRepoError):
        return PermissionDenied(
            f"{repo} is gated: accept its terms on the hub's page, then set HF_TOKEN to a token that may read it."
        )
    if isinstance(error, LocalEntryNotFoundError | OfflineModeIsEnabled):
        return Unavailable(f"The hub cannot be reached, so {repo} was not downloaded. Run it again to continue.")
    if isinstance(error, RepositoryNotFoundError | RevisionNotFoundError):
        return NotFound(
            f"The hub has no model {repo}, or it is private and HF_TOKEN is not set to a token that may read it."
        )
    if isinstance(error, EntryNotFoundError):
        return NotFound(f"A file of {repo} is gone from the hub.")
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return Conflict(f"The disk is full; {repo} was not downloaded. Make room and run it again to continue.")
    if isinstance(error, HfHubHTTPError):
        return Unavailable(f"The hub refused: {_first_line(error)}")
    return Unavailable(f"The hub did not deliver {repo}: {_first_line(error)}. Run it again to continue.")


def _first_line(error: Any) -> str:
    return (str(error).strip() or type(error).__name__).split("\n", 1)[0]
