/** Calls about students, one function each. All throw ApiError. */

import { studentName, versionName } from "../names";
import { bytes, call, query } from "./client";
import type * as api from "./types";

const PAGE = 1000;

/** Students of a project, newest first. */
export async function listStudents(project: string, signal?: AbortSignal): Promise<api.Student[]> {
  type Reply = { students: api.Student[] };
  return (await call<Reply>("GET", `/v1/projects/${project}/students${query({ pageSize: PAGE })}`, undefined, signal)).students;
}

export async function getStudent(project: string, student: string, signal?: AbortSignal): Promise<api.Student> {
  return (await call<{ student: api.Student }>("GET", `/v1/${studentName(project, student)}`, undefined, signal)).student;
}

/** Versions of a student, oldest first. */
export async function listVersions(project: string, student: string, signal?: AbortSignal): Promise<api.StudentVersion[]> {
  const found: api.StudentVersion[] = [];
  let pageToken = "";
  do {
    const path = `/v1/${studentName(project, student)}/versions${query({ pageSize: PAGE, pageToken })}`;
    const page = await call<{ versions: api.StudentVersion[]; nextPageToken: string }>("GET", path, undefined, signal);
    found.push(...page.versions);
    pageToken = page.nextPageToken;
  } while (pageToken);
  return found;
}

/** A version with its weights; `version` may be `head`. */
export async function getVersion(project: string, student: string, version: string, signal?: AbortSignal): Promise<api.StudentVersion> {
  const path = `/v1/${versionName(project, student, version)}`;
  return (await call<{ version: api.StudentVersion }>("GET", path, undefined, signal)).version;
}

export async function inspect(project: string, student: string, version: string, signal?: AbortSignal): Promise<api.Inspection> {
  const path = `/v1/${versionName(project, student, version)}:inspect`;
  return (await call<{ data: api.Inspection }>("GET", path, undefined, signal)).data;
}

export async function evaluate(project: string, student: string, version: string, split: string, signal?: AbortSignal): Promise<api.Evaluation> {
  return await call("GET", `/v1/${versionName(project, student, version)}:evaluate${query({ split })}`, undefined, signal);
}

/** The bytes of a blob. */
export async function blob(project: string, digest: string, signal?: AbortSignal): Promise<ArrayBuffer> {
  return await bytes(`/v1/projects/${project}/blobs/${digest}`, signal);
}

export interface TuneRequest {
  edits: api.ConceptEdit[];
  baseVersion: string;
  expectedHead: string;
  requestId: string;
}

export async function tune(project: string, student: string, request: TuneRequest): Promise<api.TuneResult> {
  return await call("POST", `/v1/${studentName(project, student)}:tune`, request);
}

/** Makes the head's parent the head; refused where the head is not the one that was seen. */
export async function undo(project: string, student: string, expectedHead: string): Promise<api.StudentVersion> {
  type Reply = { version: api.StudentVersion };
  return (await call<Reply>("POST", `/v1/${studentName(project, student)}:undo`, { expectedHead, requestId: newId() })).version;
}

/** Makes any version the head; refused where the head is not the one that was seen. */
export async function setHead(project: string, student: string, version: string, expectedHead: string): Promise<api.StudentVersion> {
  type Reply = { version: api.StudentVersion };
  const body = { version, expectedHead, requestId: newId() };
  return (await call<Reply>("POST", `/v1/${studentName(project, student)}:setHead`, body)).version;
}

export async function rename(project: string, student: string, version: string, displayName: string): Promise<api.StudentVersion> {
  type Reply = { version: api.StudentVersion };
  const body = { displayName, requestId: newId() };
  return (await call<Reply>("POST", `/v1/${versionName(project, student, version)}:rename`, body)).version;
}

export async function explain(
  project: string,
  student: string,
  request: { items: { itemId: string; digest: string }[]; version: string; label: string; top: number },
  signal?: AbortSignal,
): Promise<api.ImageExplanation[]> {
  type Reply = { results: api.ImageExplanation[] };
  return (await call<Reply>("POST", `/v1/${studentName(project, student)}:explain`, request, signal)).results;
}

/** Regions of the student's data where concepts are strongest. */
export async function conceptExamples(
  project: string,
  student: string,
  request: { concepts: string[]; label: string; pageSize: number },
  signal?: AbortSignal,
): Promise<api.ConceptExample[]> {
  const path = `/v1/${studentName(project, student)}/conceptExamples${query(request)}`;
  return (await call<{ examples: api.ConceptExample[] }>("GET", path, undefined, signal)).examples;
}

export async function correctLabels(
  dataset: string,
  request: { datasetId: string; corrections: { itemId: string; labels: string[] }[]; requestId: string },
): Promise<api.Dataset> {
  return (await call<{ dataset: api.Dataset }>("POST", `/v1/${dataset}:correctLabels`, request)).dataset;
}

/** A UUID, also where the page is not served over HTTPS. */
export function newId(): string {
  if (typeof crypto.randomUUID === "function") return crypto.randomUUID();
  const random = crypto.getRandomValues(new Uint8Array(16));
  random[6] = (random[6]! & 0x0f) | 0x40;
  random[8] = (random[8]! & 0x3f) | 0x80;
  const hex = Array.from(random, (byte) => byte.toString(16).padStart(2, "0")).join("");
  return [hex.slice(0, 8), hex.slice(8, 12), hex.slice(12, 16), hex.slice(16, 20), hex.slice(20)].join("-");
}
