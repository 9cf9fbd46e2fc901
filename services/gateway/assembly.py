"""Puts the gateway together: stores, peers, cache, engine and the servicers on them."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import grpc.aio
from stillhouse.gateway.v1 import (
    access_pb2_grpc,
    datasets_pb2_grpc,
    jobs_pb2_grpc,
    models_pb2_grpc,
    projects_pb2_grpc,
    students_pb2_grpc,
)
from stillhouse.inference.v2 import open_inference_pb2_grpc

from services.common.blobs import BlobStore
from services.common.catalogue import load_catalogue
from services.common.inference.images import image_limits
from services.common.inference.servicer import SERVICE as INFERENCE
from services.common.outbound import Addresses
from services.common.sandbox import sandbox_or_reason
from services.gateway import paging
from services.gateway.access.audit import AuditLog
from services.gateway.access.authenticator import Authenticator
from services.gateway.access.interceptor import Access, AccessInterceptor
from services.gateway.access.quotas import Quotas
from services.gateway.access.servicer import AccessServicer
from services.gateway.access.tables import shared_secret
from services.gateway.blob_servicer import BlobServicer
from services.gateway.cache import EmbeddingCache
from services.gateway.datasets.readers import Reading
from services.gateway.datasets.runner import IngestRunner
from services.gateway.datasets_servicer import DatasetServicer
from services.gateway.gathering import Crowd
from services.gateway.http.edge import Edge
from services.gateway.image_embeddings import ImageEmbeddings
from services.gateway.inference import GatewayInference
from services.gateway.instances import Instances
from services.gateway.jobs.classifier import classifier_job
from services.gateway.jobs.concept import concept_job
from services.gateway.jobs.engine import Engine, Story
from services.gateway.jobs.feed import Feed
from services.gateway.jobs.heartbeat import Heartbeat
from services.gateway.jobs.job import Tools
from services.gateway.jobs.language import language_job
from services.gateway.jobs.observing import Census
from services.gateway.jobs.prune import prune_job
from services.gateway.jobs.teacher_head import teacher_head_job
from services.gateway.jobs.tuneshift import tuneshift_job
from services.gateway.jobs_servicer import DistillationServicer
from services.gateway.models_servicer import ModelServicer
from services.gateway.peers import Peers
from services.gateway.projects.chores import Chores
from services.gateway.projects.deletion import Deletions
from services.gateway.projects.retention import Keeping
from services.gateway.projects.servicer import ProjectServicer
from services.gateway.projects.webhooks import Deliveries
from services.gateway.settings import GatewaySettings
from services.gateway.store import Store
from services.gateway.student_inference import StudentInference
from services.gateway.students_servicer import StudentsServicer

_PACKAGE = "stillhouse.gateway.v1"
STORIES: dict[str, Story] = {
    "concept": concept_job,
    "teacher_head": teacher_head_job,
    "language": language_job,
    "tuneshift": tuneshift_job,
    "prune": prune_job,
    "classifier": classifier_job,
}
"""What runs a job, by the field of its specification."""


class Gateway:
    """The parts of one gateway process. Make it in the event loop that serves."""

    def __init__(self, settings: GatewaySettings) -> None:
        self.settings = settings
        self.store = Store(settings.database_url)
        self.blobs = BlobStore(settings.blob_url)
        paging.sign_with(shared_secret(self.store, "page tokens"))
        self.quotas = Quotas(settings, self.store, self.blobs)
        self.audit = AuditLog(self.store, refusals_per_s=settings.audit_refusals_per_s)
        self.authenticator = Authenticator(settings, self.store)
        self.interceptor = AccessInterceptor(Access(self.authenticator, self.quotas, self.audit))
        self.peers = Peers.connect(settings)
        self.cache = EmbeddingCache(settings.redis_url, timeout_s=settings.cache_timeout_s)
        self.feed = Feed(self.store)
        self.catalogue = load_catalogue([settings.catalogue] if settings.catalogue else [])
        tools = Tools(
            settings,
            self.store,
            self.blobs,
            self.peers,
            self.cache,
            self.feed,
            sandbox=sandbox_or_reason() if settings.run_python_tests else None,
        )
        self.engine = Engine(tools, STORIES)
        self.census = Census(self.store)
        self.instances = Instances(settings)
        self.addresses = Addresses(settings.allowed_addresses)
        self.deliveries = Deliveries(self.store, self.addresses)
        self.chores = Chores(
            self.store,
            Deletions(tools, self.engine, self.instances, settle_s=settings.deletion_settle_s),
            Keeping(tools, self.engine, answer_days=settings.answer_days),
            keep_every_s=settings.retention_s,
        )
        self.heartbeat = Heartbeat(
            self.store, settings.executor_id, self._recover, every_s=settings.heartbeat_s
        )
        self.crowd = Crowd()
        reading = Reading.of(settings, self.blobs, self.catalogue, self.addresses)
        self.runner = IngestRunner(self.store, reading, max_pixels=settings.max_image_pixels)
        self.datasets = DatasetServicer(
            self.store,
            reading,
            self.runner,
            max_archive_bytes=settings.max_archive_bytes,
            crowd=self.crowd,
        )
        self.jobs = DistillationServicer(
            tools, self.engine, admit=self.quotas.admit_job, crowd=self.crowd
        )
        self.edge = Edge(settings)
        self.ready = asyncio.Event()
        """Set while the gateway takes work."""

    def register(self, server: grpc.aio.Server) -> Sequence[str]:
        """Add all servicers and return their names."""
        datasets_pb2_grpc.add_DatasetServiceServicer_to_server(self.datasets, server)
        jobs_pb2_grpc.add_DistillationServiceServicer_to_server(self.jobs, server)
        models_pb2_grpc.add_ModelServiceServicer_to_server(
            ModelServicer(
                self.store,
                self.peers,
                self.blobs,
                ImageEmbeddings(self.peers, self.cache),
                max_batch_items=self.settings.max_batch_items,
            ),
            server,
        )
        students_pb2_grpc.add_StudentsServiceServicer_to_server(
            StudentsServicer(
                self.store,
                self.blobs,
                self.peers,
                self.catalogue,
                self.cache,
                max_batch_items=self.settings.max_batch_items,
                crowd=self.crowd,
            ),
            server,
        )
        students_pb2_grpc.add_BlobServiceServicer_to_server(BlobServicer(self.blobs), server)
        access_pb2_grpc.add_AccessServiceServicer_to_server(self._access(), server)
        open_inference_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(
            self._inference(), server
        )
        projects_pb2_grpc.add_ProjectServiceServicer_to_server(
            ProjectServicer(self.store, self.addresses, self.chores), server
        )
        names = ("Access", "Dataset", "Distillation", "Model", "Project", "Students", "Blob")
        return [*(f"{_PACKAGE}.{name}Service" for name in names), INFERENCE]

    async def start(self) -> None:
        """Take up what an earlier process left, and run jobs."""
        await self.edge.start()
        await self.engine.start()
        self.heartbeat.start()
        self.census.start()
        self.deliveries.start()
        self.chores.start()
        await self.runner.resume()

    async def canary(self) -> None:
        """Read the tables: a gateway without its database is not ready."""
        await asyncio.to_thread(self._touch)

    async def drain(self) -> None:
        """Send watchers away; they take up where they were at another gateway, or after a start."""
        await self.feed.close()
        await self.edge.drain()

    async def stop(self) -> None:
        """Interrupt jobs and ingests, which go on at the next start, and close everything."""
        await self.edge.stop()
        await self.chores.stop()
        await self.deliveries.stop()
        await self.heartbeat.stop()
        await self.census.stop()
        await self.engine.stop()
        await self.runner.stop()
        await self.close_access()
        await self.cache.close()
        await self.peers.close()
        await self.instances.close()
        self.store.close()

    async def close_access(self) -> None:
        """Wait until what was done is in the audit log, and what runs beside calls has ended."""
        await self.audit.close()
        await self.authenticator.close()
        await self.quotas.close()

    def _access(self) -> AccessServicer:
        hours = self.settings.session_hours
        return AccessServicer(self.store, self.authenticator, self.quotas, session_hours=hours)

    def _inference(self) -> GatewayInference:
        limits = image_limits(self.settings)
        students = StudentInference(self.store, self.blobs, self.peers, self.catalogue, limits)
        return GatewayInference(students, self.peers, self.ready.is_set)

    async def _recover(self, dead: list[str]) -> None:
        """Take over what gateways that are dead were doing."""
        await self.engine.recover(dead)
        await self.runner.resume()

    def _touch(self) -> None:
        with self.store.read() as session:
            session.connection().exec_driver_sql("SELECT 1")
