"""What a user chose of a model, resolved: its spec, or what its error says."""

from __future__ import annotations

from typing import Any

import pytest

from pipelines.models.spec import ModelSpec
from pipelines.protocol.errors import ModelUnavailable
from pipelines.settings.model import ModelSettings
from pipelines.settings.reading import read
from pipelines.zoo import resolve


def spec_of(source: str, allow_code: bool = False, **options: Any) -> ModelSpec:
    choice = read(ModelSettings, {"source": source, **options}, "settings")
    return resolve(choice, allow_code=allow_code)


def error_of(source: str, **options: Any) -> str:
    with pytest.raises(ModelUnavailable) as caught:
        spec_of(source, **options)
    text = str(caught.value)
    assert "\n" not in text
    assert caught.value.hint
    return text
