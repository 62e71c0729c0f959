"""Regenerates everything under gen/ from proto/: `make generate`.

Python and TypeScript code, `descriptors.binpb` for Envoy and grpcurl, `openapi.yaml`, and from the server the schema of
the WebSocket's frames. Works offline once `npm ci` has run in tools/typescript; a second run changes nothing.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from llamastead_server.services import frames

ROOT = Path(__file__).resolve().parent.parent
GEN = ROOT / "gen"
TYPESCRIPT = ROOT / "tools" / "typescript"
PUBLIC = "proto/llamastead/v1"
# The errors' typed details; Envoy fails to translate an error whose details it has no descriptor of.
ERROR_DETAILS = "proto/google/rpc/error_details.proto"


def run(*command: str) -> None:
    """Runs a command in the repository's root, with this interpreter's scripts first on the path."""
    scripts = str(Path(sys.executable).parent)
    environment = {**os.environ, "PATH": scripts + os.pathsep + os.environ.get("PATH", "")}
    subprocess.run(command, cwd=ROOT, env=environment, check=True)


def describe(out: Path, *options: str) -> None:
    """Writes the descriptors of the public contract and everything it imports."""
    run("buf", "build", "--as-file-descriptor-set", f"--path={PUBLIC}", *options, f"--output={out}")


def main() -> None:
    """Regenerates gen/."""
    run("buf", "generate")
    for package in ("v1", "internal/v1"):
        (GEN / "python" / "llamastead" / package / "py.typed").touch()
    if not (TYPESCRIPT / "node_modules").is_dir():
        run("npm", "ci", "--no-audit", "--no-fund", f"--prefix={TYPESCRIPT}")
    run("buf", "generate", f"--template={TYPESCRIPT / 'buf.gen.yaml'}")
    # The generated imports end in `.js`, as ECMAScript modules' do.
    (GEN / "typescript" / "package.json").write_text('{ "private": true, "type": "module" }\n', "utf-8")
    describe(GEN / "descriptors.binpb", f"--path={ERROR_DETAILS}", "--exclude-source-info")
    with tempfile.TemporaryDirectory() as folder:
        commented = Path(folder, "commented.binpb")
        describe(commented)
        run(sys.executable, "tools/openapi.py", str(commented), str(GEN / "openapi.yaml"))
    (GEN / "websocket.schema.json").write_text(frames.schema(), "utf-8")


if __name__ == "__main__":
    main()
