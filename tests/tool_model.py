"""The model on board under a chat template that shows tools to it. It is too small to choose one by itself."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import llamastead_server

ON_BOARD = next((Path(llamastead_server.__file__).parent / "models").glob("*.gguf"))
TEMPLATE = (
    "{{ bos_token }}"
    "{% if tools %}{{ '<|start_header_id|>tools<|end_header_id|>\n\n' }}"
    "{% for tool in tools %}{{ tool | tojson }}{{ '\n' }}{% endfor %}{{ '<|eot_id|>' }}{% endif %}"
    "{% for message in messages %}"
    "{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' + message['content'] }}"
    "{% for call in message.tool_calls or [] %}"
    "{{ {'name': call.function.name, 'parameters': call.function.arguments} | tojson }}"
    "{% endfor %}{{ '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
    "{% if enable_thinking %}{{ '<think>' }}{% endif %}"
)


def make_tool_model(folder: Path, name: str = "tooled") -> Path:
    """Writes the model into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / f"{name}.gguf"
    subprocess.run(
        [sys.executable, "-m", "gguf.scripts.gguf_new_metadata", "--chat-template", TEMPLATE, "--force",
         str(ON_BOARD), str(target)],
        check=True, capture_output=True,
    )  # fmt: skip
    return target
