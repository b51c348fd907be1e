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
        "parameters": {"type": "object", "properties": {"fruit": {"type": "string"}}, "required": ["fruit"]},
    },
}


class WordData(vf.TaskData):
    fruit: str


class WordsConfig(vf.TasksetConfig):
    num_tasks: int = 4
    fault: Literal["", "setup", "score", "die"] = ""


class Word(vf.Task[WordData, vf.State, vf.TaskConfig]):
    fault = ""

    async def setup(self, trace: Any, runtime: Any) -> None:
        if self.fault == "setup":
            raise ValueError("no fruit today")

    @vf.reward(weight=2.0)
    async def letters(self, trace: Any) -> float:
        """The share of the letter e in what was said last, doubled by the weight."""
        if self.fault == "score":
            raise ZeroDivisionError("nothing to divide")
        if self.fault == "die":
            os._exit(3)
        return trace.last_reply.count("e") / max(len(trace.last_reply), 1)

    @vf.metric
    async def turns(self, trace: Any) -> float:
        return float(trace.num_turns)


class Words(vf.Taskset[Word, WordsConfig]):
    def load(self) -> list[Word]:
        tasks = []
        for number in range(self.config.num_tasks):
            fruit = ("apple", "pear")[number % 2]
            task = Word(WordData(fruit=fruit, prompt=f"Task {number}: {fruit}?", system_prompt="Say."), vf.TaskConfig())
            task.fault = self.config.fault if number == 0 else ""
            tasks.append(task)
        return tasks


class LoopConfig(vf.HarnessConfig):
    questions: int = 1
    tools: bool = False
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
        left = self.config.questions - 1
        async with AsyncOpenAI(base_url=endpoint, api_key=secret, max_retries=0) as client:
            while True:
                said = await self._ask(client, ctx.model, messages)
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

    async def _ask(self, client: AsyncOpenAI, model: str, messages: list[Any]) -> dict[str, Any]:
        more: dict[str, Any] = {"tools": [PRICE]} if self.config.tools else {}
        if self.config.stream:
            async with client.chat.completions.stream(model=model, messages=messages, **more) as stream:
                completion = await stream.get_final_completion()
        else:
            body = {"return_token_ids": True}
            completion = await client.chat.completions.create(
                model=model, messages=messages, logprobs=True, extra_body=body, **more
            )
        if self.config.log is not None:
            with Path(self.config.log).open("a") as file:
                file.write(completion.model_dump_json() + "\n")
        return completion.choices[0].message.model_dump(exclude_none=True)
