/** Pure rules of the forms for language models: what they mean as jobs, which models and data fit. */

import type { Dataset } from "../api/types";
import type { LanguageSpec, Model, ShiftSpec, Training, Verifier } from "./calls";

export const MODES = {
  LANGUAGE_MODE_STORED_TARGETS: "Its predictions at every token, stored once",
  LANGUAGE_MODE_SEQUENCE_LEVEL: "Its own answers to the prompts",
  LANGUAGE_MODE_ON_POLICY: "Its judgement of what the student writes",
  LANGUAGE_MODE_SUPERVISED: "No teacher: the answers and texts themselves",
} as const;
export type Mode = keyof typeof MODES;

export const VERIFIERS = {
  "": "None",
  exactMatch: "Equal to the reference",
  regex: "Contains a pattern",
  numeric: "Its last number is the reference",
  pythonTests: "Passes the record’s Python tests, where the services run them",
} as const;
export type VerifierKind = keyof typeof VERIFIERS;

/** How a model is trained; 0 takes the default. */
export interface TrainingForm {
  adapter: boolean;
  rank: number;
  epochs: number;
  steps: number;
  batch: number;
  learningRate: number;
  sequenceLength: number;
  seed: number;
}

export interface LanguageForm {
  student: string;
  teacher: string;
  mode: Mode;
  keepLayers: string;
  modelId: string;
  chat: boolean;
  replay: string;
  evaluate: string[];
  verifier: VerifierKind;
  pattern: string;
  training: TrainingForm;
}

export interface ShiftForm {
  base: string;
  tuned: string;
  target: string;
  seeds: string;
  words: string;
  offDomain: string;
  rounds: number;
  promptsPerRound: number;
  tau: number;
  targetExamples: number;
  review: boolean;
  ablations: boolean;
  chat: boolean;
  replay: string;
  evaluate: string[];
  modelId: string;
  training: TrainingForm;
}

export const TRAINING: TrainingForm = { adapter: true, rank: 0, epochs: 0, steps: 0, batch: 0, learningRate: 0, sequenceLength: 0, seed: 0 };
export const MOST_SEEDS = 64;

/** Returns whether a dataset holds texts. */
export const isText = (dataset: Dataset): boolean => dataset.kind === "DATASET_KIND_TEXTS";

/** Returns the language models, by name. */
export const languageModels = (models: readonly Model[]): Model[] =>
  models.filter((one) => one.kind === "MODEL_KIND_LANGUAGE_MODEL" || !!one.languageModel);

/** Returns the names of a teacher, a whole model where there is one, and of another model to learn from it. */
export function languagePair(models: readonly Model[]): [teacher?: string, student?: string] {
  const teacher = models.find((one) => !one.languageModel?.base) ?? models[0];
  const student = models.find((one) => one !== teacher);
  return [...(teacher ? [teacher.name] : []), ...(student ? [student.name] : [])] as [string?, string?];
}

/** Returns the models whose images can be classified. */
export const imageModels = (models: readonly Model[]): Model[] => {
  const language = new Set(languageModels(models));
  return models.filter((one) => !language.has(one));
};

/** Returns the prompts of a text, one a line; each once, in their order. */
export function linesOf(text: string): string[] {
  return [...new Set(text.split("\n").map((line) => line.trim()).filter(Boolean))];
}

/**
 * Returns the layers of `0-29:2` (from, to, step) or `0,2,5-8`, rising; nothing for an empty text, undefined for one
 * that means no layers.
 */
export function layersOf(text: string): number[] | undefined {
  const found = new Set<number>();
  for (const part of text.split(",").map((one) => one.trim()).filter(Boolean)) {
    const [, first, last, step] = /^(\d{1,4})(?:-(\d{1,4})(?::([1-9]\d{0,3}))?)?$/.exec(part) ?? [];
    if (first === undefined || Number(last ?? first) < Number(first)) return undefined;
    for (let layer = Number(first); layer <= Number(last ?? first); layer += Number(step ?? 1)) found.add(layer);
  }
  return [...found].sort((a, b) => a - b);
}

/** Returns the job of a form; what is as usual is left out. */
export function languageSpec(form: LanguageForm, dataset: string): LanguageSpec {
  const layers = layersOf(form.keepLayers) ?? [];
  const supervised = form.mode === "LANGUAGE_MODE_SUPERVISED";
  return {
    dataset,
    student: form.student,
    mode: form.mode,
    training: trainingOf(form.training),
    ...(supervised ? {} : { teacher: form.teacher }),
    ...(layers.length ? { keepLayers: layers } : {}),
    ...(form.modelId ? { modelId: form.modelId } : {}),
    ...(form.chat ? { chat: true } : {}),
    ...(form.replay ? { replayDataset: form.replay } : {}),
    ...(form.evaluate.length ? { evaluationDatasets: form.evaluate } : {}),
    ...verifierOf(form),
  };
}

/** Returns the job of a form; what is as usual is left out. */
export function shiftSpec(form: ShiftForm): ShiftSpec {
  const words = linesOf(form.words);
  return {
    base: form.base,
    tuned: form.tuned,
    target: form.target,
    seedPrompts: linesOf(form.seeds),
    training: trainingOf(form.training),
    ...(words.length ? { words } : {}),
    ...(form.offDomain ? { offDomainDataset: form.offDomain } : {}),
    ...(form.rounds ? { rounds: form.rounds } : {}),
    ...(form.promptsPerRound ? { promptsPerRound: form.promptsPerRound } : {}),
    ...(form.tau ? { filter: { tau: form.tau } } : {}),
    ...(form.targetExamples ? { targetExamples: form.targetExamples } : {}),
    ...(form.review ? { review: true } : {}),
    ...(form.ablations ? { ablations: true } : {}),
    ...(form.chat ? { chat: true } : {}),
    ...(form.replay ? { replayDataset: form.replay } : {}),
    ...(form.evaluate.length ? { evaluationDatasets: form.evaluate } : {}),
    ...(form.modelId ? { modelId: form.modelId } : {}),
    ...(form.training.seed ? { seed: String(form.training.seed) } : {}),
  };
}

/** Returns what is wrong with the prompts of a form; empty where nothing is. */
export function seedsProblem(form: Pick<ShiftForm, "seeds" | "words">): string {
  const seeds = linesOf(form.seeds);
  if (!seeds.length) return "Write one prompt of the domain per line.";
  if (seeds.length > MOST_SEEDS) return `At most ${MOST_SEEDS} prompts; there are ${seeds.length}.`;
  const open = seeds.some((seed) => seed.includes("{word}"));
  if (linesOf(form.words).length && !open) return "There are words, but no prompt has {word} in it.";
  return open && !linesOf(form.words).length ? "A prompt has {word} in it: write the words." : "";
}

/** Returns what makes an answer right; nothing for none. `kept` is what a specification said of that kind beyond the form. */
export function verifierOf(form: { verifier: VerifierKind; pattern: string }, kept: Verifier = {}): { verifier?: Verifier } {
  if (!form.verifier) return {};
  return { verifier: { [form.verifier]: form.verifier === "regex" ? (form.pattern ? { pattern: form.pattern } : {}) : (kept[form.verifier] ?? {}) } };
}

/** Returns how to train; what is as usual is left out. */
export function trainingOf(form: TrainingForm): Training {
  return {
    ...(form.adapter ? { lora: form.rank ? { rank: form.rank } : {} } : {}),
    ...(form.steps ? { maxSteps: form.steps } : form.epochs ? { epochs: form.epochs } : {}),
    ...(form.batch ? { batchSequences: form.batch } : {}),
    ...(form.learningRate ? { learningRate: form.learningRate } : {}),
    ...(form.sequenceLength ? { sequenceLength: form.sequenceLength } : {}),
    ...(form.seed ? { seed: String(form.seed) } : {}),
  };
}
