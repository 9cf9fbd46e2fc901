/** Pure rules of the form for classifier jobs: what it means as a job, and what is wrong with it. */

import type { ClassifierSpec } from "./calls";

/** How views differ from their image. */
export const POLICIES = {
  flip_crop: "Cropped, mirrored or not",
  strong: "Cropped more, colours changed too",
  none: "Not at all",
} as const;
export type Policy = keyof typeof POLICIES;

/** A network of our own, then small ones that timm has; any other name of timm's can be written. */
export const ARCHITECTURES = [
  "small-cnn", "mobilenetv3_small_050", "mobilenetv3_small_100", "mobilenetv4_conv_small", "efficientnet_lite0", "resnet10t", "resnet18", "regnety_002",
  "convnext_atto", "vit_tiny_patch16_224",
];
export const VIEWS = 4;
const NAME = /^[A-Za-z0-9][A-Za-z0-9_.-]{0,99}$/;
const SMALLEST_PX = 16;
const LARGEST_PX = 2048;

/** How the network is trained; 0 takes the default. */
export interface LearningForm {
  epochs: number;
  steps: number;
  batch: number;
  learningRate: number;
  temperature: number;
  softWeight: number;
  featureWeight: number;
  seed: number;
}

/** What somebody has filled in. */
export interface ClassifierForm {
  teacher: string;
  backbone: string;
  architecture: string;
  /** Last part of the name of a model to start from; empty starts from random weights. */
  weights: string;
  inputSize: number;
  policy: Policy;
  views: number;
  controls: boolean;
  seeds: number;
  modelId: string;
  training: LearningForm;
}

/** Returns the form as it begins, for a choice of teacher. */
export function begin(first: Pick<ClassifierForm, "teacher" | "backbone">): ClassifierForm {
  const training = { epochs: 0, steps: 0, batch: 0, learningRate: 0, temperature: 0, softWeight: 0, featureWeight: 0, seed: 0 };
  return { ...first, architecture: ARCHITECTURES[0]!, weights: "", inputSize: 0, policy: "flip_crop", views: VIEWS, controls: false, seeds: 1, modelId: "", training };
}

/** Returns the job of a form without its teacher; what is as usual is left out. */
export function classifierSpec(form: ClassifierForm, dataset: string): Omit<ClassifierSpec, "teacher"> {
  const architecture = form.architecture.trim();
  return {
    dataset,
    augmentation: { policy: form.policy, views: form.policy === "none" ? 1 : form.views },
    training: trainingOf(form.training),
    ...(architecture ? { architecture } : {}),
    ...(form.weights ? { weights: form.weights } : {}),
    ...(form.inputSize ? { inputSize: form.inputSize } : {}),
    ...(form.controls ? { controls: true } : {}),
    ...(form.seeds > 1 ? { trainingSeeds: form.seeds } : {}),
    ...(form.modelId ? { modelId: form.modelId } : {}),
  };
}

/** Returns what is wrong with a form's network; empty where nothing is. */
export function networkProblem(form: ClassifierForm): string {
  const architecture = form.architecture.trim();
  if (!architecture && !form.weights) return "Write a network, or choose one to start from.";
  if (architecture && !NAME.test(architecture)) return "Write timm’s name of a network, or small-cnn.";
  const px = form.inputSize;
  return px && (px < SMALLEST_PX || px > LARGEST_PX) ? `Images may be ${SMALLEST_PX} to ${LARGEST_PX} pixels.` : "";
}

/** Returns what is wrong with how a form trains; empty where nothing is. */
export function learningProblem(form: ClassifierForm): string {
  return form.training.batch === 1 ? "A step needs 2 images or more." : "";
}

function trainingOf(form: LearningForm): NonNullable<ClassifierSpec["training"]> {
  return {
    ...(form.steps ? { maxSteps: form.steps } : form.epochs ? { epochs: form.epochs } : {}),
    ...(form.batch ? { batchImages: form.batch } : {}),
    ...(form.learningRate ? { learningRate: form.learningRate } : {}),
    ...(form.temperature ? { temperature: form.temperature } : {}),
    ...(form.softWeight ? { softWeight: form.softWeight } : {}),
    ...(form.featureWeight ? { featureWeight: form.featureWeight } : {}),
    ...(form.seed ? { seed: String(form.seed) } : {}),
  };
}
