/** Pure rules of the job form: which teacher fits, what a form means as a job, times as people say them. */

import type { Dataset, DistillationJob } from "../api/types";
import { lastPart } from "../names";
import type { ConceptSpec, HeadSpec, Model, Spec } from "./calls";

/** Value of the teacher choice that means: train one on this data. */
export const TRAIN = "train";
export const DEFAULT_BACKBONE = "efficientnet-lite0";
export const DEFAULT_WEIGHTS = 30;

/** What somebody has filled in. */
export interface Form {
  teacher: string;
  backbone: string;
  conceptSet: string;
  words: string;
  studentId: string;
  weights: number;
  encoder: string;
  seed: number;
  wholeImageOnly: boolean;
}

/** Returns the models that jobs trained on this dataset, or on one with the same classes; newest first. */
export function trainedFor(dataset: Dataset, datasets: readonly Dataset[], jobs: readonly DistillationJob[]): string[] {
  const classes = JSON.stringify(dataset.classes);
  const same = new Set(datasets.filter((one) => JSON.stringify(one.classes) === classes).map((one) => one.name));
  same.add(dataset.name);
  const made = jobs.filter((job) => job.model && same.has(job.teacherHead?.dataset ?? ""));
  return [...new Set(made.map((job) => job.model))];
}

/** Returns the models that no job made: networks whose features a teacher can be trained on. */
export function backbones(models: readonly Model[], jobs: readonly DistillationJob[]): Model[] {
  const made = new Set(jobs.map((job) => job.model).filter(Boolean));
  return models.filter((model) => !made.has(model.name));
}

/** Returns the choice that a form begins with: a teacher that was trained for the data, else the usual network to train one on. */
export function firstTeacher(project: string, trained: readonly string[], models: readonly Model[]): Pick<Form, "teacher" | "backbone"> {
  const usual = `projects/${project}/models/${DEFAULT_BACKBONE}`;
  const backbone = models.some((one) => one.name === usual) ? usual : (models[0]?.name ?? usual);
  return { teacher: trained[0] ?? TRAIN, backbone };
}

/** Returns the words of a text, one per line or comma; each once, in their order. */
export function wordsOf(text: string): string[] {
  const words = text.split(/[\n,;]+/).map((word) => word.trim().replace(/\s+/g, " "));
  return [...new Set(words.filter(Boolean))];
}

/** Returns the concept job of a form. */
export function conceptSpec(form: Form, dataset: string, teacher: string): ConceptSpec {
  const words = wordsOf(form.words);
  return {
    dataset,
    teacher,
    ...(form.conceptSet ? { conceptSet: form.conceptSet } : {}),
    ...(words.length ? { concepts: words } : {}),
    ...(form.studentId ? { studentId: form.studentId } : {}),
    ...(form.encoder ? { encoder: form.encoder } : {}),
    ...(form.seed ? { seed: String(form.seed) } : {}),
    ...(form.wholeImageOnly ? { wholeImageOnly: true } : {}),
    nec: form.weights,
  };
}

/** Returns the teacher job of a form. */
export function headSpec(form: Pick<Form, "backbone">, dataset: string): HeadSpec {
  return { dataset, backbone: form.backbone };
}

/** Returns a message of the server with names instead of resource names: `fruit` for `projects/p/datasets/fruit`. */
export function forPeople(message: string): string {
  const text = message.replace(/projects\/[a-z0-9-]+\/\w+\/([a-z0-9-]+)/g, "$1");
  // A sentence begins with a capital, a name as it is written.
  return text.replace(/^(the|a|an|it|its|no|this|there|fewer)\b/, (word) => word.charAt(0).toUpperCase() + word.slice(1));
}

/** Returns seconds as people say them: `40 s`, `3 min`, `1 h 20 min`. */
export function duration(seconds: number): string {
  if (seconds < 1) return "under a second";
  if (seconds < 90) return `${Math.round(seconds)} s`;
  const minutes = Math.round(seconds / 60);
  if (minutes < 60) return `${minutes} min`;
  const rest = minutes % 60;
  return `${Math.floor(minutes / 60)} h${rest ? ` ${rest} min` : ""}`;
}

/** Returns what is wrong with a name that the gateway would refuse; empty where nothing is. */
export function idProblem(id: string): string {
  if (/^[a-z]([a-z0-9-]{0,61}[a-z0-9])?$/.test(id)) return "";
  return "Use 1 to 63 of a–z, 0–9 and “-”, with a letter first and no “-” at the end.";
}

/** Returns whether a name may be given, or left empty for the gateway to choose. */
export const nameFits = (id: string): boolean => !id || !idProblem(id);

export type Kind = "concept" | "teacherHead" | "language" | "tuneshift" | "prune" | "classifier";

/** Returns what kind of job this is. */
export function kindOf(job: DistillationJob): Kind {
  if (job.language) return "language";
  if (job.tuneshift) return "tuneshift";
  if (job.prune) return "prune";
  if (job.classifier) return "classifier";
  return job.teacherHead ? "teacherHead" : "concept";
}

/** Returns what a job makes, for people: `Student for fruit`. */
export function jobTitle(job: DistillationJob): string {
  if (job.tuneshift) return `What ${lastPart(job.tuneshift.tuned)} knows, into ${lastPart(job.tuneshift.target)}`;
  if (job.prune) return `Pruned ${lastPart(job.prune.model)} for ${lastPart(job.prune.dataset)}`;
  if (job.classifier) return `Classifier for ${lastPart(job.classifier.dataset)}`;
  const about = lastPart((job.language ?? job.teacherHead ?? job.concept)?.dataset ?? "");
  return `${job.language ? "Language model" : job.teacherHead ? "Teacher" : "Student"} for ${about}`;
}

/** Returns a job's own specification, to run it again; undefined for a kind this page does not know. */
export function specOf(job: DistillationJob): Spec | undefined {
  if (job.concept) return { concept: job.concept };
  if (job.teacherHead) return { teacherHead: job.teacherHead };
  if (job.language) return { language: job.language };
  if (job.tuneshift) return { tuneshift: job.tuneshift };
  if (job.prune) return { prune: job.prune };
  return job.classifier ? { classifier: job.classifier } : undefined;
}

/** Returns whether a job has come to its review and waits for a person to end it. */
export function waitsForReview(job: DistillationJob | undefined): boolean {
  return job?.state === "JOB_STATE_RUNNING" && job.stages.find((one) => !one.complete)?.stage === "review";
}

const LANGUAGE: Kind[] = ["language", "tuneshift", "prune"];
/** Kinds whose report is a table of what was measured. */
const REPORTED: Kind[] = [...LANGUAGE, "classifier"];

/** Returns whether a job has a report to show. */
export const hasReport = (job: DistillationJob): boolean => !!job.report?.digest && REPORTED.includes(kindOf(job));

const STAGES: Record<string, string> = {
  ingest: "Read the images",
  check: "Check that everything fits",
  estimate: "Measure how long it takes",
  features: "Look at every image",
  teacher_outputs: "Ask the teacher",
  teacher_views: "Ask the teacher about views",
  regions: "Look at every region",
  concepts: "Prepare the concepts",
  correct: "Correct the teacher",
  importance: "Measure what matters",
  targets: "Store the teacher’s predictions",
  answers: "Ask for answers",
  rounds: "Make and filter samples",
  review: "Your review of the samples",
  rank: "Try the candidates",
  publish: "Publish",
};

/** Returns a stage of a kind of job in words for people. */
export function stageTitle(stage: string, kind: Kind): string {
  if (stage === "fit") return LANGUAGE.includes(kind) || kind === "classifier" ? "Train the model" : kind === "concept" ? "Fit the student" : "Fit the teacher";
  if (stage === "ingest" && LANGUAGE.includes(kind)) return "Read the texts";
  if (stage === "rounds" && kind === "prune") return "Train the rounds before the last";
  return STAGES[stage] ?? stage.replaceAll("_", " ");
}

const ORDER = [
  "ingest", "check", "estimate", "features", "teacher_outputs", "teacher_views", "regions", "concepts", "correct", "importance", "targets", "answers", "rounds",
  "review", "rank", "fit", "publish",
];

/** Returns the stages of a job in their order: those that have begun, and those to come. */
export function stagesOf(job: DistillationJob): string[] {
  const rank = (stage: string): number => (ORDER.includes(stage) ? ORDER.indexOf(stage) : ORDER.length);
  const all = [...new Set([...expected(job), ...job.stages.map((one) => one.stage)])];
  return all.sort((a, b) => rank(a) - rank(b));
}

function expected(job: DistillationJob): string[] {
  switch (kindOf(job)) {
    case "concept":
      return ["ingest", "check", "estimate", "teacher_outputs", "regions", "concepts", "fit", "publish"];
    case "classifier":
      return ["ingest", "check", "estimate", "teacher_outputs", "teacher_views", "fit", "publish"];
    case "teacherHead":
      return ["ingest", "check", "features", "fit", "publish"];
    case "prune":
      return ["ingest", "check", "estimate", ...(job.prune?.correctTeacher ? ["correct"] : []), "importance", "targets", ...((job.prune?.rounds ?? 0) > 1 ? ["rounds"] : []), ...(ranks(job) ? ["rank"] : []), "fit", "publish"];
    case "tuneshift":
      return ["ingest", "check", "estimate", "rounds", ...(job.tuneshift?.review ? ["review"] : []), "fit", "publish"];
    case "language":
      return ["ingest", "check", "estimate", job.language?.mode === "LANGUAGE_MODE_SEQUENCE_LEVEL" ? "answers" : "targets", "fit", "publish"];
  }
}

/** Where there was one candidate alone, nothing is ranked, which only the search for them tells. */
function ranks(job: DistillationJob): boolean {
  return (job.prune?.candidates ?? 0) > 1 && !job.stages.some((one) => one.stage === "fit");
}

const STATES: Record<string, string> = {
  JOB_STATE_QUEUED: "waiting",
  JOB_STATE_RUNNING: "running",
  JOB_STATE_SUCCEEDED: "done",
  JOB_STATE_FAILED: "failed",
  JOB_STATE_CANCELLING: "being cancelled",
  JOB_STATE_CANCELLED: "cancelled",
};

/** Returns a job's state in words. */
export const stateTitle = (state: string): string => STATES[state] ?? "unknown";
