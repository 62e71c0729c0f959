"""A protoc plugin that runs grpcio-tools' `grpc_python` generator, which buf cannot call by itself."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from google.protobuf.compiler.plugin_pb2 import CodeGeneratorRequest, CodeGeneratorResponse
from google.protobuf.descriptor_pb2 import FileDescriptorSet
from grpc_tools import protoc  # type: ignore[import-untyped]


def generate(request: CodeGeneratorRequest) -> CodeGeneratorResponse:
    """Generates `*_pb2_grpc.py` for the requested files that define a service."""
    response = CodeGeneratorResponse(supported_features=CodeGeneratorResponse.FEATURE_PROTO3_OPTIONAL)
    wanted = set(request.file_to_generate)
    files = [file.name for file in request.proto_file if file.name in wanted and file.service]
    if not files:
        return response
    with tempfile.TemporaryDirectory() as folder:
        descriptors, out = Path(folder, "in.binpb"), Path(folder, "out")
        out.mkdir()
        descriptors.write_bytes(FileDescriptorSet(file=request.proto_file).SerializeToString())
        if protoc.main(["protoc", f"--descriptor_set_in={descriptors}", f"--grpc_python_out={out}", *files]):
            response.error = "grpc_python failed; protoc's message is above"
            return response
        for path in sorted(out.rglob("*.py")):
            response.file.add(name=path.relative_to(out).as_posix(), content=path.read_text("utf-8"))
    return response


if __name__ == "__main__":
    answer = generate(CodeGeneratorRequest.FromString(sys.stdin.buffer.read()))
    sys.stdout.buffer.write(answer.SerializeToString())
