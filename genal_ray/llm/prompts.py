"""Prompts as Jinja templates: `genal_ray/prompts/<folder>/<name>.jinja`, with a block for each turn.

Texts are values, never templates: braces in them stay as they are, and templates run in Jinja's sandbox. The filter
`quoted` writes a text as a JSON string, so that its line breaks and quotes cannot pass for the prompt's.
"""

from __future__ import annotations

import json
from pathlib import Path
from traceback import extract_tb
from typing import Any

from jinja2 import (
    ChoiceLoader,
    FileSystemLoader,
    PackageLoader,
    StrictUndefined,
    Template,
    TemplateError,
    TemplateNotFound,
    TemplateSyntaxError,
)
from jinja2.sandbox import ImmutableSandboxedEnvironment

from genal_ray.errors import UserError
from genal_ray.llm import Message, Role

TURNS: tuple[Role, ...] = ("system", "user")
REMEDY = "`genal-ray prompts copy DIR` writes the templates that ship"


class Prompts:
    """The templates that ship, or those of a user's folder where it has them."""

    def __init__(self, folder: str | None = None) -> None:
        """Raises UserError when there is no such folder."""
        if folder is not None and not Path(folder).is_dir():
            raise UserError(f"llm.prompts: no folder {folder}: {REMEDY}")
        own = [] if folder is None else [FileSystemLoader(folder)]
        self._environment = ImmutableSandboxedEnvironment(
            loader=ChoiceLoader([*own, PackageLoader("genal_ray", "prompts")]),
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        # Jinja's own `tojson` writes apostrophes and angle brackets as escapes, for HTML.
        self._environment.filters["quoted"] = lambda value: json.dumps(value, ensure_ascii=False)

    def render(self, name: str, **values: object) -> tuple[Message, ...]:
        """The conversation of template `name`, such as `classification/labeling`; a turn without a block is left out.

        Raises UserError for a template that cannot be read or asks for a value that there is not.
        """
        file = f"{name}.jinja"
        try:
            template = self._environment.get_template(file)
            messages = self._fill_in(template, values)
        except Exception as error:  # a template may do whatever its sandbox allows
            raise UserError(f"llm.prompts: {_place(error, file)}: {_told(error)}; {REMEDY}") from error
        if not messages:
            where = template.filename or file
            raise UserError(f"llm.prompts: {where}: neither a block system nor a block user; {REMEDY}")
        return messages

    def _fill_in(self, template: Template, values: dict[str, Any]) -> tuple[Message, ...]:
        try:
            context = template.new_context(values)
            "".join(template.root_render_func(context))  # into it come inherited blocks, and what is set outside
            turns = [(role, context.blocks[role][0]) for role in TURNS if role in context.blocks]
            return tuple(Message(role=role, content="".join(block(context)).strip()) for role, block in turns)
        except Exception:
            self._environment.handle_exception()  # raised again, with the template's lines in its traceback


def _place(error: Exception, file: str) -> str:
    """The template's file and line, as far as they are known."""
    if isinstance(error, TemplateSyntaxError):
        return f"{error.filename or file}, line {error.lineno}"
    frames = [frame for frame in extract_tb(error.__traceback__) if frame.filename.endswith(".jinja")]
    return f"{frames[-1].filename}, line {frames[-1].lineno}" if frames else file


def _told(error: Exception) -> str:
    if isinstance(error, TemplateNotFound):
        return f"there is no template {error}"
    return str(error) if isinstance(error, TemplateError) else f"{type(error).__name__}: {error}"
