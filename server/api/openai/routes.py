"""OpenAI's REST API: transcriptions, translations, chat about speech, and the list of models."""

from fastapi import APIRouter

from server.api.context import ServerContext
from server.api.native.schema import ErrorReply
from server.api.openai.audio import audio_router
from server.api.openai.chat import chat_router
from server.api.openai.served_models import ModelCard, ModelList, card_of, list_cards


def openai_router(context: ServerContext) -> APIRouter:
    """Return the routes of OpenAI's API."""
    models = context.models
    router = APIRouter()
    router.include_router(audio_router(context))
    router.include_router(chat_router(context))

    @router.head("/v1/models", include_in_schema=False)
    @router.get("/v1/models", summary="The names of the models, with the default first")
    async def list_models() -> ModelList:
        return list_cards(models)

    @router.head("/v1/models/{name:path}", include_in_schema=False)
    @router.get("/v1/models/{name:path}", summary="One model", responses={404: {"model": ErrorReply}})
    async def show_model(name: str) -> ModelCard:
        return card_of(name, models.find(name))

    return router
