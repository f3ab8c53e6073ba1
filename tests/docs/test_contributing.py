"""What CONTRIBUTING.md and the templates name is there."""

import re
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[2]


def test_files_that_contributing_names_are_there():
    text = (ROOT / "CONTRIBUTING.md").read_text()
    named = {x for x in re.findall(r"`([\w/]+\.\w+)`", text) if "/" in x and "NAME" not in x}
    assert "jaxunlearn/methods/npo.py" in named
    for name in named:
        assert (ROOT / name).exists() or (ROOT / "jaxunlearn" / name).exists(), name
    for name in re.findall(r"\]\((?!https)([^)]+)\)", text):
        assert (ROOT / name).is_file()


def test_templates_of_issues_have_what_forms_need():
    files = sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"))
    forms = {path.stem: yaml.safe_load(path.read_text()) for path in files}
    assert set(forms) == {"bug", "config", "method", "question"}
    for name in set(forms) - {"config"}:
        form = forms[name]
        assert {"name", "description", "body"} <= set(form)
        ids = [field["id"] for field in form["body"]]
        assert len(ids) == len(set(ids))
        for field in form["body"]:
            assert field["type"] in ("input", "textarea", "markdown", "dropdown", "checkboxes")
            assert field["attributes"]["label"]
