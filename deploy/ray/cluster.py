"""Engine replicas on a Ray cluster: the cluster is joined or started, and an application with one deployment is run."""

import json
from pathlib import Path
from typing import Any

import ray
from ray import serve
from ray.serve.config import AutoscalingConfig, AutoscalingPolicy, RequestRouterConfig

from deploy.ray.replica import EngineReplica
from deploy.ray.scaling import Fleet, scale_by_wait
from deploy.ray.session_router import SessionRouter
from server.settings import Settings

DEPLOYMENT = "engine"
# The engine itself refuses what it has no room for, in its own words and by its own rules.
MOST_CALLS = 100_000
HEALTH_PERIOD_S, HEALTH_TIMEOUT_S = 2.0, 5.0
DRAIN_POLL_S = 0.2
# Ray's least; audio is small, and goes through the store only above 100 KB.
OBJECT_STORE_BYTES = 100 * 2**20
# By default Ray has its workers yield to everything else on the machine; engines are what it is there for.
SYSTEM_CONFIG = {"worker_niceness": 0}


def join_cluster(address: str | None, cpus: int | None = None) -> None:
    """Join the cluster at an address, or start one on this machine. Raises `RuntimeError` where that is not possible.

    No proxy of Serve's is started: the edge is ours.
    """
    try:
        if address is None:
            ray.init(
                num_cpus=cpus,
                include_dashboard=False,
                object_store_memory=OBJECT_STORE_BYTES,
                logging_level="warning",
                _system_config=SYSTEM_CONFIG,
            )
        else:
            ray.init(address=address, logging_level="warning")
    except Exception as error:
        # Ray raises bare exceptions here, for a start that takes too long as for an address without a cluster.
        raise RuntimeError(f"The Ray cluster could not be {'started' if address is None else 'joined'}: {error}") from error
    serve.start(proxy_location="Disabled")


def leave_cluster(*, stop: bool) -> None:
    """Leave the cluster; with `stop`, end the engine replicas too, once their requests are answered."""
    if stop:
        serve.shutdown()
    ray.shutdown()


def deploy_engines(application: str, bundle: Path, settings: Settings, fleet: Fleet) -> Any:
    """Run an application of engine replicas, or update the one of this name; return its handle when it is healthy.

    An update starts new replicas and drains old ones, a few at a time. Raises `RuntimeError` if no replica starts.
    """
    options: dict[str, Any] = {"num_replicas": fleet.least}
    if fleet.most > fleet.least:
        options = {
            "autoscaling_config": AutoscalingConfig(
                min_replicas=fleet.least, max_replicas=fleet.most, policy=AutoscalingPolicy(policy_function=scale_by_wait)
            )
        }
    deployment = serve.deployment(
        EngineReplica,
        name=DEPLOYMENT,
        max_ongoing_requests=MOST_CALLS,
        ray_actor_options={"num_cpus": fleet.cpus, "num_gpus": fleet.gpus},
        graceful_shutdown_timeout_s=settings.drain_timeout_s,
        graceful_shutdown_wait_loop_s=DRAIN_POLL_S,
        health_check_period_s=HEALTH_PERIOD_S,
        health_check_timeout_s=HEALTH_TIMEOUT_S,
        request_router_config=RequestRouterConfig(request_router_class=SessionRouter),
        logging_config={"enable_access_log": False, "log_level": "WARNING"},
        **options,
    )
    serve.run(deployment.bind(str(bundle), settings.model_dump_json()), name=application, route_prefix=None)
    return find_engines(application)


def find_engines(application: str) -> Any:
    """Return the handle of an application that runs. Raises `RuntimeError` if there is none."""
    if application not in serve.status().applications:
        raise RuntimeError(f"The cluster has no application {application!r}.")
    return serve.get_deployment_handle(DEPLOYMENT, application)


def describe_application(application: str) -> str:
    """Return the application's status and its replicas by state, as JSON."""
    status = serve.status().applications.get(application)
    if status is None:
        return json.dumps({"application": application, "status": "NOT_FOUND"})
    deployment = status.deployments[DEPLOYMENT]
    return json.dumps({"application": application, "status": status.status, "replicas": deployment.replica_states})
