"""The parts of a running service: put together as the settings say, started, and taken apart."""

from __future__ import annotations

import secrets
import threading
from dataclasses import dataclass
from functools import partial
from random import SystemRandom

from sqlalchemy import Engine

from service.access.authenticator import Authenticator
from service.access.oidc import oidc_of
from service.api.admission import readable_manifest
from service.api.context import Context
from service.api.event_watch import EventWatch
from service.api.readiness import Readiness
from service.api.views import webhook_body
from service.cluster.attempts import AttemptFolders
from service.cluster.launcher import Launcher
from service.cluster.ray_launcher import RayLauncher
from service.cluster.spares import Spares
from service.cluster.warm_launcher import WarmLauncher
from service.control.decisions import Policy
from service.control.early_stop import EarlyStopper
from service.control.failpoints import arm
from service.control.leadership import Leadership
from service.control.reconciler import World
from service.control.reconciler_thread import Reconciler
from service.data_sets.checker import DataSetChecker
from service.jobs.records import TenantLimits
from service.results.export import Exports
from service.results.logs import Logs
from service.results.pictures import Pictures
from service.results.reader import Results
from service.settings import Settings
from service.store.data_sets import DataSets
from service.store.database import migrate, open_engine
from service.store.event_log import EventLog
from service.store.figures import read_figures
from service.store.leases import Leases
from service.store.store import Store
from service.store.studies import Studies
from service.store.tokens import Tokens
from service.store.webhooks import Webhooks
from service.telemetry.collector import Observed, ServiceCollector
from service.telemetry.metrics import Metrics
from service.telemetry.tracing import Tracing
from service.webhooks.addresses import policy_of
from service.webhooks.post import Poster
from service.webhooks.sender import Outbox, WebhookSender


@dataclass(frozen=True)
class Early:
    """What there is before the app starts: its middleware works with it."""

    closing: threading.Event
    metrics: Metrics
    tracing: Tracing


def assemble(settings: Settings, launcher: Launcher | None, early: Early) -> Context:
    """All parts, on a database whose schema is up to date. `launcher` stands in for Ray if given."""
    arm(settings.failpoint)
    engine = open_engine(settings.database)
    migrate(engine)
    store, tokens, webhooks = Store(engine), Tokens(engine), Webhooks(engine)
    launcher = launcher or _launcher(settings)
    folders = AttemptFolders(settings.storage_dir, settings.public_url, settings.mlflow_uri)
    world = _world(engine, launcher, folders, settings, early.tracing)
    leadership = Leadership(Leases(engine), secrets.token_hex(16), settings.lease_ttl_s)
    reconciler = Reconciler(world, leadership, settings.reconcile_interval_s)
    data_sets = DataSets(engine)
    load = partial(readable_manifest, roots=settings.roots, urls=settings.allowed_urls)
    sender = _sender(engine, webhooks, settings)
    watch = EventWatch(EventLog(engine), early.closing)
    observed = Observed(partial(read_figures, engine), reconciler, lambda: sender.counts, lambda: watch.num_followers)
    early.metrics.add(ServiceCollector(observed))
    return Context(
        settings=settings,
        store=store,
        studies=Studies(engine),
        launcher=launcher,
        reconciler=reconciler,
        readiness=Readiness(store, reconciler, launcher, settings.mlflow_uri),
        results=Results(folders),
        logs=Logs(folders),
        pictures=Pictures(load, settings.roots),
        exports=Exports(),
        tokens=tokens,
        authenticator=Authenticator(tokens, oidc_of(settings)),
        watch=watch,
        data_sets=data_sets,
        checker=DataSetChecker(data_sets, load),
        webhooks=webhooks,
        sender=sender,
        metrics=early.metrics,
        tracing=early.tracing,
        closing=early.closing,
    )


def begin(context: Context) -> None:
    """Have those parts work that have threads of their own."""
    context.tracing.start()
    context.reconciler.start()
    context.sender.start()


def take_apart(context: Context) -> None:
    """End them, and close what is open."""
    context.checker.stop()
    context.sender.stop()
    context.reconciler.stop()
    context.launcher.close()
    context.store.close()
    context.tracing.stop()


def _launcher(settings: Settings) -> Launcher:
    ray = RayLauncher(settings.ray_address, settings.python, settings.ray_token)
    if not settings.warm_workers:
        return ray
    warm = WarmLauncher(ray, settings.python, Spares(settings.storage_dir / "spares"))
    warm.keep()
    return warm


def _world(engine: Engine, launcher: Launcher, folders: AttemptFolders, settings: Settings, tracing: Tracing) -> World:
    policy = Policy(
        cancel_grace_s=settings.cancel_grace_s,
        cancel_checkpoint_s=settings.cancel_checkpoint_s,
        lost_after_s=settings.lost_after_s,
        start_timeout_s=settings.start_timeout_s,
        recovery_timeout_s=settings.recovery_timeout_s,
        linger_s=settings.linger_s,
        retry_backoff_s=settings.retry_backoff_s,
        retry_backoff_max_s=settings.retry_backoff_max_s,
    )
    limits = TenantLimits(settings.max_running_jobs_per_tenant, settings.max_workers_per_tenant)
    early_stop = EarlyStopper(Studies(engine))
    return World(Store(engine), launcher, folders, policy, limits, early_stop, tracer=tracing.tracer)


def _sender(engine: Engine, webhooks: Webhooks, settings: Settings) -> WebhookSender:
    poster = Poster(policy_of(settings), settings.webhook_timeout_s)
    outbox = Outbox(webhooks, Leases(engine), poster, partial(webhook_body, mlflow_uri=settings.mlflow_uri))
    return WebhookSender(outbox, secrets.token_hex(16), SystemRandom().random)
