/** Calls about a student's history. All throw ApiError. */

import { call, query } from "../api/client";
import type { components } from "../api/schema";
import { newId } from "../api/students";
import type { StudentEvent } from "../api/types";
import { studentName, versionName } from "../names";
import { pages } from "../setup/calls";

export type Comparison = components["schemas"]["CompareStudentVersionsResponse"];

/** What was done to a student, oldest first. */
export async function listEvents(project: string, student: string, signal?: AbortSignal): Promise<StudentEvent[]> {
  return await pages(`/v1/${studentName(project, student)}/events`, "events", signal);
}

/** Compares two versions, by number, on a split. */
export async function compare(
  project: string,
  student: string,
  first: string,
  second: string,
  split: string,
  signal?: AbortSignal,
): Promise<Comparison> {
  const values = { firstVersion: first, secondVersion: second, split };
  return await call("GET", `/v1/${studentName(project, student)}:compare${query(values)}`, undefined, signal);
}

/** Makes a version the one that predictions come from. */
export async function promote(project: string, student: string, version: string): Promise<void> {
  await call("POST", `/v1/${versionName(project, student, version)}:promote`, { requestId: newId() });
}
