/** Pure rules of the form for prune jobs: what it means as a job, what a size comes to, which models can be pruned. */

import type { Dataset } from "../api/types";
import { compact } from "../format";
import { lastPart } from "../names";
import { bytes } from "../upload";
import type { Model, PruneSpec, Training } from "./calls";
import type { Candidate } from "./candidates";
import { TRAINING, VERIFIERS, languageModels, trainingOf, verifierOf, type TrainingForm, type VerifierKind } from "./language";

export const SIZES = {
  share: "Share outside the embeddings",
  parameters: "Number of parameters",
  bytes: "Size of the weights",
  latency: "Time of a forward pass",
} as const;
export type Size = keyof typeof SIZES;

export const AXES = {
  PRUNE_AXES_BOTH: "Width, depth or both",
  PRUNE_AXES_WIDTH: "Width alone: channels, neurons, heads",
  PRUNE_AXES_DEPTH: "Depth alone: whole layers",
} as const;
export type Axes = keyof typeof AXES;

export const PRECISIONS = { "": "As usual; counted as float32", float32: "float32", bfloat16: "bfloat16" } as const;
export type Precision = keyof typeof PRECISIONS;

export const PERCENT = 60;
const CANDIDATES = 3;
const MOST_CANDIDATES = 32;
const MILLION = 1e6;

/** What somebody has filled in; of `percent`, `parameters`, `megabytes` and `latencyMs` the one that `size` names counts. */
export interface PruneForm {
  model: string;
  size: Size;
  percent: number;
  parameters: number;
  megabytes: number;
  latencyMs: number;
  precision: Precision;
  axes: Axes;
  rounds: number;
  candidates: number;
  rankingSteps: number;
  calibration: number;
  /** Layers after which hidden states are drawn to the whole model's. */
  states: number;
  controls: boolean;
  seeds: number;
  correctTeacher: boolean;
  modelId: string;
  evaluate: string[];
  verifier: VerifierKind;
  pattern: string;
  training: TrainingForm;
  /** What the specification that the form began with says beyond it. */
  kept: Pick<PruneSpec, "bytesPerToken" | "sampling" | "verifier"> & { training?: Training };
}

/** A form that begins with another job's specification, and why. */
export interface Start {
  form: PruneForm;
  note: string;
}

/** Returns the models that have parts to cut and can teach: whole ones. */
export function prunable(models: readonly Model[]): Model[] {
  const teaches = (methods: readonly string[] = []): boolean => !methods.length || methods.includes("SampleTargets");
  return languageModels(models).filter((one) => !one.languageModel?.base && teaches(one.languageModel?.methods));
}

/** Returns the form as it begins. Candidates are ranked on held-out texts, so there must be some. */
export function begin(dataset: Dataset, models: readonly Model[]): PruneForm {
  return {
    model: models[0]?.name ?? "", size: "share", percent: PERCENT, parameters: 0, megabytes: 0, latencyMs: 0, precision: "",
    axes: "PRUNE_AXES_BOTH", rounds: 1, candidates: dataset.splitCounts.test ? CANDIDATES : 1, rankingSteps: 0, calibration: 0, states: 0, controls: false, seeds: 1,
    correctTeacher: false, modelId: "",
    evaluate: [], verifier: "", pattern: "", training: { ...TRAINING, adapter: false }, kept: {},
  };
}

/** Returns the job of a form; what is as usual is left out. */
export function pruneSpec(form: PruneForm, dataset: string): PruneSpec {
  const { verifier: kept, training, ...rest } = form.kept;
  return {
    ...rest,
    dataset,
    model: form.model,
    ...sizeOf(form),
    axes: form.axes,
    training: withKept(training, {
      ...trainingOf(form.training),
      ...(form.precision ? { precision: form.precision } : {}),
      ...(form.states ? { intermediateStates: form.states } : {}),
    }),
    ...(form.rounds > 1 ? { rounds: form.rounds } : {}),
    ...(form.candidates > 1 ? { candidates: form.candidates } : {}),
    ...(form.candidates > 1 && form.rankingSteps ? { rankingSteps: form.rankingSteps } : {}),
    ...(form.calibration ? { calibrationSequences: form.calibration } : {}),
    ...(form.controls ? { controls: true } : {}),
    ...(form.seeds > 1 ? { trainingSeeds: form.seeds } : {}),
    ...(form.correctTeacher ? { correctTeacher: true } : {}),
    ...(form.modelId ? { modelId: form.modelId } : {}),
    ...(form.evaluate.length ? { evaluationDatasets: form.evaluate } : {}),
    ...verifierOf(form, kept),
  };
}

/** Returns the form that means a job's specification. */
export function formOf(spec: PruneSpec): PruneForm {
  const { lora, maxSteps, epochs, batchSequences, learningRate, sequenceLength, seed, precision, intermediateStates, ...rest } = spec.training ?? {};
  const { rank, ...adapter } = lora ?? {};
  const verifier = (Object.keys(VERIFIERS) as VerifierKind[]).find((kind) => kind && spec.verifier?.[kind]) ?? "";
  return {
    model: spec.model,
    size: spec.maxParameters ? "parameters" : spec.maxBytes ? "bytes" : spec.maxLatencyMs ? "latency" : "share",
    percent: spec.nonEmbeddingShare ? Number((100 * spec.nonEmbeddingShare).toFixed(6)) : PERCENT,
    parameters: Number(spec.maxParameters ?? 0),
    megabytes: Number(spec.maxBytes ?? 0) / MILLION,
    latencyMs: spec.maxLatencyMs ?? 0,
    precision: (precision ?? "") as Precision,
    axes: spec.axes && spec.axes in AXES ? (spec.axes as Axes) : "PRUNE_AXES_BOTH",
    rounds: spec.rounds || 1,
    candidates: spec.candidates || 1,
    rankingSteps: spec.rankingSteps ?? 0,
    calibration: spec.calibrationSequences ?? 0,
    states: intermediateStates ?? 0,
    controls: spec.controls ?? false,
    seeds: spec.trainingSeeds || 1,
    correctTeacher: spec.correctTeacher ?? false,
    modelId: spec.modelId ?? "",
    evaluate: [...(spec.evaluationDatasets ?? [])],
    verifier,
    pattern: spec.verifier?.regex?.pattern ?? "",
    training: {
      adapter: !!lora, rank: rank ?? 0, epochs: epochs ?? 0, steps: maxSteps ?? 0, batch: batchSequences ?? 0, learningRate: learningRate ?? 0,
      sequenceLength: sequenceLength ?? 0, seed: Number(seed ?? 0),
    },
    kept: {
      ...(spec.bytesPerToken ? { bytesPerToken: spec.bytesPerToken } : {}),
      ...(spec.sampling ? { sampling: spec.sampling } : {}),
      ...(spec.verifier ? { verifier: spec.verifier } : {}),
      training: { ...rest, lora: adapter },
    },
  };
}

/** Returns what comes nearest to a candidate of a job: its size, and what it cuts. No other candidate is tried. */
export function startFor(spec: PruneSpec, candidate: Candidate): Start {
  const axes: Record<string, Axes> = { width: "PRUNE_AXES_WIDTH", depth: "PRUNE_AXES_DEPTH" };
  const form: PruneForm = {
    ...formOf(spec), size: "parameters", parameters: candidate.parameters, axes: axes[candidate.kind] ?? "PRUNE_AXES_BOTH", candidates: 1, rankingSteps: 0,
    // Under the first job's name it would take the place of what that job has made.
    modelId: `${modelIdOf(spec).slice(0, 38)}-candidate-${candidate.number}`,
  };
  return { form, note: `Filled in for candidate ${candidate.number} of the job on ${lastPart(spec.dataset)}: its size, and what it cuts. Change what you like.` };
}

/** Returns the last part of the new model's name, as the gateway gives it. */
export const modelIdOf = (spec: Pick<PruneSpec, "model" | "modelId">): string => spec.modelId || `${lastPart(spec.model).slice(0, 56)}-pruned`;

/** Returns what a size means for a model in people's words; empty where the model does not say how large it is. */
export function sizeText(form: PruneForm, model: Model | undefined): string {
  const all = parametersOf(model);
  if (form.size === "latency") return "Over one sequence of 128 tokens, as the student service measures it where it trains.";
  if (form.size === "bytes") return `At most ${compact(Math.floor((form.megabytes * MILLION) / bytesEach(form)))} parameters${all ? ` of its ${compact(all)}` : ""}.`;
  if (!all) return "";
  if (form.size === "parameters") return `${percent(form.parameters / all)} of its ${compact(all)} parameters, ${weigh(form, form.parameters)}.`;
  const embedding = (model?.languageModel?.vocabSize ?? 0) * (model?.languageModel?.hiddenSize ?? 0);
  if (!embedding || embedding >= all) return "";
  const [tied, apart] = [1, 2].map((times) => times * embedding + (form.percent / 100) * (all - times * embedding)) as [number, number];
  // The list of models does not say whether input and output share one embedding.
  const untied = 2 * embedding < all ? ` (${compact(apart)} if it has an output embedding of its own)` : "";
  return `At most about ${compact(tied)} of its ${compact(all)} parameters${untied}, ${weigh(form, tied)}.`;
}

/** Returns what is wrong with a size; empty where nothing is. */
export function sizeProblem(form: PruneForm, model: Model | undefined): string {
  const all = parametersOf(model);
  if (form.size === "share") return form.percent > 0 && form.percent < 100 ? "" : "Write a share between 0 and 100 %.";
  if (form.size === "latency") return form.latencyMs > 0 ? "" : "Write how many milliseconds a pass may take.";
  const most = form.size === "parameters" ? form.parameters : Math.floor((form.megabytes * MILLION) / bytesEach(form));
  if (!(most >= 1)) return form.size === "parameters" ? "Write how many parameters it may have." : "Write how large its weights may be.";
  return all && most >= all ? `The model has ${compact(all)} parameters, so nothing would be cut.` : "";
}

/** Returns what is wrong with the rest of a form; empty where nothing is. */
export function trainingProblem(form: PruneForm): string {
  if (form.training.adapter && (form.controls || form.correctTeacher)) {
    return "Random weights have nothing to adapt, and a corrected teacher stays whole: leave out the adapter, or comparisons and correction.";
  }
  if (!(form.candidates >= 1 && form.candidates <= MOST_CANDIDATES)) return `Try 1 to ${MOST_CANDIDATES} candidates.`;
  if (form.rounds > 1 && form.size === "latency") return "A time has no even steps: take 1 round, or say the size otherwise.";
  if (form.rounds > 1 && form.states) return "A later round starts from a cut, which has no hidden states of the whole model: take 1 round, or match none.";
  if (form.training.steps && form.training.steps < form.rounds) return `${form.rounds} rounds share the steps: give each at least 1.`;
  return form.calibration === 1 ? "Importance is measured on 2 sequences or more." : "";
}

function sizeOf(form: PruneForm): Pick<PruneSpec, "nonEmbeddingShare" | "maxParameters" | "maxBytes" | "maxLatencyMs"> {
  if (form.size === "share") return { nonEmbeddingShare: form.percent / 100 };
  if (form.size === "latency") return { maxLatencyMs: form.latencyMs };
  if (form.size === "parameters") return { maxParameters: String(Math.round(form.parameters)) };
  return { maxBytes: String(Math.round(form.megabytes * MILLION)) };
}

function withKept(kept: Training | undefined, made: Training): Training {
  const { lora, ...rest } = kept ?? {};
  return { ...rest, ...made, ...(made.lora ? { lora: { ...lora, ...made.lora } } : {}) };
}

const parametersOf = (model: Model | undefined): number => Number(model?.languageModel?.parameterCount ?? 0);
const bytesEach = (form: PruneForm): number => (form.precision === "bfloat16" ? 2 : 4);
const weigh = (form: PruneForm, parameters: number): string => `${bytes(parameters * bytesEach(form))} in ${form.precision || "float32"}`;
const percent = (share: number): string => `${(100 * share).toFixed(share < 0.1 ? 1 : 0)} %`;
