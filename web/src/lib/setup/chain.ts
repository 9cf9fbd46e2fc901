/**
 * What is to follow a teacher's training: the student or classifier that somebody asked for at the same time. Kept in
 * the browser, so that it also starts after a reload; the request id makes sure that two tabs start it once.
 */

import { newId } from "../api/students";
import type { DistillationJob } from "../api/types";
import type { ClassifierSpec, ConceptSpec } from "./calls";

/** A job without its teacher, which is being trained. */
export type Waiting = { concept: Omit<ConceptSpec, "teacher"> } | { classifier: Omit<ClassifierSpec, "teacher"> };

interface Next {
  spec: Waiting;
  requestId: string;
}

const KEY = "stillhouse.waiting";

/** Remembers what follows a teacher job. */
export function remember(job: string, spec: Waiting): void {
  write({ ...read(), [job]: { spec, requestId: newId() } });
}

/** Forgets what follows a job: it was cancelled, or what follows has started. */
export function forget(job: string): void {
  const { [job]: _, ...rest } = read();
  write(rest);
}

/** Returns what waits for a teacher job; undefined where none does. */
export const following = (job: string): Next | undefined => read()[job];

/** Returns the job to start now that a teacher job has ended well; undefined where nothing follows. */
export function due(job: DistillationJob): { spec: { concept: ConceptSpec } | { classifier: ClassifierSpec }; requestId: string } | undefined {
  const next = following(job.name);
  if (!next || job.state !== "JOB_STATE_SUCCEEDED" || !job.model) return undefined;
  const { spec, requestId } = next;
  const teacher = job.model;
  return { spec: "classifier" in spec ? { classifier: { ...spec.classifier, teacher } } : { concept: { ...spec.concept, teacher } }, requestId };
}

function read(): Record<string, Next> {
  try {
    return JSON.parse(localStorage.getItem(KEY) ?? "{}") as Record<string, Next>;
  } catch {
    return {}; // storage that is full, forbidden or not ours
  }
}

function write(all: Record<string, Next>): void {
  try {
    localStorage.setItem(KEY, JSON.stringify(all));
  } catch {
    // The chain then lasts as long as the page asks for it by hand.
  }
}
