"""Openings out of files: one text or several, each with a label."""

from pathlib import Path

import yaml

from pidgin_cli.core.errors import SpecError

from .errors import safe_load

__all__ = ["read_openings"]

TEXT = (".txt", ".md")
TABLE = (".yaml", ".yml")


def read_openings(path: Path) -> dict[str, str]:
    """The openings in a file or a folder, by label.

    A text file holds one, or several with lines of `---` between them; a YAML file a list or a mapping of labels to
    texts; a folder one in each of its text files, with the file's name for a label. Without labels they are counted.

    Raises:
        SpecError: there is no such file, or nothing in it.
    """
    try:
        if path.is_dir():
            found = _folder(path)
        elif path.suffix in TABLE:
            found = _table(path)
        elif path.suffix in TEXT:
            found = _counted([text for part in _parts(path) if (text := part.strip("\n")).strip()])
        else:
            raise SpecError(f"openings {path}: give a folder, or a file that ends in {', '.join(TEXT + TABLE)}")
    except OSError as error:
        raise SpecError(f"openings {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise SpecError(f"openings {path} are not UTF-8; save them as UTF-8") from None
    if not found:
        raise SpecError(f"openings {path}: there are none")
    return found


def _counted(texts: list[str]) -> dict[str, str]:
    return {str(number): text for number, text in enumerate(texts, 1)}


def _read(path: Path) -> str:
    return path.read_text(encoding="utf-8-sig")


def _parts(path: Path) -> list[str]:
    parts = [""]
    for line in _read(path).splitlines(keepends=True):
        if line.strip() == "---":
            parts.append("")
        else:
            parts[-1] += line
    return parts


def _folder(path: Path) -> dict[str, str]:
    found: dict[str, str] = {}
    for file in sorted(path.iterdir()):
        if file.suffix not in TEXT or file.name.startswith(".") or not file.is_file():
            continue
        if file.stem in found:
            raise SpecError(f"openings {path}: two files are called {file.stem}; their names are the labels")
        if ", " in file.stem or not file.stem.isprintable():
            raise SpecError(f"openings {path}: {file.name!r} cannot be a label; call it something without a comma")
        text = _read(file).strip("\n")
        if not text.strip():
            raise SpecError(f"openings {file}: the text is empty")
        found[file.stem] = text
    return found


def _table(path: Path) -> dict[str, str]:
    try:
        data = safe_load(_read(path), f"openings {path}")
    except yaml.YAMLError as error:
        raise SpecError(f"openings {path} is not valid YAML: {' '.join(str(error).split())}") from None
    if isinstance(data, list) and all(isinstance(text, str) for text in data):
        return _counted(data)
    if isinstance(data, dict) and all(isinstance(text, str) for text in data.values()):
        return {str(label): text for label, text in data.items()}
    raise SpecError(f"openings {path}: it should hold a list of texts, or labels with a text each")
