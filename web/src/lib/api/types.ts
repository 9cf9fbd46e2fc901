/** Messages of the contract in proto3 JSON: int64 as strings, enums by name. */

export interface Estimate { value: number; low: number; high: number }
export interface BlobRef { digest: string; sizeBytes?: string }
export interface Status { code: number; message: string; details?: unknown[] }

export interface Student {
  name: string;
  headVersion: string;
  promotedVersion: string;
  dataset: string;
  teacher: string;
  encoder: string;
  classes: string[];
  createTime?: string;
}

export type Direction = "DIRECTION_UNSPECIFIED" | "DIRECTION_UP" | "DIRECTION_DOWN";
export interface ConceptEdit { label: string; concept: string; direction: Direction; factor: number }
export interface EditEffect { edit: ConceptEdit; weightBefore: number; weightAfter: number; boxLow: number; boxHigh: number }
export interface MetricChange { metric: string; before: number; after: number; change: Estimate; randomChange?: Estimate | null }
export interface ConceptWeight { concept: string; weight: number; influence: number }
export interface ClassConcepts { label: string; intercept: number; concepts: ConceptWeight[] }

export interface StudentVersion {
  name: string;
  parent: string;
  job: string;
  studentRef?: { digest: string; [key: string]: unknown } | null;
  report?: BlobRef | null;
  effects: EditEffect[];
  changes: MetricChange[];
  classConcepts: ClassConcepts[];
  createTime?: string;
  displayName: string;
}

export interface StudentEvent {
  sequence: string;
  kind: string;
  version: string;
  eventTime?: string;
  description: string;
  effects: EditEffect[];
  changes: MetricChange[];
}

export interface TuneResult { version: StudentVersion; flippedItems: number; warnings: string[] }
export interface Evaluation { metrics: Record<string, Estimate>; undefined: Record<string, string>; itemCount: number; nec: number }

export interface InspectedItem { itemId: string; digest: string; split: string }
export interface Inspection {
  arrays: BlobRef;
  items: InspectedItem[];
  classes: string[];
  concepts: string[];
  loss: string;
}

export interface RegionBox { left: number; top: number; right: number; bottom: number }
export interface Contribution { concept: string; contribution: number; weight: number; presence: number; region: number }
export interface Explanation { label: string; logit: number; intercept: number; contributions: Contribution[]; rest: number }
export interface ImageExplanation { itemId: string; explanation?: Explanation | null; error?: Status | null; boxes: RegionBox[] }

export interface Dataset {
  name: string;
  state: string;
  classes: string[];
  multiLabel: boolean;
  splitCounts: Record<string, number>;
  rejected: { path: string; reason: string }[];
  rejectedCount: number;
  itemCount: number;
  correctedFrom: string;
  error?: Status | null;
  createTime?: string;
}
export interface DatasetItem { itemId: string; digest: string; split: string; labels: string[] }

export interface JobStage { stage: string; done: string; total: string; unit: string; elapsedS: number; cacheHits: string; complete: boolean }
export interface DistillationJob {
  name: string;
  state: string;
  concept?: Record<string, unknown> | null;
  teacherHead?: Record<string, unknown> | null;
  stages: JobStage[];
  error?: Status | null;
  studentVersion: string;
  model: string;
  createTime?: string;
  endTime?: string;
  etaS: number;
}

export interface ConceptExample { concept: string; item: { itemId: string; digest: string }; presence: number; box: RegionBox }
export interface ConceptPresence { concept: string; known: boolean; classes: { label: string; meanPresence: number; auc: number }[] }
