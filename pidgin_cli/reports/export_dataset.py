"""A dataset folder as Hugging Face's `datasets` loads it: Parquet files, and a card that says what they are."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pidgin_cli.database.tables import Extract

from .text import Markdown, fenced, inline, table, visible

__all__ = ["write_dataset"]

_SIZES = ((10**3, "n<1K"), (10**4, "1K<n<10K"), (10**5, "10K<n<100K"), (10**6, "100K<n<1M"))

_TRANSCRIPTS = """
    SELECT c.*, agents.agents, coalesce(said.transcript, []) AS transcript
    FROM (SELECT {columns} FROM extract.main.conversations) c
    LEFT JOIN (
        SELECT conversation_id, list({{
            'agent_id': agent_id, 'name': name, 'model': model, 'system_prompt': system_prompt
        }} ORDER BY seat) AS agents
        FROM extract.main.agents GROUP BY conversation_id
    ) agents USING (conversation_id)
    LEFT JOIN (
        SELECT conversation_id, list({{
            'message_index': message_index, 'turn_number': turn_number, 'agent_id': agent_id, 'name': agent_name,
            'content': content, 'shared': shared
        }} ORDER BY message_index) AS transcript
        FROM (
            SELECT conversation_id, message_index, turn_number, agent_id, agent_name, content, false AS shared
            FROM extract.main.messages
            UNION ALL
            SELECT conversation_id, message_index, turn_number, agent_id, agent_name, content, true AS shared
            FROM extract.main.shared_messages
        ) GROUP BY conversation_id
    ) said USING (conversation_id)
    ORDER BY c.experiment_id, length(c.conversation_id), c.conversation_id
"""
_OF_TRANSCRIPT = (
    *("conversation_id", "experiment_id", "arm", "repetition", "seed", "seating", "first_speaker", "opening"),
    *("status", "end_reason", "turns", "messages", "invalid", "invalid_reasons", "notable"),
)


def write_dataset(extract: Extract, folder: Path) -> tuple[dict[str, int], dict[str, Any]]:
    """Write the data and the card; gives the rows of each file, and what `transcripts` is, for the schema.

    Tables without rows are left out, as `datasets` cannot load them.
    """
    (folder / "data").mkdir()
    columns = [
        column
        for column in extract.tables["conversations"].columns
        if column.name in _OF_TRANSCRIPT or column.name.startswith("var_")
    ]
    rows = {}
    if extract.count("conversations"):
        listed = ", ".join('"' + column.name.replace('"', '""') + '"' for column in columns)
        name = "data/transcripts.parquet"
        rows[name] = extract.write_query(_TRANSCRIPTS.format(columns=listed), folder / name, "parquet")
    for name in extract.tables:
        if extract.count(name):
            rows[f"data/{name}.parquet"] = extract.write(name, folder / "data" / f"{name}.parquet", "parquet")
    schema = {
        "meaning": "One row per conversation with everything that was said in it, also what a branch shares.",
        "columns": [
            *(column._asdict() for column in columns),
            {"name": "agents", "type": "STRUCT[]", "meaning": "Who takes part, in the order of the seats."},
            {"name": "transcript", "type": "STRUCT[]", "meaning": "The messages; `shared`: said in another branch."},
        ],
    }
    card = "\n".join(_card(extract, rows, schema))
    (folder / "README.md").write_text(card + "\n", encoding="utf-8")
    return rows, schema


def _card(extract: Extract, rows: Mapping[str, int], transcripts: Mapping[str, Any]) -> Iterator[str]:
    experiments = extract.rows("FROM extract.main.experiments")
    title = ", ".join(visible(row["name"] or row["experiment_id"]) for row in experiments)
    talks = rows.get("data/transcripts.parquet", 0)
    yield "---"
    yield f"pretty_name: {_scalar(title)}"
    yield f"size_categories: [{_scalar(next((name for size, name in _SIZES if talks < size), 'n>1M'))}]"
    yield "task_categories: [text-generation]"
    yield "tags: [pidgin, conversations, multi-agent, synthetic]"
    if rows:
        yield "configs:"
    for file in rows:
        name = Path(file).stem
        yield f"- config_name: {name}"
        yield f"  data_files: {file}"
        if name == "transcripts":
            yield "  default: true"
    yield "---"
    yield ""
    yield f"# {inline(title)}"
    yield ""
    yield "Conversations between language models, recorded with Pidgin. No person speaks in them, except where"
    yield "`interventions` says so. What the models said is as it was said: nothing was filtered for quality or harm."
    yield ""
    yield from _counts(extract)
    yield "## Loading"
    yield ""
    yield fenced(
        "from datasets import load_dataset\n\n"
        'transcripts = load_dataset("path/to/this/folder", "transcripts", split="train")\n'
        'messages = load_dataset("path/to/this/folder", "messages", split="train")',
        "python",
    )
    yield ""
    yield "All rows are in the split `train`; it is the only one. `var_…` columns are what the arms differ in. In"
    yield "studies the unit is the conversation: its messages are not independent. Leave out what is `invalid`."
    yield ""
    yield "## Tables"
    yield ""
    meanings = {name: each.meaning for name, each in extract.tables.items()} | {"transcripts": transcripts["meaning"]}
    yield table(
        ("name", "what it has", "rows"), ((Path(file).stem, meanings[Path(file).stem], n) for file, n in rows.items())
    )
    yield ""
    yield "`schema.json` says what each column means; `manifest.json` has the SHA-256 of each file, the versions, and"
    yield "what has been redacted."
    for row in experiments:
        yield ""
        yield f"## How {inline(row['name'] or row['experiment_id'])} was made"
        yield ""
        yield fenced((row["spec"] or "").rstrip(), "yaml")


def _counts(extract: Extract) -> Iterator[str]:
    rows = extract.rows(
        "SELECT c.experiment_id, c.arm, count(*) AS n, count(*) FILTER (c.status = 'completed') AS completed, "
        "count(*) FILTER (c.invalid) AS invalid, count(*) FILTER (c.notable) AS notable, "
        "coalesce(sum(c.messages), 0)::BIGINT AS messages FROM extract.main.conversations c GROUP BY ALL "
        "ORDER BY c.experiment_id, c.arm"
    )
    models = extract.rows("SELECT DISTINCT model FROM extract.main.agents WHERE model IS NOT NULL ORDER BY model")
    if models:
        yield f"Models: {', '.join(inline(row['model']) for row in models)}."
        yield ""
    head = ("experiment", "arm", "conversations", "completed", "invalid", "notable", "messages")
    cells = [
        (row["experiment_id"], row["arm"] or Markdown("–"), *(row[name] for name in ("n", *head[3:]))) for row in rows
    ]
    yield table(head, cells, left=2)
    yield ""


def _scalar(text: str) -> str:
    """A text as YAML: in JSON's form, which is part of it."""
    return json.dumps(text)
