/** Messages of the contract in proto3 JSON, generated from the gateway's OpenAPI document by `make web`. */

import type { components } from "./schema";

type Schemas = components["schemas"];
/** A message whose sub-messages K the gateway always sets, though proto3 cannot say so. */
type Sent<T, K extends keyof T> = Omit<T, K> & { [P in K]-?: NonNullable<T[P]> };
/** A message that carries what edits did. */
type WithEffects<T> = Omit<T, "effects" | "changes"> & { effects: EditEffect[]; changes: MetricChange[] };

export type BlobRef = Schemas["BlobRef"];
export type ClassConcepts = Schemas["ClassConcepts"];
export type ConceptEdit = Schemas["ConceptEdit"];
export type ConceptExample = Sent<Schemas["ConceptExample"], "item" | "box">;
export type ConceptPresence = Schemas["ConceptPresence"];
export type ConceptWeight = Schemas["ConceptWeight"];
export type Contribution = Schemas["Contribution"];
export type Dataset = Schemas["Dataset"];
export type DatasetItem = Schemas["DatasetItem"];
export type Direction = Schemas["Direction"];
export type DistillationJob = Schemas["DistillationJob"];
export type EditEffect = Sent<Schemas["EditEffect"], "edit">;
export type Estimate = Schemas["Estimate"];
export type Evaluation = Schemas["EvaluateStudentVersionResponse"];
export type Explanation = Schemas["Explanation"];
export type ImageExplanation = Schemas["ImageExplanation"];
export type InspectedItem = Schemas["InspectedItem"];
export type Inspection = Sent<Schemas["InspectResponse"], "arrays">;
export type JobStage = Schemas["JobStage"];
export type MetricChange = Sent<Schemas["MetricChange"], "change">;
export type RegionBox = Schemas["RegionBox"];
export type Status = Schemas["Status"];
export type Student = Schemas["Student"];
export type StudentEvent = WithEffects<Schemas["StudentEvent"]>;
export type StudentVersion = WithEffects<Schemas["StudentVersion"]>;
export type TuneResult = Omit<Schemas["TuneStudentResponse"], "version"> & { version: StudentVersion };
