"""Prompts as Jinja templates: `genal_ray/prompts/<folder>/<name>.jinja`, with a block for each turn.

Texts are values, never templates: braces in them stay as they are, and templates run in Jinja's sandbox. The filter
`quoted` writes a text as a JSON string, so that its line breaks and quotes cannot pass for the prompt's.
"""

from __future__ import annotations

import json
from pathlib import Path

from jinja2 import ChoiceLoader, FileSystemLoader, PackageLoader, StrictUndefined, TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from genal_ray.errors import UserError
from genal_ray.llm import Message, Role

TURNS: tuple[Role, ...] = ("system", "user")


class Prompts:
    """The templates that ship, or those of a user's folder where it has them."""

    def __init__(self, folder: str | None = None) -> None:
        """Raises UserError when there is no such folder."""
        if folder is not None and not Path(folder).is_dir():
            raise UserError(f"llm.prompts: no folder {folder}")
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
        try:
            template = self._environment.get_template(f"{name}.jinja")
            turns = [(role, template.blocks[role]) for role in TURNS if role in template.blocks]
            context = template.new_context(values)
            return tuple(Message(role=role, content="".join(block(context)).strip()) for role, block in turns)
        except TemplateError as error:
            raise UserError(f"llm.prompts: template {name}: {error}") from error
