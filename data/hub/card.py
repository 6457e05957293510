"""A policy's model card: README.md beside its weights, in the hub's layout. Made from the checkpoint's own files, nothing else.

`kinoise train` writes one with every checkpoint, `kinoise import` one with its own; `kinoise push` writes it again with what is
known by then: the repository, its licence, its data sets, its evaluations. A card that somebody edited is left alone.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from ...config import UsageError
from ...files import read_json, sha256, write_text
from ...spec import KinoiseError

CARD = "README.md"
STATE = Path("training_state/state.json")
WEIGHTS = ("ema.safetensors", "model.safetensors")
TAGS = ("kinoise", "robotics", "imitation-learning", "diffusion-policy")
IMPORTED = "- Imported from "
SHOWN = 12
"""Instructions, or names of a feature's dimensions, that are listed; more are counted."""
MARK = re.compile(r"<!-- kinoise card ([0-9a-f]{16}) -->\n\Z")


@dataclass(frozen=True)
class Known:
    """What a checkpoint does not say of itself.

    Args:
        repo: where it goes, "user/name".
        license: the hub's name of one, such as "mit"; None while nobody has chosen.
        datasets: repositories of what it was trained on.
        results: what result.json of its evaluations hold.

    Raises:
        UsageError: names that the hub can't have.
    """

    repo: str | None = None
    license: str | None = None
    datasets: tuple[str, ...] = ()
    results: tuple[Mapping[str, Any], ...] = field(default=(), repr=False)

    def __post_init__(self) -> None:
        for name in self.datasets:
            if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name):
                raise UsageError(f"datasets: '{name}' is not a data set of the hub; expected user/name")
        if self.license is not None and not re.fullmatch(r"[a-z0-9][a-z0-9.-]*", self.license):
            raise UsageError(
                f"license={self.license}: expected the hub's name of one, such as mit, apache-2.0, cc-by-4.0 or other"
            )


def write_card(checkpoint: Path, known: Known = Known(), imported: str | None = None) -> bool:
    """Writes README.md, unless somebody edited the one that is there, or the checkpoint is not kinoise's; whether it did.

    What an earlier card of kinoise's says of licence and data sets stays, and of the training or the import where that is no
    longer known, as in a checkpoint from the hub.

    Args:
        imported: what it was made of, where kinoise did not train it.
    """
    path, config = checkpoint / CARD, read_json(checkpoint / "config.json")
    if not isinstance(config, dict) or not {"policy", "spec", "texts"} <= config.keys():
        return False
    before = path.read_text() if path.is_file() else None
    if before is not None and edited(before):
        return False
    state = read_json(checkpoint / STATE) if (checkpoint / STATE).is_file() else None
    try:
        if before is not None:
            front = yaml.safe_load(before.split("---")[1])
            known = replace(
                known,
                license=known.license or front.get("license"),
                datasets=known.datasets or tuple(front.get("datasets", ())),
            )
        origin = _learnt(before) if imported is None else f"{IMPORTED}{imported}."
        text = make_card(config, state, known, origin if state is None else None)
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        raise KinoiseError(f"{checkpoint}: config.json or {STATE} is damaged ({error!r}): no card can be made of it") from error
    if text != before:
        write_text(path, text)
    return True


def edited(text: str) -> bool:
    """Whether a card is not as kinoise wrote it."""
    mark = MARK.search(text)
    return mark is None or mark[1] != _digest(text[: mark.start()])


def evaluation(directory: Path, checkpoint: Path) -> dict[str, Any]:
    """What an evaluation of these weights found. Raises KinoiseError when there is none, or it is of others."""
    result = read_json(directory / "result.json" if directory.is_dir() else directory)
    try:
        told = result["policy"]["sha256"]
        _ = [result["success"][key] for key in ("rate", "low", "high", "n", "errors")], result["protocol"]["env"]
    except (KeyError, TypeError) as error:
        raise KinoiseError(f"{directory} is not what kinoise eval writes ({error!r} is missing)") from error
    if told not in [sha256(checkpoint / name) for name in WEIGHTS if (checkpoint / name).is_file()]:
        raise KinoiseError(f"{directory} is an evaluation of other weights than those in {checkpoint}: evaluate these")
    return result


def make_card(
    config: Mapping[str, Any],
    state: Mapping[str, Any] | None,
    known: Known = Known(),
    learnt: str | None = None,
) -> str:
    """The card's text: YAML front matter as the hub reads it, then Markdown.

    Args:
        config: the checkpoint's config.json.
        state: its training_state/state.json; None where it has none.
        learnt: a line about the training or the import, where `state` is None.
    """
    front = yaml.safe_dump(_front(config, known), sort_keys=False, allow_unicode=True, width=1000)
    text = f"---\n{front}---\n\n" + "\n".join(_body(config, state, known, learnt)) + "\n\n"
    return f"{text}<!-- kinoise card {_digest(text)} -->\n"


def _front(config: Mapping[str, Any], known: Known) -> dict[str, Any]:
    value: dict[str, Any] = {"library_name": "kinoise", "pipeline_tag": "robotics", "tags": [*TAGS, config["policy"]["name"]]}
    if known.license is not None:
        value["license"] = known.license
    if known.datasets:
        value["datasets"] = list(known.datasets)
    if known.results:
        value["metrics"] = ["success_rate"]
        name = (known.repo or config["policy"]["name"]).rpartition("/")[2]
        value["model-index"] = [{"name": name, "results": [_result(item) for item in known.results]}]
    return value


def _result(result: Mapping[str, Any]) -> dict[str, Any]:
    """An evaluation in the hub's shape."""
    env, success = _plain(result["protocol"]["env"]), result["success"]
    span = f"95 % interval {success['low']:.3f} to {success['high']:.3f}, {success['n']} episodes"
    metric = {"type": "success_rate", "value": round(success["rate"], 4), "name": f"success rate ({span})"}
    return {
        "task": {"type": "robotics", "name": "robotics"},
        "dataset": {"type": env, "name": env},
        "metrics": [metric],
    }


def _body(config: Mapping[str, Any], state: Mapping[str, Any] | None, known: Known, learnt: str | None) -> Iterator[str]:
    policy, spec = config["policy"], config["spec"]
    action = spec["action"]
    yield f"# {known.repo or policy['name']}"
    yield ""
    yield (
        f"A `{policy['name']}` policy of kinoise {config.get('kinoise', '')}: from {_history(policy)} it plans "
        f"{policy['chunk']} actions, of which {policy['execute']} are carried out before it plans again; {spec['rate']:g} Hz."
    )
    yield ""
    yield "## What it sees and does"
    yield ""
    yield "| | shape | what |\n|---|---|---|"
    for key, item in spec["observations"].items():
        yield f"| `{key}` | {_shape(item)} | {_what(item)} |"
    if spec["language"]:
        yield "| instruction | text | |"
    yield f"| **action** | {_shape(action)} | {spec['control']}; {_what(action)}{_bounds(action)} |"
    yield ""
    yield "Everything is in physical units: what normalises it is in `config.json`."
    yield ""
    yield from _training(config, _updates(state) if state is not None else learnt, known)
    yield from _results(known)
    yield from _use(state, known)
    yield "## Licence"
    yield ""
    yield known.license or "None has been chosen: without one nobody may use it. `kinoise push ... license=` sets it."


def _history(policy: Mapping[str, Any]) -> str:
    steps = policy["history"]
    return "one observation" if steps == 1 else f"the last {steps} observations"


def _shape(feature: Mapping[str, Any]) -> str:
    return " x ".join(str(item) for item in feature["shape"])


def _what(feature: Mapping[str, Any]) -> str:
    if feature["kind"] == "image":
        return "RGB, 0 to 255, upright"
    names, units = feature["names"], feature["unit"]
    units = units if len(units) == len(names) else [units[0]] * len(names) if len(units) == 1 else [""] * len(names)
    parts = [f"{name} ({unit})" if unit and unit != "1" else name for name, unit in zip(names, units, strict=True)]
    return _some(parts)


def _bounds(action: Mapping[str, Any]) -> str:
    if action["low"] is None or action["high"] is None:
        return ""
    low, high = (sorted({f"{item:g}" for item in action[key]}, key=float) for key in ("low", "high"))
    return f"; from {' / '.join(low)} to {' / '.join(high)}"


def _updates(state: Mapping[str, Any]) -> str:
    settings = state["settings"]
    train = settings["train"]
    return (
        f"- `{Path(settings['data']).name}`: {state['step']:,} updates of {train['batch_size']} windows, learning rate "
        f"{train['lr']:g}, seed {settings['seed']}."
    )


def _learnt(card: str | None) -> str | None:
    """The line about the training, or the import, in a card of ours."""
    known = re.compile(rf"- `[^`]+`: [\d,]+ updates of |{re.escape(IMPORTED)}")
    return next((line for line in (card or "").splitlines() if known.match(line)), None)


def _training(config: Mapping[str, Any], learnt: str | None, known: Known) -> Iterator[str]:
    yield "## What it learnt from"
    yield ""
    if known.datasets:
        yield f"- Data sets: {', '.join(known.datasets)}."
    if learnt is not None:
        yield learnt
    if config["texts"]:
        yield f"- Instructions: {_some([f'“{text}”' for text in config['texts']])}."
    if config.get("frames"):
        yield f"- Data sets that were normalised each by its own numbers, for `frame=`: {', '.join(config['frames'])}."
    yield ""
    if (learnt or "").startswith(IMPORTED):
        yield "`ema.safetensors` and `model.safetensors` hold the same weights."
    else:
        yield "`ema.safetensors` are the averaged weights, which are evaluated; `model.safetensors` the last ones."
    yield ""


def _results(known: Known) -> Iterator[str]:
    if not known.results:
        return
    yield "## How well it does"
    yield ""
    yield "| environment | success | 95 % interval | episodes | errors | decoding | protocol |\n|---|---|---|---|---|---|---|"
    for item in known.results:
        success, decode, protocol = item["success"], item["decode"], item["protocol"]
        span = f"{success['low']:.3f} to {success['high']:.3f}"
        yield (
            f"| {_plain(protocol['env'])} | {success['rate']:.3f} | {span} | {success['n']} | {success['errors']} | "
            f"{decode['sampler']}, {decode['steps']} steps | {protocol['name']}, `{protocol['hash']}` |"
        )
    yield ""


def _use(state: Mapping[str, Any] | None, known: Known) -> Iterator[str]:
    played = [item["protocol"]["env"] for item in known.results]
    env = _plain(played[0] if played else (state or {}).get("settings", {}).get("env") or "TASKS")
    yield "## To evaluate and deploy it"
    yield ""
    yield "```bash"
    if known.repo is not None:
        yield f"kinoise pull {known.repo} POLICY"
    yield f"kinoise eval POLICY env={env} out=RESULT  # its success, with an interval"
    yield "kinoise latency POLICY  # how fast it plans on this machine"
    yield "kinoise control POLICY env=TASK  # the real-time control loop, with limits"
    yield "kinoise serve POLICY port=8000  # plans over a websocket, for robots elsewhere"
    yield "```"
    yield ""
    yield '`POLICY` is the folder that holds this file. In Python: `kinoise.policies.checkpoint.load_policy("POLICY")`.'
    yield "It knows what its demonstrations show and nothing else: on a robot, keep to `kinoise control`'s limits and guards."
    yield ""


def _plain(env: str) -> str:
    """An environment's name; of a mapping file not where it lies on this machine."""
    return Path(env).name if env.endswith((".yaml", ".yml")) else env


def _some(items: Sequence[str]) -> str:
    shown = ", ".join(items[:SHOWN])
    return shown if len(items) <= SHOWN else f"{shown} and {len(items) - SHOWN} more"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
