"""Write docs/reference.md and docs/reasons.md from the code: `make docs`.

A test compares them with what this writes, so the pages cannot fall behind.
"""

import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

from rarescan.configs.schema import RunConfig, json_schema, plain_config
from rarescan.imaging.reasons import ACTIONS, WORDS

HERE = Path(__file__).parent
VERBS = (
    *("run", "phantom", "ingest", "prepare", "train", "evaluate", "select", "generate"),
    *("retrain", "hold-out", "report", "pull", "review", "dicom", "push", "trace", "erase"),
    *("deploy", "import-weights", "export-bundle", "compare", "monitor"),
    *("classify", "classify-grid", "anomaly", "compress", "echo", "bench"),
    *("config", "key"),
)


def main() -> None:
    """Write both pages beside this file."""
    (HERE / "reference.md").write_text(reference())
    (HERE / "reasons.md").write_text(reasons())


def reference() -> str:
    """Return the page of settings and commands."""
    parts = [
        "# Reference: settings and commands\n",
        "Made by `make docs` from the code; do not edit.\n",
        "## Settings\n",
        "Every key can stand in a YAML file, in `--set key=value`, and, where there is an option, "
        "in the option, which wins.\n",
        *_sections(),
        "## Commands\n",
        *(_help(verb) for verb in VERBS),
    ]
    return "\n".join(parts)


def _sections() -> list[str]:
    schema = json_schema()
    defaults = plain_config(RunConfig())
    parts = [_table("", schema, defaults)]
    for key, value in schema["properties"].items():
        section = _definition(schema, value)
        if section is not None:
            parts.append(_title(key, section))
            parts.append(_table(f"{key}.", section, defaults[key]))
            parts += _inner(schema, key, section, defaults[key])
    candidate = schema["$defs"]["GeneratorSpec"]
    parts.append(_title("train.<candidate>", candidate))
    parts.append(_table("train.<candidate>.", candidate, defaults["train"]["diffusion"]))
    return parts


def _inner(
    schema: dict[str, Any], key: str, section: dict[str, Any], defaults: dict[str, Any]
) -> list[str]:
    parts = []
    for name, value in section["properties"].items():
        inner = _definition(schema, value)
        if inner is not None:
            parts.append(_title(f"{key}.{name}", inner))
            parts.append(_table(f"{key}.{name}.", inner, defaults[name]))
    return parts


def _title(key: str, section: dict[str, Any]) -> str:
    return f"### `{key}`\n\n{_one_line(section.get('description', ''))}\n"


def _definition(schema: dict[str, Any], value: dict[str, Any]) -> dict[str, Any] | None:
    name = value.get("$ref", "").rpartition("/")[2]
    found: dict[str, Any] | None = schema["$defs"].get(name)
    return found


def _table(prefix: str, section: dict[str, Any], defaults: dict[str, Any]) -> str:
    rows = ["| key | default | what it says |", "|---|---|---|"]
    for name, value in section["properties"].items():
        if "$ref" in value or name == "train":
            continue
        default = yaml.safe_dump(defaults[name], default_flow_style=True, width=200)
        text = default.removesuffix("\n...\n").strip()
        rows.append(f"| `{prefix}{name}` | `{text}` | {_one_line(value.get('description', ''))} |")
    return "\n".join(rows) + "\n"


def _one_line(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _help(verb: str) -> str:
    shown = subprocess.run(
        [str(Path(sys.executable).parent / "rarescan"), verb, "--help"],
        capture_output=True,
        text=True,
        check=True,
        env={"COLUMNS": "100", "TERM": "dumb", "PATH": ""},
    ).stdout
    return f"### `rarescan {verb}`\n\n```text\n{shown.strip()}\n```\n"


def reasons() -> str:
    """Return the page of reason codes."""
    rows = [
        f"| `{code}` | {ACTIONS[code]} | {_one_line(words)} |"
        for code, words in sorted(WORDS.items())
    ]
    return "\n".join(
        [
            "# Reason codes\n",
            "Made by `make docs` from the code; do not edit.\n",
            "Every file of an export ends as used, dropped (not wanted, counted) or quarantined "
            "(set apart, with a reason). `fix` is a repair that was recorded; the scan is used.\n",
            "| code | action | a file, series or scan that ... |",
            "|---|---|---|",
            *rows,
            "",
        ]
    )


if __name__ == "__main__":
    main()
