"""Configs: the shipped YAML files with other words and values in them, and key=value words, against the real schemas."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from gandefense import config
from gandefense.errors import CONTROL, UserError
from gandefense.evaluation import settings
from gandefense.evaluation.settings import EvaluateConfig
from gandefense.training.classifier import ClassifierConfig
from gandefense.training.gan_config import GANConfig
from gandefense.training.trn import TRNConfig
from tests.fuzz.mutations import fuzz, junk, mutated, places, rewritten, survives, time_limit, words

CONFIGS = Path(__file__).parent.parent.parent / "configs"
SCHEMAS = {"classifier": ClassifierConfig, "trn": TRNConfig, "gan": GANConfig, "evaluate": EvaluateConfig}
ORIGINALS = [
    (SCHEMAS[kind], path.read_text(encoding="utf-8"))
    for kind in SCHEMAS
    for path in sorted((CONFIGS / kind).glob("cifar10*.yaml"))
]
DEFAULTS = {schema: config.to_dict(schema()) for schema in SCHEMAS.values()}
KEYS = {schema: [".".join(map(str, path)) for path in places(values)] for schema, values in DEFAULTS.items()}


def _texts(original: tuple[type, str]) -> st.SearchStrategy:
    """A schema and a text: changed letter by letter, or value by value."""
    schema, text = original
    letters = mutated(text.encode()).map(lambda data: data.decode("utf-8", errors="replace"))
    values = rewritten({**DEFAULTS[schema], **yaml.safe_load(text)}).map(lambda value: yaml.safe_dump(value, allow_unicode=True))
    return st.tuples(st.just(schema), st.one_of(letters, values))


def _overrides(schema: type) -> st.SearchStrategy:
    keys = st.one_of(st.sampled_from(KEYS[schema]), words)
    values = st.one_of(words, junk.map(str), st.sampled_from(["[", "{a: 1}", "&a [*a]", "!!python/object:os.system []", "1_0"]))
    written = st.builds(lambda key, value: f"{key}={value}", keys, values)
    return st.tuples(st.just(schema), st.lists(st.one_of(written, words), min_size=1, max_size=3))


def _checked(schema: type, path: Path | None, overrides: list[str]) -> Any:
    built = config.load(schema, path, overrides)
    if schema is EvaluateConfig:
        settings.check(built)
    return built


@fuzz
@given(case=st.sampled_from(ORIGINALS).flatmap(_texts))
def test_a_file_is_read_or_refused(place: Path, case: tuple[type, str]) -> None:
    schema, text = case
    path = place / "config.yaml"
    path.write_text(text, encoding="utf-8", errors="replace")
    built = survives(lambda: _checked(schema, path, []))
    assert built is None or isinstance(built, schema)


@fuzz
@given(case=st.sampled_from(list(SCHEMAS.values())).flatmap(_overrides))
def test_words_are_read_or_refused(case: tuple[type, list[str]]) -> None:
    schema, overrides = case
    built = survives(lambda: _checked(schema, None, overrides))
    assert built is None or dataclasses.is_dataclass(built)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: &a [x, x]\nb: &b [*a, *a]\nc: [*b, *b]\n", "aliases"),
        ("&a [*a]", "aliases"),
        ("data: " + "[" * 5000, "nested more than"),
        ("data: " + "[" * 900 + "]" * 900, "nested more than"),
        ("data:\n" + "".join(" " * i + "a:\n" for i in range(200)), "nested more than"),
        ("{" * 30_000, "nested more than"),
        ("? " * 30_000, "nested more than|not readable"),
        ("- " * 30_000, "nested more than|not readable"),
        ("run: {seed: " + "9" * 60_000 + "}", "run.seed|not readable"),
        ("run: {seed: !!python/object/apply:os.system [exit]}", "not readable as YAML"),
        ("x" * (config.LARGEST_FILE + 1), "at most"),
        ("\ud800", "not readable as YAML"),
    ],
)
def test_texts_made_to_hurt_are_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "config.yaml"
    path.write_bytes(text.encode("utf-8", errors="surrogatepass"))
    with time_limit(), pytest.raises(UserError, match=message) as caught:
        config.load(TRNConfig, path)
    assert not CONTROL.search(str(caught.value))


def test_the_originals_are_configs() -> None:
    assert len(ORIGINALS) > 8
    for schema, text in ORIGINALS:
        config.build(schema, yaml.safe_load(text))
