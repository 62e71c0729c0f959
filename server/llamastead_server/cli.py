"""The `llamastead` command."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from pydantic import ValidationError

from llamastead_server import token_commands
from llamastead_server.domain import validation
from llamastead_server.domain.errors import LlamasteadError
from llamastead_server.settings import Settings

_PRIVATE = 0o077
"""The umask of what the server and its workers write: prompts, documents and tokens are their owner's alone."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit status."""
    # Workers are spawned, never forked, so gRPC need not prepare for forks. What its core would print is no use to
    # an operator; errors that matter reach the log as exceptions.
    os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    parser = _parser()
    options = parser.parse_args(arguments)
    try:
        settings = Settings()
    except ValidationError as error:
        return _fail(_wrong_settings(error))
    umask = os.umask(_PRIVATE) if _writes_data(settings, options) else None
    try:
        status: int = options.run(settings, options)
    except LlamasteadError as error:
        return _fail(error.message)
    except KeyboardInterrupt:
        return 130
    finally:
        if umask is not None:
            os.umask(umask)
    return status


def _writes_data(settings: Settings, options: argparse.Namespace) -> bool:
    """Whether a command writes into the data folder, and not only into a folder of models that others may share."""
    return options.command in ("serve", "tokens") or settings.models_dir is None


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="llamastead", description=__doc__)
    commands = parser.add_subparsers(metavar="command", required=True, dest="command")
    serve = commands.add_parser("serve", help="start the server and everything it needs")
    serve.add_argument("--example", metavar="ID", help="import this example project, unless it is there already")
    serve.set_defaults(run=_serve)
    pull = commands.add_parser("pull", help="download a model into the models folder")
    pull.add_argument(
        "reference", metavar="org/repo[:file]", help="a repository, and which of its files or quantizations"
    )
    pull.set_defaults(run=_pull)
    models = commands.add_parser("models", help="list the installed models")
    models.set_defaults(run=_models)
    token_commands.add(commands)
    return parser


def _serve(settings: Settings, options: argparse.Namespace) -> int:
    # Imported here so that `llamastead models` need not wait for what only the server needs.
    from llamastead_server import serving

    return serving.run(settings, example=options.example)


def _pull(settings: Settings, options: argparse.Namespace) -> int:
    from llamastead_server.adapters import hub

    installed = hub.pull(options.reference, settings.models_folder)
    print(f"Installed {installed}. It answers to its name at once; no restart is needed.")
    return 0


def _models(settings: Settings, options: argparse.Namespace) -> int:
    from llamastead_server import app

    cards = [entry.card for entry in app.model_catalog(settings).entries()]
    width = max((len(card.name) for card in cards), default=0)
    for card in cards:
        size = f"{card.size_bytes / 1e6:,.0f} MB"
        print(f"{card.name:<{width}}  {card.format:<11}  {size:>12}  {card.path}")
    return 0


def _fail(message: str) -> int:
    print(f"llamastead: {message}", file=sys.stderr)
    return 1


def _wrong_settings(error: ValidationError) -> str:
    lines = ["some settings are wrong:"]
    for item in error.errors(include_url=False, include_context=False):
        name = "_".join(str(part) for part in item["loc"]).upper()
        name = name if name.startswith(("LLAMASTEAD_", "LF_")) else f"LLAMASTEAD_{name}"
        reason = validation.reason(item["msg"])
        lines.append(f"  {name}: {reason}" if item["loc"] else f"  {reason}")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
