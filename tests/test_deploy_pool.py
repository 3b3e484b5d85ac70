"""Gate and engines in deploy/: the files fit their schemas, and start what there is."""

from __future__ import annotations

import json
import re
from itertools import pairwise
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import click
import pytest
import typer.main
import yaml
from sqlalchemy import make_url

from laura.cli.app import app
from laura.cli.serve import ServeOptions, _engine_key
from laura.serve.headless import FLUSH_SECONDS

ROOT = Path(__file__).resolve().parents[1]
SERVING = (ROOT / "docs" / "serving.md").read_text(encoding="utf-8")
COMPOSE, KUBERNETES = ROOT / "deploy" / "compose.yaml", ROOT / "deploy" / "kubernetes.yaml"
SERVE: Any = typer.main.get_command(app).commands["serve"]  # type: ignore[attr-defined]
(USER,) = re.findall(r"^USER (\d+):\d+$", (ROOT / "deploy/Containerfile").read_text(), re.M)


def compose() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(COMPOSE.read_text("utf-8"))
    return found


def objects() -> list[dict[str, Any]]:
    return list(yaml.safe_load_all(KUBERNETES.read_text("utf-8")))


def pods() -> dict[str, dict[str, Any]]:
    """Specs of the pods, by their one container's name."""
    specs = (one["spec"]["template"]["spec"] for one in objects() if "template" in one["spec"])
    return {spec["containers"][0]["name"]: spec for spec in specs}


def commands() -> list[Any]:
    """Every command of both files, by where it stands."""
    services = {name: one for name, one in compose()["services"].items() if name != "postgres"}
    started = {f"compose {name}": one["command"] for name, one in services.items()}
    for name, spec in pods().items():
        started[f"kubernetes {name}"] = spec["containers"][0]["args"]
    return [pytest.param(command, id=where) for where, command in started.items()]


def options_of(command: list[str], tmp_path: Path) -> ServeOptions:
    """What `laura serve` makes of a command; files and folders are those below `tmp_path`."""
    (tmp_path / "srv/laura/adapters").mkdir(parents=True, exist_ok=True)
    words = [str(tmp_path / word[1:]) if word.startswith("/") else word for word in command]
    key = Path(words[words.index("--engine-key-file") + 1])
    key.parent.mkdir(parents=True, exist_ok=True)
    key.write_text("k" * 64)
    with click.Context(SERVE) as context:
        params = dict(SERVE.make_context("serve", words, parent=context).params)
    params.pop("json")
    return ServeOptions(**params)


@pytest.mark.parametrize("command", commands())
def test_commands_are_taken(command: list[str], tmp_path: Path) -> None:
    from laura.models.registry import MODELS

    assert all(isinstance(word, str) for word in command)
    options = options_of(command, tmp_path)
    assert _engine_key(options) == "k" * 64
    assert options.base in MODELS and options.adapters and options.host == "0.0.0.0"
    assert options.headless == (not options.backend)


def test_gates_know_all_engines_and_only_those(tmp_path: Path) -> None:
    services = compose()["services"]
    engines = [name for name in services if name.startswith("engine")]
    asked = [
        urlsplit(one) for one in options_of(services["gate"]["command"], tmp_path).backend or ()
    ]
    assert [one.hostname for one in asked] == engines
    ports = {options_of(services[name]["command"], tmp_path).port for name in engines}
    assert {one.port for one in asked} == ports
    (workers,) = (one for one in objects() if one["kind"] == "StatefulSet")
    args = pods()["gate"]["containers"][0]["args"]
    named = [urlsplit(two) for one, two in pairwise(args) if one == "--backend"]
    name, service = workers["metadata"]["name"], workers["spec"]["serviceName"]
    count = workers["spec"]["replicas"]
    assert [one.hostname for one in named] == [f"{name}-{n}.{service}" for n in range(count)]
    assert {one.port for one in named} == {8001}
    (found,) = (
        one for one in objects() if one["metadata"]["name"] == service and one["kind"] == "Service"
    )
    assert found["spec"]["clusterIP"] == "None"


def test_kubernetes_takes_the_manifest() -> None:
    validate = pytest.importorskip("kubernetes_validate")
    found = objects()
    for one in found:
        validate.validate(one, "1.37", strict=True)
    found[3]["spec"]["replica"] = 2
    with pytest.raises(validate.ValidationError):
        validate.validate(found[3], "1.37", strict=True)
    kinds = [one["kind"] for one in found]
    for kind in ("StatefulSet", "Deployment", "PodDisruptionBudget", "NetworkPolicy"):
        assert kind in kinds


@pytest.mark.parametrize("name", ["engine", "gate"])
def test_pods_may_do_little_and_have_time_to_stop(name: str, tmp_path: Path) -> None:
    spec = pods()[name]
    (container,) = spec["containers"]
    assert spec["securityContext"]["runAsNonRoot"]
    assert str(spec["securityContext"]["runAsUser"]) == USER
    context = container["securityContext"]
    assert context["readOnlyRootFilesystem"] and not context["allowPrivilegeEscalation"]
    assert context["capabilities"] == {"drop": ["ALL"]}
    options = options_of(container["args"], tmp_path)
    assert spec["terminationGracePeriodSeconds"] > options.grace + FLUSH_SECONDS
    (port,) = container["ports"]
    assert port["containerPort"] == options.port
    for probe, path in (
        ("startup", "/healthz"),
        ("liveness", "/healthz"),
        ("readiness", "/readyz"),
    ):
        assert container[f"{probe}Probe"]["httpGet"] == {"path": path, "port": port["name"]}
    mounted = {one["name"]: one["mountPath"] for one in container["volumeMounts"]}
    assert set(mounted) == {one["name"] for one in spec["volumes"]}
    for word in container["args"]:
        assert not word.startswith("/") or any(word.startswith(path) for path in mounted.values())
    claims = {
        one["metadata"]["name"] for one in objects() if one["kind"] == "PersistentVolumeClaim"
    }
    used = {one["persistentVolumeClaim"]["claimName"] for one in spec["volumes"]
            if "persistentVolumeClaim" in one}  # fmt: skip
    assert used <= claims


def test_compose_takes_the_file(tmp_path: Path) -> None:
    compose_spec = pytest.importorskip("compose_spec")
    found = compose()
    compose_spec.PyCompose.from_json(json.dumps(found)).validate()
    found["services"]["gate"]["networks"].append("nowhere")
    with pytest.raises(ValueError, match="nowhere"):
        compose_spec.PyCompose.from_json(json.dumps(found)).validate()
    grace = options_of(found["services"]["gate"]["command"], tmp_path).grace
    for name, service in found["services"].items():
        if name != "postgres":
            assert service["read_only"] and service["cap_drop"] == ["ALL"]
            assert int(service["stop_grace_period"].removesuffix("s")) > grace + FLUSH_SECONDS
            compile(service["healthcheck"]["test"][3], "health check", "exec")
    # Engines are reached by the gate alone, and the database too.
    reach = {name: set(service["networks"]) for name, service in found["services"].items()}
    assert reach["engine-1"] == reach["engine-2"] == {"engines"} and reach["postgres"] == {
        "database"
    }
    assert [name for name, one in found["services"].items() if "ports" in one] == ["gate"]


def test_what_is_read_of_the_environment_is_known() -> None:
    (known,) = (one.envvar for one in SERVE.params if one.name == "database")
    for file in (COMPOSE, KUBERNETES):
        text = file.read_text("utf-8")
        assert set(re.findall(r"\bLAURA_\w+", text)) == {known}
        (url,) = re.findall(r"postgresql\+psycopg\S+", text)
        assert make_url(url).password is None, "libpq reads it: PGPASSFILE, PGPASSWORD"
        assert re.search("PGPASSFILE|PGPASSWORD", text)


def test_the_docs_point_at_both() -> None:
    assert "deploy/compose.yaml" in SERVING and "deploy/kubernetes.yaml" in SERVING
