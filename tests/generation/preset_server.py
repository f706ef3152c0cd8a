"""What each server of data/teachers.yaml does differently, to be a FakeOpenAI's respond."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from tests.generation.fault_server import good_reply

THOUGHTS = "4. Instruction: the model thinks about the tasks.\n"
Answer = tuple[int, dict[str, str], Any]


def refusal(message: str, code: str | None = "invalid_request_error", param=None) -> Answer:
    return 400, {}, {"error": {"message": message, "type": "x", "param": param, "code": code}}


def _reply(body, thinks: bool, field: str, counts: bool = True) -> dict:
    """A completion: 100 tokens of answer, and 300 of reasoning if the model thinks."""
    message = {"role": "assistant", "content": good_reply(body)}
    usage: dict[str, Any] = {"prompt_tokens": 200, "completion_tokens": 100}
    if thinks:
        usage["completion_tokens"] += 300
        if field:
            message[field] = THOUGHTS
        if counts:
            usage["completion_tokens_details"] = {"reasoning_tokens": 300}
    usage["total_tokens"] = usage["prompt_tokens"] + usage["completion_tokens"]
    return {"id": "x", "choices": [{"message": message, "finish_reason": "stop"}], "usage": usage}


def _stream(reply: dict) -> Answer:
    """The same completion as events, with comments, empty deltas and the usage at the end."""
    message = reply["choices"][0]["message"]
    deltas = [{"role": "assistant", "content": ""}]
    deltas += [{"reasoning_content": part} for part in message.get("reasoning_content", "").split()]
    text = message["content"]
    deltas += [{"content": text[n : n + 7]} for n in range(0, len(text), 7)]
    events = [{"choices": [{"index": 0, "delta": delta}]} for delta in deltas]
    events.append({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
    events.append({"choices": [], "usage": reply["usage"]})
    data = ": PROCESSING\n\n" + "".join(f"data: {json.dumps(event)}\n\n" for event in events)
    return 200, {"Content-Type": "text/event-stream"}, (data + "data: [DONE]\n\n").encode()


def _openai(body) -> Answer:
    for name in ("max_tokens", "logit_bias", "stop"):
        if name in body:
            return refusal(f"Unsupported parameter: '{name}'.", "unsupported_parameter", name)
    thinks = body.get("reasoning_effort", "medium") != "none"
    if thinks and "temperature" in body:
        words = "Unsupported value: 'temperature' does not support 1.0 with this model."
        return refusal(words, "unsupported_value", "temperature")
    return 200, {}, _reply(body, thinks, "")


def _deepseek(body) -> Answer:
    if body.get("response_format", {}).get("type") == "json_schema":
        return refusal("This response_format type is unavailable now")
    assert 0 < body["max_tokens"] < 10_000, "without it DeepSeek writes 384,000 tokens"
    return 200, {}, _reply(body, body["thinking"]["type"] == "enabled", "reasoning_content")


def _qwen(body) -> Answer:
    thinks = body.get("enable_thinking", True)
    if thinks and not body.get("stream"):
        return refusal("parameter.enable_thinking must be set to false for non-streaming calls")
    if thinks:
        assert body["thinking_budget"] > 0
    reply = _reply(body, thinks, "reasoning_content")
    return _stream(reply) if body.get("stream") else (200, {}, reply)


def _openrouter() -> Callable[[Any], Answer]:
    failed = set()

    def respond(body):
        if body["seed"] not in failed:  # an error of the provider behind it, within 200
            failed.add(body["seed"])
            return 200, {}, {"error": {"code": 503, "message": "Provider returned error"}}
        return 200, {}, _reply(body, body["reasoning"]["effort"] != "none", "reasoning")

    return respond


def _vllm(body) -> Answer:
    if body.get("reasoning_effort") in ("none", "minimal"):
        where = "('body', 'reasoning_effort')"
        return refusal(f"[{{'loc': {where}, 'msg': \"Input should be 'low'\"}}]", None)
    thinks = body.get("chat_template_kwargs", {}).get("enable_thinking", True)
    return 200, {}, _reply(body, thinks, "reasoning", counts=False)


def _ollama(body) -> Answer:
    assert "max_tokens" in body, "Ollama does not read max_completion_tokens"
    return 200, {}, _reply(body, body["reasoning_effort"] != "none", "reasoning", counts=False)


def _llama_cpp(body) -> Answer:
    thinks = body["chat_template_kwargs"]["enable_thinking"]
    return 200, {}, _reply(body, thinks, "reasoning_content", counts=False)


def _lmstudio(body) -> Answer:
    if body["reasoning_effort"] in ("minimal", "xhigh", "max"):
        return 400, {}, {"error": "reasoning_effort must be one of none, low, medium, high"}
    return 200, {}, _reply(body, body["reasoning_effort"] != "none", "reasoning_content")


def server_of(name: str) -> Callable[[Any], Answer]:
    """The respond of a server that behaves as that preset's."""
    known = {
        "openai": _openai,
        "deepseek": _deepseek,
        "qwen": _qwen,
        "qwen-cn": _qwen,
        "vllm": _vllm,
        "ollama": _ollama,
        "llama.cpp": _llama_cpp,
        "lmstudio": _lmstudio,
    }
    return _openrouter() if name == "openrouter" else known[name]
