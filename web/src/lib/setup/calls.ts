/** The calls with which data become a student or a model: datasets, teachers, concept sets, jobs, samples. */

import { ApiError, bytes, call, query } from "../api/client";
import { newId } from "../api/students";
import type { components } from "../api/schema";
import type { Dataset, DistillationJob } from "../api/types";
import type { Report } from "./report";
import type { Sample } from "./samples";

type Schemas = components["schemas"];
/** A model that can teach, or the backbone of one. */
export type Model = Schemas["Model"];
export type ConceptSet = Schemas["ConceptSet"];
export type ConceptSpec = Schemas["ConceptJobSpecInput"];
export type HeadSpec = Schemas["TeacherHeadJobSpecInput"];
export type LanguageSpec = Schemas["LanguageJobSpecInput"];
export type ShiftSpec = Schemas["TuneShiftJobSpecInput"];
export type PruneSpec = Schemas["PruneJobSpecInput"];
export type ClassifierSpec = Schemas["ClassifierJobSpecInput"];
export type Training = Schemas["LanguageTrainingInput"];
export type Verifier = Schemas["VerifierInput"];
export type Spec =
  | { concept: ConceptSpec }
  | { teacherHead: HeadSpec }
  | { language: LanguageSpec }
  | { tuneshift: ShiftSpec }
  | { prune: PruneSpec }
  | { classifier: ClassifierSpec };
export type DatasetKind = Schemas["DatasetKind"];
export type JobEstimate = Schemas["EstimateDistillationJobResponse"];

const PAGE = 1000;
const ALREADY_EXISTS = 6;

const root = (project: string): string => `/v1/projects/${encodeURIComponent(project)}`;

export async function listDatasets(project: string, signal?: AbortSignal): Promise<Dataset[]> {
  return await pages(`${root(project)}/datasets`, "datasets", signal);
}

export async function listTeachers(project: string, signal?: AbortSignal): Promise<Model[]> {
  return await pages(`${root(project)}/models`, "models", signal);
}

export async function listJobs(project: string, signal?: AbortSignal): Promise<DistillationJob[]> {
  return await pages(`${root(project)}/distillationJobs`, "jobs", signal);
}

export async function listConceptSets(project: string, signal?: AbortSignal): Promise<ConceptSet[]> {
  const answer = await call<{ conceptSets: ConceptSet[] }>("GET", `${root(project)}/conceptSets`, undefined, signal);
  return answer.conceptSets;
}

/** Names of the encoders that see concepts in images. */
export async function listEncoders(project: string, signal?: AbortSignal): Promise<string[]> {
  const answer = await call<{ encoders: { name: string }[] }>("GET", `${root(project)}/encoders`, undefined, signal);
  return answer.encoders.map((one) => one.name);
}

export async function getDataset(name: string): Promise<Dataset> {
  return (await call<{ dataset: Dataset }>("GET", `/v1/${name}`)).dataset;
}

/** What a source holds, how one without splits is split, and how much of it is taken; what is left out means the server's default. */
export interface Split {
  kind?: DatasetKind;
  testShare?: number;
  valShare?: number;
  maxItems?: number;
}

/** Makes a dataset of an uploaded archive or a URI. Where `reuse` is set, one of that name is taken as it is. */
export async function createDataset(
  project: string,
  datasetId: string,
  source: { uri: string } | { archive: { digest: string } },
  reuse = false,
  split: Split = {},
): Promise<Dataset> {
  try {
    const body = { datasetId, ...source, ...split, requestId: newId() };
    return (await call<{ dataset: Dataset }>("POST", `${root(project)}/datasets`, body)).dataset;
  } catch (error) {
    if (!reuse || !(error instanceof ApiError) || error.code !== ALREADY_EXISTS) throw error;
    return await getDataset(`projects/${project}/datasets/${datasetId}`);
  }
}

export async function estimateJob(project: string, spec: Spec, signal?: AbortSignal): Promise<JobEstimate> {
  return await call("POST", `${root(project)}/distillationJobs:estimate`, { job: spec }, signal);
}

/** Starts a job. The same `requestId` with the same job returns the one already there. */
export async function createJob(project: string, spec: Spec, requestId: string): Promise<DistillationJob> {
  const body = { job: spec, requestId };
  return (await call<{ job: DistillationJob }>("POST", `${root(project)}/distillationJobs`, body)).job;
}

export async function getJob(name: string): Promise<DistillationJob> {
  return (await call<{ job: DistillationJob }>("GET", `/v1/${name}`)).job;
}

export async function cancelJob(name: string): Promise<DistillationJob> {
  const body = { requestId: newId() };
  return (await call<{ job: DistillationJob }>("POST", `/v1/${name}:cancel`, body)).job;
}

/** All samples of a tuneshift job, in the order they were made. */
export async function listSamples(job: string, signal?: AbortSignal): Promise<Sample[]> {
  return await pages(`/v1/${job}/samples`, "samples", signal);
}

/** Drops and keeps samples of a job that waits for its review; `finish` lets it go on. */
export async function reviewSamples(job: string, change: { dropIds?: string[]; keepIds?: string[]; finish?: boolean }, requestId: string): Promise<void> {
  await call("POST", `/v1/${job}:reviewSamples`, { ...change, requestId });
}

/** The report that a job has written. */
export async function readReport(project: string, digest: string, signal?: AbortSignal): Promise<Report> {
  const data = await bytes(`${root(project)}/blobs/${digest}`, signal);
  return JSON.parse(new TextDecoder().decode(data)) as Report;
}

export async function createConceptSet(project: string, conceptSetId: string, words: string[]): Promise<ConceptSet> {
  const body = { conceptSetId, words, requestId: newId() };
  return (await call<{ conceptSet: ConceptSet }>("POST", `${root(project)}/conceptSets`, body)).conceptSet;
}

/** Reads a list page by page. */
export async function pages<T>(path: string, field: string, signal?: AbortSignal): Promise<T[]> {
  const found: T[] = [];
  let pageToken = "";
  do {
    const answer = await call<Record<string, unknown>>("GET", path + query({ pageSize: PAGE, pageToken }), undefined, signal);
    found.push(...((answer[field] as T[] | undefined) ?? []));
    pageToken = (answer.nextPageToken as string | undefined) ?? "";
  } while (pageToken);
  return found;
}
