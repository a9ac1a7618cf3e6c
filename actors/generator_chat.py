"""Conversations on a vLLM engine: a JSON schema around the reply."""

from __future__ import annotations

from typing import TYPE_CHECKING

from genal_ray.errors import RunError
from genal_ray.llm import LLMError, Reply, Request

if TYPE_CHECKING:
    from vllm import SamplingParams
    from vllm.outputs import RequestOutput

    from actors.generator import GeneratorService


class ServedModel:
    """Satisfies `genal_ray.llm.Backend` with the run's own generator."""

    def __init__(self, service: GeneratorService) -> None:
        """`service` is started and stopped by others."""
        self._service = service

    async def complete(self, request: Request) -> Reply:
        """Raises LLMError when the request cannot be answered, such as one longer than the model's context."""
        try:
            return await self._service.chat(request)
        except LLMError:
            raise
        except RunError as error:  # no replica answers
            raise LLMError(str(error)) from error

    def delay(self) -> float:
        return 0.0

    async def close(self) -> None:
        """The service goes on."""


def chat_sampling(request: Request, top_p: float) -> SamplingParams:
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind, StructuredOutputsParams

    return SamplingParams(
        temperature=request.temperature,
        top_p=top_p,
        max_tokens=request.max_tokens,
        seed=request.seed,
        structured_outputs=StructuredOutputsParams(json=dict(request.schema)),
        output_kind=RequestOutputKind.FINAL_ONLY,
    )


def chat_reply(output: RequestOutput, seconds: float) -> Reply:
    written = output.outputs[0]
    return Reply(
        text=written.text,
        finish_reason=written.finish_reason or "stop",
        prompt_tokens=len(output.prompt_token_ids or ()),
        completion_tokens=len(written.token_ids),
        seconds=seconds,
    )
