"""The one view: it answers at once, whatever the service does."""

from typing import cast

from django.apps import apps
from django.http import HttpRequest, JsonResponse
from django.urls import path
from django.views.decorators.csrf import csrf_exempt

from .apps import Translations


@csrf_exempt
def translate(request: HttpRequest, session_id: str, task_id: str) -> JsonResponse:
    text = request.GET["text"]
    cast(Translations, apps.get_app_config("translations")).persist.task(
        session_id=session_id,
        task_id=task_id,
        batch_id="b1",
        sheet_name="Sheet1",
        row_index=0,
        column_name="Text",
        source_text=text,
        target_text=text.upper(),
        status="completed",
    )
    return JsonResponse({"text": text.upper()})


urlpatterns = [path("translate/<session_id>/<task_id>", translate)]
