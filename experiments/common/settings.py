"""Settings of methods: files of what a search chose, one per method, and what that search cost."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jaxunlearn as ju
from experiments.common import methods
from experiments.common.methods import Settings
from experiments.common.report import compact_json

CONFIGS = Path(__file__).parents[1] / "configs"
NOT_SEARCHED = "settings: defaults, not searched"


def file_of(folder: Path, name: str) -> Path:
    """The file of a method; one of a former name of it is found, too."""
    found = [folder / f"{x}.json" for x in (name, *ju.METHODS[name].aliases)]
    return next((path for path in found if path.exists()), found[0])


def load(folder: Path, name: str, scenario: str, study: str) -> tuple[Settings, dict[str, Any] | None]:
    """Settings of a method for a scenario, and the search that chose them; without one the first point of the card's search.

    A study that was never searched gets those of its data set with an MLP, or of digits, and `search["dataset"]` says so.
    Settings of other names than the card's search has now belong to an older form of the method and do not count.

    Args:
        folder: of the files.
        name: of the method.
        scenario: of the requests.
        study: what they are kept under, see `experiments.common.script.OnNetworks.study_key`.
    """
    path = file_of(folder, name)
    found = json.loads(path.read_text())["datasets"] if path.exists() else {}
    default = methods.defaults(name)
    for searched in (study, study.split()[0], "digits"):
        entry = found.get(searched, {}).get(scenario)
        if entry is not None and set(entry["values"]) == set(default):
            return entry["values"], {"dataset": searched, **entry["search"]}
    return default, None


def save(folder: Path, name: str, study: str, entries: Mapping[str, Any]) -> None:
    """Write what a search chose; other studies and scenarios in the file stay."""
    path = folder / f"{name}.json"
    datasets = json.loads(path.read_text())["datasets"] if path.exists() else {}
    datasets[study] = {**datasets.get(study, {}), **entries}
    folder.mkdir(parents=True, exist_ok=True)
    path.write_text(compact_json({"method": name, "datasets": datasets}))


def budget(searches: Mapping[tuple[str, str], dict[str, Any] | None], study: str) -> list[str]:
    """What settings cost, one sentence for each kind of search, and which were not searched.

    Args:
        searches: by scenario and method, see `load`.
        study: what the settings are used on.
    """
    kinds: dict[str, list[dict[str, Any]]] = {}
    for search in filter(None, searches.values()):
        draws = ", ".join(map(str, search["draws"]))
        kind = (
            f"draws {draws} of {search['dataset']}, {search['seeds']} seeds x up to {{requests}} requests each, "
            f"{search['unlearning_steps']} steps"
        )
        kinds.setdefault(kind, []).append(search)
    lines = []
    for kind, found in kinds.items():
        points = [search["points"] for search in found]
        most = max(search["requests"] for search in found)
        lines.append(
            f"settings of {len(found)} pairs of method and scenario: {min(points)} to {max(points)} points each, "
            f"{sum(points)} in all, tried on {kind.format(requests=most)}"
        )
        other = sorted({search["dataset"] for search in found} - {study})
        if other:
            lines.append(f"they were chosen on {', '.join(other)} and not on {study}: --tune chooses new ones")
    unsearched = dict.fromkeys(method for (_, method), search in searches.items() if search is None)
    if unsearched:
        lines.append(f"{NOT_SEARCHED}, for {', '.join(unsearched)}: --tune searches them")
    return lines
