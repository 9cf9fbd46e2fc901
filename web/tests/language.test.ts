import { describe, expect, it } from "vitest";

import type { Dataset, DistillationJob } from "../src/lib/api/types";
import type { Model } from "../src/lib/setup/calls";
import { lastOf, seriesOf, seriesTitle, withPoints, type Curves } from "../src/lib/setup/curves";
import { TRAINING, imageModels, isText, languageModels, languagePair, languageSpec, layersOf, seedsProblem, shiftSpec, type LanguageForm, type ShiftForm } from "../src/lib/setup/language";
import { figureText, tabulate } from "../src/lib/setup/report";
import { jobTitle, kindOf, specOf, stageTitle, stagesOf, waitsForReview } from "../src/lib/setup/plan";

const P = "projects/p";
const FORM: LanguageForm = {
  student: "s", teacher: "t", mode: "LANGUAGE_MODE_STORED_TARGETS", keepLayers: "", modelId: "", chat: false, replay: "", evaluate: [],
  verifier: "", pattern: "", training: { ...TRAINING },
};
const SHIFT: ShiftForm = {
  base: "b", tuned: "t", target: "g", seeds: "What is {word}?\n\nWhat is {word}?", words: "heron\nplover ", offDomain: "", rounds: 0, promptsPerRound: 0,
  tau: 0, targetExamples: 0, review: false, ablations: false, chat: false, replay: "", evaluate: [], modelId: "", training: { ...TRAINING, adapter: false },
};

describe("forms", () => {
  it("say only what is not as usual", () => {
    expect(languageSpec(FORM, "d")).toEqual({ dataset: "d", student: "s", teacher: "t", mode: FORM.mode, training: { lora: {} } });
    const all: LanguageForm = {
      ...FORM, mode: "LANGUAGE_MODE_SUPERVISED", keepLayers: "0-4:2", modelId: "m", chat: true, replay: "r", evaluate: ["e"], verifier: "regex", pattern: "a+",
      training: { adapter: true, rank: 8, epochs: 2, steps: 40, batch: 4, learningRate: 0.001, sequenceLength: 64, seed: 3 },
    };
    expect(languageSpec(all, "d")).toEqual({
      dataset: "d", student: "s", mode: all.mode, keepLayers: [0, 2, 4], modelId: "m", chat: true, replayDataset: "r", evaluationDatasets: ["e"],
      verifier: { regex: { pattern: "a+" } },
      training: { lora: { rank: 8 }, maxSteps: 40, batchSequences: 4, learningRate: 0.001, sequenceLength: 64, seed: "3" },
    });
    expect(languageSpec({ ...all, verifier: "exactMatch" }, "d").verifier).toEqual({ exactMatch: {} });
  });

  it("carry prompts and words over once each", () => {
    expect(shiftSpec(SHIFT)).toEqual({ base: "b", tuned: "t", target: "g", seedPrompts: ["What is {word}?"], words: ["heron", "plover"], training: {} });
    const all = shiftSpec({ ...SHIFT, offDomain: "o", rounds: 3, promptsPerRound: 64, tau: 1.3, targetExamples: 200, review: true, ablations: true, chat: true, modelId: "m" });
    expect(all).toMatchObject({ offDomainDataset: "o", rounds: 3, promptsPerRound: 64, filter: { tau: 1.3 }, targetExamples: 200, review: true, ablations: true, chat: true, modelId: "m" });
  });

  it.each([["", []], ["0-4:2", [0, 2, 4]], ["3,1, 2-3", [1, 2, 3]], ["4-2", undefined], ["a", undefined], ["1-2:0", undefined], ["99999", undefined]])("layers %s", (text, found) =>
    expect(layersOf(text)).toEqual(found),
  );

  it("see what is wrong with prompts", () => {
    expect(seedsProblem(SHIFT)).toBe("");
    expect(seedsProblem({ seeds: " \n", words: "" })).toMatch(/one prompt/);
    expect(seedsProblem({ seeds: "a {word}", words: "" })).toMatch(/write the words/);
    expect(seedsProblem({ seeds: "a", words: "x" })).toMatch(/no prompt has/);
    expect(seedsProblem({ seeds: Array.from({ length: 65 }, (_, at) => `p${at}`).join("\n"), words: "" })).toMatch(/At most 64/);
  });

  it("tell models and data apart", () => {
    const models = [{ name: "a", kind: "MODEL_KIND_LANGUAGE_MODEL" }, { name: "b", languageModel: { base: "a" } }, { name: "c", imageClassifier: {} }] as unknown as Model[];
    expect(languageModels(models).map((one) => one.name)).toEqual(["a", "b"]);
    expect(languagePair(languageModels(models))).toEqual(["a", "b"]);
    expect(languagePair(languageModels(models).slice(1))).toEqual(["b"]);
    expect(languagePair([])).toEqual([]);
    expect(imageModels(models).map((one) => one.name)).toEqual(["c"]);
    expect(isText({ kind: "DATASET_KIND_TEXTS" } as Dataset)).toBe(true);
    expect(isText({ kind: "DATASET_KIND_IMAGES" } as Dataset)).toBe(false);
  });
});

describe("jobs", () => {
  const stage = (name: string, complete: boolean) => ({ stage: name, complete });
  const job = (spec: object, stages: object[] = [], state = "JOB_STATE_RUNNING") => ({ state, stages, ...spec }) as unknown as DistillationJob;
  const shift = { tuneshift: { tuned: `${P}/models/tuned`, target: `${P}/models/big`, review: true } };

  it("have a title, a kind and stages of their own", () => {
    expect(jobTitle(job(shift))).toBe("What tuned knows, into big");
    expect(jobTitle(job({ language: { dataset: `${P}/datasets/notes` } }))).toBe("Language model for notes");
    expect(jobTitle(job({ teacherHead: { dataset: `${P}/datasets/fruit` } }))).toBe("Teacher for fruit");
    expect(kindOf(job({ concept: {} }))).toBe("concept");
    expect(specOf(job(shift))).toEqual(shift);
    expect(specOf(job({}))).toBeUndefined();
    expect(stageTitle("fit", "tuneshift")).toBe("Train the model");
    expect(stagesOf(job(shift, [stage("publish", true), stage("own", false)]))).toEqual(["ingest", "check", "estimate", "rounds", "review", "fit", "publish", "own"]);
    expect(stagesOf(job({ language: { mode: "LANGUAGE_MODE_SEQUENCE_LEVEL" } }))).toEqual(["ingest", "check", "estimate", "answers", "fit", "publish"]);
    expect(stagesOf(job({ language: {} }, [stage("ingest", true)]))).toEqual(["ingest", "check", "estimate", "targets", "fit", "publish"]);
  });

  it("wait for a review once all before it is done", () => {
    expect(waitsForReview(job(shift, [stage("rounds", true), stage("review", false)]))).toBe(true);
    expect(waitsForReview(job(shift, [stage("rounds", false), stage("review", false)]))).toBe(false);
    expect(waitsForReview(job(shift, [stage("rounds", true), stage("review", true), stage("fit", false)]))).toBe(false);
    expect(waitsForReview(job(shift, [stage("review", false)], "JOB_STATE_CANCELLED"))).toBe(false);
    expect(waitsForReview(undefined)).toBe(false);
  });
});

describe("report", () => {
  const figure = { value: 0.6, low: 0.55, high: 0.65 };

  it("shows a tuneshift job by what was trained on", () => {
    const table = tabulate({ before: { cross_entropy: { value: 3 } }, arms: [{ arm: "tuneshift", examples: 1200, metrics: { "stamps/choice_accuracy": figure } }, { arm: "tau_1.1" }], references: { tuned: {} } });
    expect(table.columns).toEqual(["Trained on", "Samples", "Right choices of stamps", "Cross-entropy, nats a token"]);
    expect(table.rows).toEqual([["nothing: the target as it was", "", "–", "3.000"], ["these samples", "1,200", "0.600 [0.550, 0.650]", "–"]]);
  });

  it("shows a language job before and after", () => {
    const table = tabulate({ before: { own: figure }, after: { own: { value: null } }, change: { own: { value: -0.1, low: -0.2, high: 0 } } });
    expect(table.rows).toEqual([["own", "0.600 [0.550, 0.650]", "–", "−0.100 [−0.200, 0.000]"]]);
    expect(tabulate({}).rows).toEqual([]);
    expect(figureText(undefined)).toBe("–");
  });
});

describe("curves", () => {
  it("grow by run, rising by step; a step told twice counts once", () => {
    let curves: Curves = {};
    for (const [step, loss] of [[1, 3], [2, 2.5], [2, 2.4], [1, 2.9]] as const) curves = withPoints(curves, { metrics: { loss }, metricsStep: String(step) });
    curves = withPoints(curves, { metrics: { heldout_cross_entropy: 3.1, learning_rate: 1e-4, images_per_s: 9, odd: NaN }, metricsStep: "2", metricsRun: "no_filter/1" });
    expect(curves.loss).toEqual({ "": [[1, 2.9], [2, 2.4]] });
    expect(seriesOf(curves)).toEqual(["loss", "heldout_cross_entropy"]);
    expect(seriesTitle("heldout_cross_entropy")).toBe("Held-out cross entropy");
    expect(lastOf(curves.heldout_cross_entropy!)).toBe("no_filter/1: 3.10 at step 2");
  });

  it("stay the same object where an event brings nothing", () => {
    const curves = {};
    expect(withPoints(curves, {})).toBe(curves);
    expect(withPoints(curves, { metrics: {}, metricsStep: "3" })).toBe(curves);
    expect(withPoints(curves, { metrics: { loss: 1 }, metricsStep: "x" })).toBe(curves);
  });

  it("stay short however long a job is", () => {
    let curves: Curves = {};
    for (let step = 0; step < 5000; step += 1) curves = withPoints(curves, { metrics: { loss: 1 }, metricsStep: String(step) });
    expect(curves.loss![""]!.length).toBeLessThanOrEqual(2001);
    expect(curves.loss![""]!.at(-1)![0]).toBe(4999);
  });
});
