"""A taskset for verifiers' v1 API, with the program that plays it: what a package of its users' would hold."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, Literal

import verifiers.v1 as vf
from openai import AsyncOpenAI
from verifiers.v1.dialects.chat import message_to_wire

__all__ = ["Loop", "Words"]

PRICES = {"apple": 3, "pear": 5}
PRICE = {
    "type": "function",
    "function": {
        "name": "price",
        "description": "The price of a fruit.",
        "strict": True,
        "parameters": {"type": "object", "properties": {"fruit": {"type": "string"}}, "required": ["fruit"]},
    },
}


class WordData(vf.TaskData):
    fruit: str
    questions: int = 1
    tools: bool = False
    fault: Literal["", "setup", "score", "die"] = ""


class Word(vf.Task[WordData, vf.State, vf.TaskConfig]):
    async def setup(self, trace: Any, runtime: Any) -> None:
        if self.data.fault == "setup":
            raise ValueError("no fruit today")

    @vf.reward(weight=2.0)
    async def letters(self, trace: Any) -> float:
        """The share of the letter e in what was said last, doubled by the weight."""
        if self.data.fault == "score":
            raise ZeroDivisionError("nothing to divide")
        if self.data.fault == "die":
            os._exit(3)
        return trace.last_reply.count("e") / max(len(trace.last_reply), 1)

    @vf.metric
    async def turns(self, trace: Any) -> float:
        return float(trace.num_turns)


TASKS: tuple[dict[str, Any], ...] = (
    {"fruit": "apple"},
    {"fruit": "pear", "questions": 3},
    {"fruit": "apple", "tools": True},
    {"fruit": "pear", "questions": 5},
    {"fruit": "apple", "fault": "setup"},
    {"fruit": "apple", "fault": "score"},
    {"fruit": "apple", "fault": "die"},
)


class Words(vf.Taskset[Word, vf.TasksetConfig]):
    def load(self) -> list[Word]:
        tasks = []
        for number, task in enumerate(TASKS):
            prompt = f"Task {number}: {task['fruit']}?"
            tasks.append(Word(WordData(prompt=prompt, system_prompt="Say.", **task), self.config.task))
        return tasks


class LoopConfig(vf.HarnessConfig):
    stream: bool = False
    log: str | None = None


class Loop(vf.Harness[LoopConfig]):
    """Asks, carries out calls of tools, and asks on until it has put all its questions."""

    APPENDS_SYSTEM_PROMPT = True
    EXECUTES_CODE = False
    NEEDS_CONTAINER = False
    SUPPORTS_RESUME = True

    async def launch(
        self,
        ctx: Any,
        trace: Any,
        runtime: Any,
        endpoint: str,
        secret: str,
        mcp_urls: dict[str, str],
        data: Any,
        tool_interception_url: str | None = None,
    ) -> Any:
        system, prompt = self.resolve_prompt(data)
        messages: list[Any] = [{"role": "system", "content": system}] if system else []
        if isinstance(prompt, str):
            messages.append({"role": "user", "content": prompt})
        else:
            messages += [message_to_wire(one) for one in prompt or []]
        left = getattr(data, "questions", 1) - 1
        tools = [PRICE] if getattr(data, "tools", False) else []
        async with AsyncOpenAI(base_url=endpoint, api_key=secret, max_retries=0) as client:
            while True:
                said = await self._ask(client, ctx.model, messages, tools)
                messages.append(said)
                for call in said.get("tool_calls") or []:
                    fruit = json.loads(call["function"]["arguments"])["fruit"]
                    content = str(PRICES.get(fruit, "unknown"))
                    messages.append({"role": "tool", "tool_call_id": call["id"], "content": content})
                if said.get("tool_calls"):
                    continue
                if left == 0:
                    return vf.ProgramResult(exit_code=0, stdout="", stderr="")
                left -= 1
                messages.append({"role": "user", "content": f"More ({left})."})

    async def _ask(self, client: AsyncOpenAI, model: str, messages: list[Any], tools: list[Any]) -> dict[str, Any]:
        more: dict[str, Any] = {"tools": tools} if tools else {}
        if self.config.stream:
            async with client.chat.completions.stream(model=model, messages=messages, **more) as stream:
                completion: Any = await stream.get_final_completion()
        else:
            more["extra_body"] = {"return_token_ids": True}
            completion = await client.chat.completions.create(model=model, messages=messages, logprobs=True, **more)
        if self.config.log is not None:
            with Path(self.config.log).open("a") as file:
                file.write(completion.model_dump_json() + "\n")
        said: dict[str, Any] = completion.choices[0].message.model_dump(exclude_none=True)
        return said
