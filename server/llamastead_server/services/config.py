"""ConfigService: the settings that can be changed while the server runs."""

from __future__ import annotations

from typing import Any

import grpc
from google.protobuf.json_format import ParseDict

from llamastead.v1 import config_pb2 as pb
from llamastead.v1 import config_pb2_grpc as pb_grpc
from llamastead_server.domain.access.limits import DOCUMENTED
from llamastead_server.domain.errors import InvalidRequest
from llamastead_server.domain.models.runtime_settings import Configuration, RuntimeSettings
from llamastead_server.domain.ports import ModelRegistry
from llamastead_server.services import plain, strict_message

_DOCUMENTED = {
    "max_requests_per_minute": DOCUMENTED.requests,
    "max_concurrent_streams": DOCUMENTED.streams,
    "max_batch_operations_per_minute": DOCUMENTED.batch,
}
_Context = grpc.aio.ServicerContext[Any, Any]


class ConfigServicer(pb_grpc.ConfigServiceServicer):
    """The configuration over gRPC and, through the gateway, REST."""

    def __init__(self, settings: RuntimeSettings, models: ModelRegistry) -> None:
        self._settings = settings
        self._models = models

    async def ConfigHttp(self, request: pb.ConfigHttpRequest, context: _Context) -> pb.ConfigResponse:
        """Updates what the body carries and gives all."""
        return await self.Config(strict_message.read(request.settings, pb.ConfigRequest()), context)

    async def Config(self, request: pb.ConfigRequest, context: _Context) -> pb.ConfigResponse:
        """Updates what the request carries and gives all."""
        given = plain.given(request)
        model_settings, system_settings = given.get("model_settings", {}), given.get("system_settings", {})
        changed = bool(model_settings or system_settings)
        if changed:
            self._settings.update(model_settings, system_settings)
        message = "Configuration updated" if changed else "Configuration read"
        return ParseDict({"status": "success", "message": message, **self._shown()}, pb.ConfigResponse())

    async def ConfigureModelHttp(
        self, request: pb.ConfigureModelHttpRequest, context: _Context
    ) -> pb.ConfigureModelResponse:
        """Sets parameters of one model."""
        return await self.ConfigureModel(strict_message.read(request.settings, pb.ConfigureModelRequest()), context)

    async def ConfigureModel(self, request: pb.ConfigureModelRequest, context: _Context) -> pb.ConfigureModelResponse:
        """Sets parameters of one model."""
        given = plain.given(request)
        model = given.pop("model", "")
        if not model:
            raise InvalidRequest("Give model: the name or alias of an installed model.", details={"field": "model"})
        updated = self._settings.configure_model(model, given).model_dump(exclude_none=True)
        return pb.ConfigureModelResponse(
            status="success",
            message=f"Parameters of {model} updated",
            updated_params=ParseDict(updated, pb.ModelParameters()),
        )

    async def GetConfig(self, request: pb.GetConfigRequest, context: _Context) -> pb.GetConfigResponse:
        """Gives all settings."""
        return ParseDict(self._shown(), pb.GetConfigResponse())

    async def SaveConfigHttp(self, request: pb.SaveConfigHttpRequest, context: _Context) -> pb.SaveConfigResponse:
        """Keeps the settings for the next start."""
        return await self.SaveConfig(strict_message.read(request.settings, pb.SaveConfigRequest()), context)

    async def SaveConfig(self, request: pb.SaveConfigRequest, context: _Context) -> pb.SaveConfigResponse:
        """Keeps the settings for the next start."""
        await self._settings.save()
        return pb.SaveConfigResponse(status="success", message="Configuration saved")

    async def ResetConfigHttp(self, request: pb.ResetConfigHttpRequest, context: _Context) -> pb.ResetConfigResponse:
        """Goes back to the defaults."""
        return await self.ResetConfig(strict_message.read(request.settings, pb.ResetConfigRequest()), context)

    async def ResetConfig(self, request: pb.ResetConfigRequest, context: _Context) -> pb.ResetConfigResponse:
        """Goes back to the defaults."""
        self._settings.reset()
        return pb.ResetConfigResponse(status="success", message="Configuration reset to defaults")

    def _shown(self) -> dict[str, Any]:
        configuration: Configuration = self._settings.current
        shown = configuration.model_dump(mode="json", exclude_none=True)
        shown["model_settings"].setdefault("default_model", self._models.default_model)
        # Until they are set, callers with a token are held to the documented ones.
        shown["system_settings"] = {**_DOCUMENTED, **shown["system_settings"]}
        return shown
