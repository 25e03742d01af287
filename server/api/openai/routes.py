"""OpenAI's REST API: transcriptions, translations, chat about speech, and the list of models."""

from fastapi import APIRouter

from server.api.context import ServerContext
from server.api.native.schema import ErrorReply
from server.api.openai.audio import audio_router
from server.api.openai.chat import chat_router
from server.api.openai.served_models import ModelCard, ModelList, ServedModels


def openai_router(context: ServerContext) -> APIRouter:
    """Return the routes of OpenAI's API."""
    models = ServedModels(context.engine.model_name, context.settings.model_alias_names)
    router = APIRouter()
    router.include_router(audio_router(context, models))
    router.include_router(chat_router(context, models))

    @router.get("/v1/models", summary="The names under which the model is served")
    async def list_models() -> ModelList:
        return models.list_all()

    @router.get("/v1/models/{name:path}", summary="One model", responses={404: {"model": ErrorReply}})
    async def show_model(name: str) -> ModelCard:
        return models.find(name)

    return router
