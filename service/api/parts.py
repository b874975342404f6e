"""The parts of a running service, opened when the app starts and closed when it ends."""

from __future__ import annotations

import secrets
import threading
from dataclasses import dataclass
from functools import partial
from random import SystemRandom

from service.access.authenticator import Authenticator
from service.access.oidc import oidc_of
from service.api.admission import readable_manifest
from service.api.context import Context
from service.api.event_watch import EventWatch
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
from service.results.logs import Logs
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
class Made:
    """What there is before the app starts: its middleware works with it."""

    closing: threading.Event
    metrics: Metrics
    tracing: Tracing


def open_parts(settings: Settings, launcher: Launcher | None, made: Made) -> Context:
    """Everything that routes work with; `launcher` stands in for Ray if given."""
    arm(settings.failpoint)
    engine = open_engine(settings.database)
    migrate(engine)
    store = Store(engine)
    launcher = launcher or _launcher(settings)
    folders = AttemptFolders(settings.storage_dir, settings.public_url, settings.mlflow_uri)
    limits = TenantLimits(settings.max_running_jobs_per_tenant, settings.max_workers_per_tenant)
    studies = Studies(engine)
    early_stop, tracer = EarlyStopper(studies), made.tracing.tracer
    world = World(store, launcher, folders, _policy(settings), limits, early_stop, tracer=tracer)
    leadership = Leadership(Leases(engine), secrets.token_hex(16), settings.lease_ttl_s)
    reconciler = Reconciler(world, leadership, settings.reconcile_interval_s)
    known, webhooks = Tokens(engine), Webhooks(engine)
    data_sets = DataSets(engine)
    load = partial(readable_manifest, roots=settings.roots, urls=settings.allowed_urls)
    sender = _sender(webhooks, Leases(engine), settings)
    watch = EventWatch(EventLog(engine), made.closing)
    observed = Observed(partial(read_figures, engine), reconciler, lambda: sender.counts, lambda: watch.num_followers)
    made.metrics.add(ServiceCollector(observed))
    return Context(
        settings=settings,
        store=store,
        studies=studies,
        launcher=launcher,
        reconciler=reconciler,
        results=Results(folders),
        logs=Logs(folders),
        tokens=known,
        authenticator=Authenticator(known, oidc_of(settings)),
        watch=watch,
        data_sets=data_sets,
        checker=DataSetChecker(data_sets, load),
        webhooks=webhooks,
        sender=sender,
        metrics=made.metrics,
        tracing=made.tracing,
        closing=made.closing,
    )


def _sender(webhooks: Webhooks, leases: Leases, settings: Settings) -> WebhookSender:
    poster = Poster(policy_of(settings), settings.webhook_timeout_s)
    outbox = Outbox(webhooks, leases, poster, partial(webhook_body, mlflow_uri=settings.mlflow_uri))
    return WebhookSender(outbox, secrets.token_hex(16), SystemRandom().random)


def _policy(settings: Settings) -> Policy:
    return Policy(
        cancel_grace_s=settings.cancel_grace_s,
        cancel_checkpoint_s=settings.cancel_checkpoint_s,
        lost_after_s=settings.lost_after_s,
        start_timeout_s=settings.start_timeout_s,
        linger_s=settings.linger_s,
        retry_backoff_s=settings.retry_backoff_s,
        retry_backoff_max_s=settings.retry_backoff_max_s,
    )


def _launcher(settings: Settings) -> Launcher:
    ray = RayLauncher(settings.ray_address, settings.python, settings.ray_token)
    if not settings.warm_workers:
        return ray
    warm = WarmLauncher(ray, settings.python, Spares(settings.storage_dir / "spares"))
    warm.keep()
    return warm


def close_parts(context: Context) -> None:
    """Stop what runs, then close what it used."""
    context.checker.stop()
    context.sender.stop()
    context.reconciler.stop()
    context.launcher.close()
    context.store.close()
    context.tracing.stop()
