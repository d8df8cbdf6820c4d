"""Logs in Inspect's format, as its viewer and its data frames read them.

One log per arm, for that is what Inspect compares: the arm's values are the arguments of the task. A conversation is a
sample, so that means and errors have the conversation as their unit. The models are roles named after the agents.
The first agent's messages are the assistant's, all others the user's, as it was sent them.
"""

import json
import math
import statistics
import uuid
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pidgin_cli.database.tables import Extract
from pidgin_cli.eventlog.folder import slug

from .counted import why_left_out

__all__ = ["SCORES", "write_logs"]

VERSION = 2
"""Of Inspect's log format."""

_TOTALS = ("turns", "messages", "convergence")
_MEANS = ("cosine_tf", "copied_span_share", "lsm", "mattr_50", "rep_4", "novelty_4gram", "history_gain", "sentiment")
SCORES = (*_TOTALS, *_MEANS)
"""Scores of a sample, as far as there are such values: its totals, its last convergence, means over its messages."""

_STOP_REASONS = {
    "stop": "stop",
    "length": "max_tokens",
    "tool_calls": "tool_calls",
    "refusal": "content_filter",
    "content_filter": "content_filter",
}
_NAMESPACE = uuid.UUID("5b0f3cbe-0c4c-4d7b-9f0e-0d0c7a1f6a11")
_UNKNOWN = datetime(1970, 1, 1)  # noqa: DTZ001 - as the database has times

_SCHEMA = {
    "logs": "Inspect's log format, version 2 (.eval): one log per arm, one sample per conversation.",
    "results": "Means and standard errors over the complete and valid conversations; the others are unscored.",
    "task_args": "What the arms differ in.",
    "model_roles": "The agents' models as they began in the arm's first conversation; events have those of each.",
    "samples": {
        "id": "The conversation's id; epoch is 1 always, the draw is `repetition` in the metadata.",
        "messages": (
            "The first agent's system prompt, the opening without its tag, then all that was said: the first agent's "
            "messages have the role assistant, all others user. Who speaks is `agent_id` and `name` in the metadata. "
            "Thinking stands before the text it led to. Empty messages have no content."
        ),
        "events": "Per message a model event whose role is the agent; its input is what was said since its last one.",
        "scores": "Totals, the last convergence, and means of metrics over messages; none where there is no value.",
        "metadata": "The row of the table conversations.",
        "invalidation": "Present where the conversation is invalid, with the reasons.",
    },
}


def write_logs(extract: Extract, folder: Path) -> tuple[dict[str, int], dict[str, Any]]:
    """Write a log for each arm; gives the samples in each, and what the schema says."""
    rows = {}
    for experiment in extract.rows("FROM extract.main.experiments"):
        arms = extract.rows(
            "SELECT arm FROM extract.main.conversations WHERE experiment_id = ? GROUP BY arm ORDER BY min(rowid)",
            experiment["experiment_id"],
        )
        for number, arm in enumerate(arms, 1):
            name = f"{experiment['experiment_id']}_{number:03}_{slug(arm['arm'] or '') or 'all'}.eval"
            with zipfile.ZipFile(folder / name, "w", zipfile.ZIP_DEFLATED) as log:
                rows[name] = _Arm(extract, experiment, arm["arm"]).write(log)
    return rows, _SCHEMA


class _Arm:
    """One arm on its way into a log."""

    def __init__(self, extract: Extract, experiment: Mapping[str, Any], arm: str | None) -> None:
        self._extract = extract
        self._experiment = experiment
        self._arm = arm
        self._conversations = extract.rows(
            "FROM extract.main.conversations WHERE experiment_id = ? AND arm IS NOT DISTINCT FROM ?",
            experiment["experiment_id"],
            arm,
        )
        self._nested = {column.name for column in extract.tables["conversations"].columns if column.type == "JSON"}
        there = {column.name: column.type for column in extract.tables["message_metrics"].columns}
        self._metrics = [name for name in _MEANS if there.get(name) in ("DOUBLE", "BIGINT", "BOOLEAN")]

    def write(self, log: zipfile.ZipFile) -> int:
        summaries = []
        usage: dict[str, Counter[str]] = {}
        by_role: dict[str, Counter[str]] = {}
        for conversation in self._conversations:
            sample = self._sample(conversation)
            _put(log, f"samples/{sample['id']}_epoch_1.json", sample)
            summaries.append(_summary(sample))
            _add(usage, sample["model_usage"])
            _add(by_role, sample["role_usage"])
        _put(log, "summaries.json", summaries)
        header = self._header(summaries, {"model_usage": usage, "role_usage": by_role})
        _put(log, "_journal/start.json", {name: header[name] for name in ("version", "eval", "plan")})
        _put(log, "header.json", header)
        return len(summaries)

    # One conversation

    def _sample(self, conversation: Mapping[str, Any]) -> dict[str, Any]:
        name = conversation["conversation_id"]
        agents = self._extract.rows("FROM extract.main.agents WHERE conversation_id = ? ORDER BY seat", name)
        first = agents[0]["agent_id"] if agents else "a"
        thoughts: dict[int, list[dict[str, Any]]] = {}
        for row in self._extract.rows(
            "FROM extract.main.thinking WHERE conversation_id = ? ORDER BY message_index, block", name
        ):
            thoughts.setdefault(row["message_index"], []).append(
                {"type": "reasoning", "reasoning": row["content"] or "", "redacted": bool(row["redacted"])}
            )
        start = self._start(conversation, agents)
        said = self._extract.rows(
            "SELECT * FROM extract.main.shared_messages WHERE conversation_id = $1 UNION ALL BY NAME "
            "SELECT * FROM extract.main.messages WHERE conversation_id = $1 ORDER BY message_index",
            name,
        )
        messages = [_message(row, thoughts.get(row["message_index"], []), own=row["agent_id"] == first) for row in said]
        began, ended = conversation["started_at"], conversation["ended_at"]
        sample = {
            "id": name,
            "epoch": 1,
            "input": start,
            "target": "",
            "messages": [*start, *messages],
            "output": _output(said[-1], messages[-1]) if said else {"model": "", "choices": [], "completion": ""},
            "scores": self._scores(conversation),
            "metadata": {
                key: json.loads(value) if value and key in self._nested else _plain(value)
                for key, value in conversation.items()
            },
            "store": {},
            "events": list(_events(said, start, messages)),
            "model_usage": _usage(said, lambda row: _model(row["model_requested"])),
            "role_usage": _usage(said, lambda row: row["agent_id"]),
            "started_at": _time(began or _UNKNOWN),
            "completed_at": _time(ended or began or _UNKNOWN),
            "total_time": (ended - began).total_seconds() if began and ended else None,
            "working_time": sum(row["duration_ms"] or 0 for row in said if row["duration_ms"] is not None) / 1000,
            "uuid": _id(name),
            "attachments": {},
            "turn_count": sum(1 for row in said if row.get("seq") is not None),
        }
        if conversation["error"]:
            sample["error"] = {"message": conversation["error"], "traceback": "", "traceback_ansi": ""}
        if conversation["invalid"]:
            sample["invalidation"] = {
                "author": "pidgin",
                "timestamp": sample["completed_at"],
                "reason": ", ".join(conversation["invalid_reasons"] or ()) or "invalid",
                "metadata": {},
            }
        return sample

    def _start(self, conversation: Mapping[str, Any], agents: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        found = []
        name = conversation["conversation_id"]
        if agents and agents[0]["system_prompt"]:
            text = agents[0]["system_prompt"]
            found.append({"role": "system", "id": _id(name, "system"), "content": text, "source": "input"})
        if conversation["opening"] is not None:
            text = conversation["opening"]
            found.append({"role": "user", "id": _id(name, "opening"), "content": text, "source": "input"})
        return found

    def _scores(self, conversation: Mapping[str, Any]) -> dict[str, Any]:
        name = conversation["conversation_id"]
        values: dict[str, Any] = {key: conversation[key] for key in ("turns", "messages")}
        (row,) = self._extract.rows(
            "SELECT max_by(convergence, turn_number) FILTER (complete) AS convergence FROM extract.main.turns "
            "WHERE conversation_id = ?",
            name,
        )
        values |= row
        if self._metrics:
            means = ", ".join(f'avg("{metric}"::DOUBLE) AS "{metric}"' for metric in self._metrics)
            (row,) = self._extract.rows(
                f"SELECT {means} FROM extract.main.message_metrics WHERE conversation_id = ?",  # noqa: S608 - our names
                name,
            )
            values |= row
        return {
            key: {"value": value, "metadata": {}}
            for key, value in values.items()
            if value is not None and math.isfinite(value)
        }

    # All of them

    def _header(self, summaries: Sequence[Mapping[str, Any]], usage: Mapping[str, Any]) -> dict[str, Any]:
        experiment = self._experiment
        task = experiment["name"] or experiment["experiment_id"]
        began = min((row["started_at"] for row in self._conversations if row["started_at"]), default=_UNKNOWN)
        ended = max((row["ended_at"] for row in self._conversations if row["ended_at"]), default=None)
        errors = [row["error"] or "unknown" for row in self._conversations if row["status"] == "failed"]
        failed = len(errors) == len(self._conversations)
        finished = all(row["ended_at"] for row in self._conversations)
        status = "error" if failed else "success" if finished else "cancelled"
        variables = next((row["variables"] for row in self._conversations if row["variables"]), None)
        first = self._conversations[0]["conversation_id"]
        agents = self._extract.rows("FROM extract.main.agents WHERE conversation_id = ? ORDER BY seat", first)
        left_out = {
            row["conversation_id"]
            for row in self._conversations
            if why_left_out(row["status"], row["invalid_reasons"] or ()) is not None
        }
        header: dict[str, Any] = {
            "version": VERSION,
            "status": status,
            "eval": {
                "eval_id": _id(experiment["experiment_id"], self._arm or ""),
                "run_id": _id(experiment["experiment_id"]),
                "created": _time(began),
                "task": task,
                "task_id": _id(experiment["experiment_id"], self._arm or "", "task"),
                "task_version": 0,
                "task_args": json.loads(variables) if variables else {},
                "task_attribs": {},
                "dataset": {
                    "name": task,
                    "samples": len(summaries),
                    "sample_ids": [summary["id"] for summary in summaries],
                    "shuffled": False,
                },
                "model": "none/none",
                "model_roles": {agent["agent_id"]: _role(agent) for agent in agents},
                "model_args": {},
                "config": {"epochs": 1},
                "packages": {},
                "metadata": {
                    "experiment_id": experiment["experiment_id"],
                    "arm": self._arm,
                    "spec_hash": experiment["spec_hash"],
                    "made_by": "pidgin",
                },
                "tags": ["pidgin"],
            },
            "plan": {"name": "conversation", "steps": [{"solver": "pidgin", "params": {}}], "config": {}},
            "results": {
                "total_samples": len(summaries),
                "completed_samples": sum(1 for row in self._conversations if row["status"] == "completed"),
                "scores": _results(summaries, left_out),
            },
            "stats": {
                "started_at": _time(began),
                "completed_at": _time(ended) if ended else "",
                **{kind: {name: dict(count) for name, count in of.items()} for kind, of in usage.items()},
            },
            "invalidated": any(row["invalid"] for row in self._conversations),
        }
        if failed:
            told = f"all {len(errors)} conversations failed, the first with: {errors[0]}"
            header["error"] = {"message": told, "traceback": "", "traceback_ansi": ""}
        return header


def _results(summaries: Sequence[Mapping[str, Any]], left_out: set[str]) -> list[dict[str, Any]]:
    """Means and standard errors over the conversations that statistics count."""
    found = []
    for name in SCORES:
        values = [
            float(summary["scores"][name]["value"])
            for summary in summaries
            if name in summary["scores"] and summary["id"] not in left_out
        ]
        if not values:
            continue
        metrics = {"mean": statistics.fmean(values)}
        if len(values) > 1:
            metrics["stderr"] = statistics.stdev(values) / math.sqrt(len(values))
        found.append(
            {
                "name": name,
                "scorer": name,
                "scored_samples": len(values),
                "unscored_samples": len(summaries) - len(values),
                "params": {},
                "metrics": {key: {"name": key, "value": value, "params": {}} for key, value in metrics.items()},
            }
        )
    return found


def _role(agent: Mapping[str, Any]) -> dict[str, Any]:
    config = {key: agent[key] for key in ("temperature", "top_p", "max_tokens", "seed") if agent[key] is not None} | (
        {"stop_seqs": agent["stop"]} if agent["stop"] else {}
    )
    return {"model": _model(agent["model"]), "config": config, "args": {}}


def _message(row: Mapping[str, Any], thoughts: Sequence[Mapping[str, Any]], *, own: bool) -> dict[str, Any]:
    content = [*thoughts, *([{"type": "text", "text": row["content"]}] if row["content"] else [])]
    message: dict[str, Any] = {
        "role": "assistant" if own else "user",
        "id": _id(row["conversation_id"], str(row["message_index"])),
        "content": content if thoughts else row["content"],
        "source": "generate",
        "metadata": {
            "agent_id": row["agent_id"],
            "name": row["agent_name"],
            "model": row["model"],
            "turn_number": row["turn_number"],
            "message_index": row["message_index"],
        },
    }
    if own:
        message["model"] = _model(row["model"])
    return message


def _events(
    said: Sequence[Mapping[str, Any]], start: Sequence[dict[str, Any]], messages: Sequence[dict[str, Any]]
) -> Iterator[dict[str, Any]]:
    """A model event per message that is the conversation's own."""
    began: datetime | None = None
    heard: dict[str, int] = {}
    for place, row in enumerate(said):
        since = heard.get(row["agent_id"])
        heard[row["agent_id"]] = place
        if row.get("seq") is None:
            continue
        completed = row["completed_at"] or _UNKNOWN
        requested = row["requested_at"] or completed
        began = began or requested
        new = messages[place - 1 : place] if since is None else messages[since + 1 : place]
        opening = [message for message in start if message["role"] == "user"] if since is None else []
        yield {
            "event": "model",
            "uuid": _id(row["conversation_id"], str(row["message_index"]), "event"),
            "timestamp": _time(requested),
            "working_start": max(0.0, (requested - began).total_seconds()),
            "completed": _time(completed),
            "working_time": None if row["duration_ms"] is None else row["duration_ms"] / 1000,
            "model": _model(row["model_requested"]),
            "role": row["agent_id"],
            "input": [{**message, "role": "user"} for message in (*opening, *new)],
            "tools": [],
            "tool_choice": "none",
            "config": {},
            "output": _output(row, messages[place]),
            "cache": "read" if row["cached"] else None,
            "metadata": {"turn_number": row["turn_number"], "message_index": row["message_index"]},
        }


def _output(row: Mapping[str, Any], message: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {
        "model": row.get("model_served") or row["model"] or "",
        "choices": [
            {
                "message": {**message, "role": "assistant"},
                "stop_reason": _STOP_REASONS.get(row["finish_reason"] or "", "unknown"),
            }
        ],
        "completion": row["content"],
    }
    if row.get("seq") is not None and None not in (row["prompt_tokens"], row["completion_tokens"]):
        found["usage"] = _tokens(row)
    if row.get("duration_ms") is not None:
        found["time"] = row["duration_ms"] / 1000
    return found


def _usage(said: Sequence[Mapping[str, Any]], of: Callable[[Mapping[str, Any]], str]) -> dict[str, dict[str, Any]]:
    """Tokens of the conversation's own messages by what `of` gives; none of those of which one is not known."""
    found: dict[str, Counter[str]] = {}
    unknown = set()
    for row in said:
        if row.get("seq") is None:
            continue
        if row["prompt_tokens"] is None or row["completion_tokens"] is None:
            unknown.add(of(row))
        else:
            _add(found, {of(row): _tokens(row)})
    return {name: dict(count) for name, count in found.items() if name not in unknown}


def _tokens(row: Mapping[str, Any]) -> dict[str, Any]:
    read, written = row["cached_tokens"] or 0, row["cache_write_tokens"] or 0
    rest = {
        "input_tokens_cache_read": row["cached_tokens"],
        "input_tokens_cache_write": row["cache_write_tokens"],
        "reasoning_tokens": row["thinking_tokens"],
        "total_cost": row["cost_usd"],
    }
    return {
        "input_tokens": max(0, row["prompt_tokens"] - read - written),
        "output_tokens": row["completion_tokens"],
        "total_tokens": row["prompt_tokens"] + row["completion_tokens"],
        **{name: value for name, value in rest.items() if value is not None},
    }


def _add(total: dict[str, Counter[str]], more: Mapping[str, Mapping[str, Any]]) -> None:
    for name, tokens in more.items():
        count = total.setdefault(name, Counter())
        for key, value in tokens.items():
            count[key] += value


def _summary(sample: Mapping[str, Any]) -> dict[str, Any]:
    kept = ("id", "epoch", "target", "scores", "model_usage", "started_at", "completed_at", "total_time", "uuid")
    found = {key: sample[key] for key in kept}
    found["input"] = _short(next((m["content"] for m in sample["input"] if m["role"] == "user"), ""))
    found["metadata"] = {
        key: _short(value) if isinstance(value, str) else value
        for key, value in sample["metadata"].items()
        if isinstance(value, str | int | float | bool)
    }
    found |= {"completed": True, "message_count": len(sample["messages"]), "turn_count": sample["turn_count"]}
    if "error" in sample:
        found["error"] = sample["error"]["message"]
    return found


def _short(text: str) -> str:
    return text if len(text) <= 1000 else text[:999] + "…"


def _model(model_id: str | None) -> str:
    """A model id in Inspect's form, `provider/model`."""
    return (model_id or "none/none").replace(":", "/", 1)


def _id(*parts: str) -> str:
    """An id that is the same in every export."""
    return uuid.uuid5(_NAMESPACE, "\n".join(parts)).hex


def _time(when: datetime) -> str:
    return when.replace(tzinfo=UTC).isoformat()


def _plain(value: Any) -> Any:
    return _time(value) if isinstance(value, datetime) else value


def _put(log: zipfile.ZipFile, name: str, value: Any) -> None:
    log.writestr(name, json.dumps(value, ensure_ascii=False, allow_nan=False))
