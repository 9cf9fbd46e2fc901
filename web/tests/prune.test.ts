import { describe, expect, it } from "vitest";

import type { Dataset, DistillationJob } from "../src/lib/api/types";
import type { Model, PruneSpec } from "../src/lib/setup/calls";
import { candidatesOf, hasControls, plotOf, plotText, rivalsOf, shapeText } from "../src/lib/setup/candidates";
import { hasReport, jobTitle, kindOf, specOf, stageTitle, stagesOf } from "../src/lib/setup/plan";
import { begin, formOf, modelIdOf, prunable, pruneSpec, sizeProblem, sizeText, startFor, trainingProblem, type PruneForm } from "../src/lib/setup/prune";
import type { Report } from "../src/lib/setup/report";

const P = "projects/p";
const texts = (test: number): Dataset => ({ name: `${P}/datasets/notes`, splitCounts: { train: 90, test } }) as unknown as Dataset;
const model = (more: object = {}): Model =>
  ({ name: `${P}/models/big`, languageModel: { parameterCount: "134515008", vocabSize: 49_152, hiddenSize: 576, base: "", methods: ["Score", "SampleTargets"], ...more } }) as unknown as Model;
const FORM: PruneForm = begin(texts(20), [model()]);

describe("prune form", () => {
  it("begins with a whole model, and ranks candidates where texts are held out", () => {
    expect(FORM).toMatchObject({ model: `${P}/models/big`, size: "share", percent: 60, candidates: 3 });
    expect(begin(texts(0), []).candidates).toBe(1);
    const models = [model({ base: "small" }), model({ methods: ["Score"] }), model(), model({ methods: [] }), { name: "photos" } as Model];
    expect(prunable(models)).toEqual([models[2], models[3]]);
  });

  it("says only what is not as usual", () => {
    expect(pruneSpec({ ...FORM, candidates: 1 }, "d")).toEqual({ dataset: "d", model: `${P}/models/big`, nonEmbeddingShare: 0.6, axes: "PRUNE_AXES_BOTH", training: {} });
    const all: PruneForm = {
      ...FORM, size: "bytes", megabytes: 200, precision: "bfloat16", axes: "PRUNE_AXES_WIDTH", candidates: 4, rankingSteps: 20, calibration: 512, rounds: 2, states: 3, controls: true,
      seeds: 3, correctTeacher: true, modelId: "m", evaluate: ["e"], verifier: "numeric", training: { ...FORM.training, steps: 400, seed: 7 },
    };
    expect(pruneSpec(all, "d")).toEqual({
      dataset: "d", model: `${P}/models/big`, maxBytes: "200000000", axes: "PRUNE_AXES_WIDTH", candidates: 4, rankingSteps: 20, calibrationSequences: 512,
      rounds: 2, controls: true, trainingSeeds: 3, correctTeacher: true, modelId: "m", evaluationDatasets: ["e"], verifier: { numeric: {} },
      training: { maxSteps: 400, seed: "7", precision: "bfloat16", intermediateStates: 3 },
    });
    expect(pruneSpec({ ...FORM, size: "parameters", parameters: 60_001 }, "d")).toMatchObject({ maxParameters: "60001" });
    expect(pruneSpec({ ...FORM, size: "latency", latencyMs: 20.5 }, "d")).toMatchObject({ maxLatencyMs: 20.5 });
    expect(pruneSpec({ ...FORM, candidates: 1, rankingSteps: 20 }, "d").rankingSteps).toBeUndefined();
  });

  it("comes back from a specification, with what it has no controls for", () => {
    const spec: PruneSpec = {
      dataset: "d", model: `${P}/models/big`, modelId: "m", maxParameters: "60001", axes: "PRUNE_AXES_DEPTH", rounds: 3, candidates: 2, rankingSteps: 4, calibrationSequences: 64,
      trainingSeeds: 2, correctTeacher: true, evaluationDatasets: ["e"], bytesPerToken: 20, sampling: { maxTokens: 9 }, verifier: { numeric: { tolerance: 0.1 } },
      training: { lora: { rank: 8, alpha: 3 }, maxSteps: 40, batchSequences: 4, learningRate: 0.001, sequenceLength: 64, seed: "3", temperature: 2, intermediateStates: 2, precision: "float32" },
    } as PruneSpec;
    expect(pruneSpec(formOf(spec), "d")).toEqual(spec);
    const changed = formOf(spec);
    expect(pruneSpec({ ...changed, verifier: "exactMatch", training: { ...changed.training, rank: 0 } }, "d")).toMatchObject({ verifier: { exactMatch: {} }, training: { lora: { alpha: 3 } } });
    expect(pruneSpec({ ...changed, training: { ...changed.training, adapter: false } }, "d").training?.lora).toBeUndefined();
    expect(formOf({ dataset: "d", model: "m", nonEmbeddingShare: 0.333 })).toMatchObject({ size: "share", percent: 33.3, candidates: 1, seeds: 1 });
    expect(formOf({ dataset: "d", model: "m", maxBytes: "5000000" })).toMatchObject({ size: "bytes", megabytes: 5 });
    expect(formOf({ dataset: "d", model: "m", maxLatencyMs: 7.5 })).toMatchObject({ size: "latency", latencyMs: 7.5 });
    const failed = { prune: spec } as DistillationJob;
    expect(specOf(failed)).toEqual({ prune: spec });
  });

  it("tells what a size comes to", () => {
    expect(sizeText({ ...FORM, percent: 50 }, model())).toBe("At most about 81.4M of its 135M parameters (95.6M if it has an output embedding of its own), 326 MB in float32.");
    expect(sizeText({ ...FORM, percent: 50, precision: "bfloat16" }, model({ parameterCount: "50000000" }))).toBe("At most about 39.2M of its 50M parameters, 78 MB in bfloat16.");
    expect(sizeText({ ...FORM, size: "parameters", parameters: 67_257_504 }, model())).toBe("50 % of its 135M parameters, 269 MB in float32.");
    expect(sizeText({ ...FORM, size: "bytes", megabytes: 200 }, undefined)).toBe("At most 50M parameters.");
    expect(sizeText({ ...FORM, size: "latency", latencyMs: 20 }, model())).toMatch(/128 tokens/);
    expect(sizeText(FORM, undefined)).toBe("");
    expect(sizeText(FORM, model({ hiddenSize: 0 }))).toBe("");
  });

  it("sees what is wrong", () => {
    expect(sizeProblem(FORM, model())).toBe("");
    for (const percent of [0, 100, -3, NaN]) expect(sizeProblem({ ...FORM, percent }, model())).toMatch(/between 0 and 100/);
    expect(sizeProblem({ ...FORM, size: "parameters" }, model())).toMatch(/how many parameters/);
    expect(sizeProblem({ ...FORM, size: "bytes", megabytes: NaN }, model())).toMatch(/how large/);
    expect(sizeProblem({ ...FORM, size: "parameters", parameters: 134_515_008 }, model())).toMatch(/nothing would be cut/);
    expect(sizeProblem({ ...FORM, size: "bytes", megabytes: 300, precision: "bfloat16" }, model())).toMatch(/nothing would be cut/);
    expect(sizeProblem({ ...FORM, size: "bytes", megabytes: 300 }, model())).toBe("");
    expect(sizeProblem({ ...FORM, size: "latency" }, model())).toMatch(/milliseconds/);
    expect(sizeProblem({ ...FORM, size: "latency", latencyMs: 9 }, model())).toBe("");
    expect(trainingProblem(FORM)).toBe("");
    expect(trainingProblem({ ...FORM, size: "latency", rounds: 2 })).toMatch(/no even steps/);
    expect(trainingProblem({ ...FORM, states: 2, rounds: 2 })).toMatch(/match none/);
    expect(trainingProblem({ ...FORM, states: 2 })).toBe("");
    expect(trainingProblem({ ...FORM, rounds: 3, training: { ...FORM.training, steps: 2 } })).toMatch(/3 rounds share/);
    const adapter = { ...FORM.training, adapter: true };
    expect(trainingProblem({ ...FORM, training: adapter })).toBe("");
    for (const more of [{ controls: true }, { correctTeacher: true }]) expect(trainingProblem({ ...FORM, ...more, training: adapter })).toMatch(/leave out the adapter/);
    for (const candidates of [0, 33, NaN]) expect(trainingProblem({ ...FORM, candidates })).toMatch(/1 to 32/);
    expect(trainingProblem({ ...FORM, calibration: 1 })).toMatch(/2 sequences/);
  });
});

describe("prune job", () => {
  const stage = (name: string) => ({ stage: name, complete: true });
  const job = (spec: object, stages: object[] = []) => ({ stages, prune: { dataset: `${P}/datasets/notes`, model: `${P}/models/big`, ...spec } }) as unknown as DistillationJob;

  it("is no concept job", () => {
    expect(kindOf(job({}))).toBe("prune");
    expect(jobTitle(job({}))).toBe("Pruned big for notes");
    expect(stageTitle("ingest", "prune")).toBe("Read the texts");
    expect(stageTitle("fit", "prune")).toBe("Train the model");
    expect(stageTitle("rounds", "prune")).toBe("Train the rounds before the last");
    expect(stageTitle("rounds", "tuneshift")).toBe("Make and filter samples");
    expect(stageTitle("importance", "prune")).toBe("Measure what matters");
    expect(hasReport(job({}))).toBe(false);
    expect(hasReport({ ...job({}), report: { digest: "ab", sizeBytes: "1" } })).toBe(true);
  });

  it("has stages of its own, in their order", () => {
    const begun = ["ingest", "check", "estimate"];
    expect(stagesOf(job({}))).toEqual([...begun, "importance", "targets", "fit", "publish"]);
    const all = job({ candidates: 3, correctTeacher: true, rounds: 2 });
    expect(stagesOf(all)).toEqual([...begun, "correct", "importance", "targets", "rounds", "rank", "fit", "publish"]);
    expect(stagesOf(job({ candidates: 3 }, [stage("fit")]))).not.toContain("rank"); // one candidate alone was found
    expect(stagesOf(job({ candidates: 3 }, [stage("fit"), stage("rank")]))).toEqual(["ingest", "check", "estimate", "importance", "targets", "rank", "fit", "publish"]);
  });
});

const shape = (parameters: number) => ({ layers: 30, hidden_size: 432, intermediate_size: 1312, attention_heads: 9, parameters, tied: true });
const REPORT: Report = {
  kind: "prune",
  candidates: [
    { number: 0, kind: "mixed", shape: shape(92_000_000), prior_cost: 0.6, non_embedding_share: 0.6, cross_entropy: 3.3, chosen: false },
    { number: 1, kind: "width", shape: shape(90_000_000), prior_cost: 0.65, cross_entropy: 3.2, chosen: true },
    { number: 2, kind: "width", shape: shape(91_000_000), prior_cost: 0.7, cross_entropy: null, chosen: false },
    { number: 3, kind: "depth", shape: shape(95_000_000), prior_cost: 0.8, cross_entropy: 3.5, chosen: false },
    { number: 4, kind: "depth", prior_cost: 0.9 },
  ],
  arms: [
    { arm: "prune", metrics: { cross_entropy: { value: 2.9, low: 2.8, high: 3 } } },
    { arm: "random_weights", metrics: { cross_entropy: { value: 5 } } },
    { arm: "odd", metrics: {} },
  ],
  references: { full: { cross_entropy: { value: 2.6 } } },
};

describe("candidates", () => {
  const all = candidatesOf(REPORT);

  it("are read with what is told of them", () => {
    expect(all.map((one) => one.number)).toEqual([0, 1, 2, 3]); // one has no size
    expect(all[0]).toMatchObject({ kind: "mixed", layers: 30, hiddenSize: 432, parameters: 92_000_000, share: 0.6, loss: 3.3 });
    expect(all[2]!.loss).toBeNaN();
    expect(all[1]!.share).toBeNaN();
    expect(shapeText(all[0]!)).toBe("30 layers, 432 wide, 1,312 neurons, 9 heads");
    expect(shapeText({ ...all[0]!, layers: NaN })).toBe("432 wide, 1,312 neurons, 9 heads");
    expect(candidatesOf({})).toEqual([]);
  });

  it("stand in a plot by size and quality, arms beside the chosen one", () => {
    const plot = plotOf(REPORT)!;
    expect(plot.tried.map((one) => one.number)).toEqual([0, 1, 3]);
    expect(plot.untried.map((one) => one.number)).toEqual([2]);
    expect(plot.whole).toBe(2.6);
    const [own, control] = plot.arms;
    expect(plot.arms.length).toBe(2);
    expect(own).toMatchObject({ arm: "prune", title: "the cut, distilled", value: 2.9, low: 2.8, high: 3 });
    expect(control).toMatchObject({ value: 5, low: 5, high: 5 });
    expect(own!.x).toBeGreaterThan(90_000_000);
    expect(control!.x).toBeGreaterThan(own!.x);
    for (const one of all) expect(plot.x[0] < one.parameters && one.parameters < plot.x[1]).toBe(true);
    for (const one of [2.6, 2.8, 3.5, 5]) expect(plot.y[0] < one && one < plot.y[1]).toBe(true);
    expect(plotText(plot)).toBe(
      "4 candidates, 3 of them trained shortly. The lowest held-out cross-entropy of these is 3.200, of candidate 1. After the whole training the cut, distilled has 2.900. The whole model has 2.600. The table says the same.",
    );
  });

  it("leave the controls out on demand, so that small differences can be seen", () => {
    expect(hasControls(REPORT)).toBe(true);
    const plot = plotOf(REPORT, false)!;
    expect(plot.arms.map((one) => one.arm)).toEqual(["prune"]);
    expect(plot.y[1]).toBeLessThan(4);
    expect(hasControls({ arms: [{ arm: "prune" }] })).toBe(false);
  });

  it("make no plot where nothing was measured, and one of a single candidate", () => {
    const untrained = { candidates: [{ kind: "width", shape: shape(90), chosen: true }] };
    expect(plotOf(untrained)).toBeUndefined();
    expect(plotOf({ references: REPORT.references! })).toBeUndefined();
    const plot = plotOf({ ...untrained, references: REPORT.references! })!;
    expect(plot.x[0]).toBeLessThan(90);
    expect(plot.x[1]).toBeGreaterThan(90);
    expect(plot.tried).toEqual([]);
    expect(plot.y[0] < 2.6 && 2.6 < plot.y[1]).toBe(true);
  });

  it("have rivals: likelier ones within their size that a job may cut as well", () => {
    const numbers = (at: number) => rivalsOf(all[at]!, all).map((one) => one.number);
    expect(numbers(0)).toEqual([]);
    expect(numbers(1)).toEqual([]); // candidate 0 cuts depth too, and is larger
    expect(numbers(2)).toEqual([1]);
    expect(numbers(3)).toEqual([]);
    expect(rivalsOf({ ...all[3]!, kind: "mixed" }, all).map((one) => one.number)).toEqual([0, 1, 2]);
  });

  it("become a job of their size and axes, as near as a job can be told", () => {
    const spec: PruneSpec = { dataset: "d", model: `${P}/models/big`, nonEmbeddingShare: 0.6, candidates: 4, rankingSteps: 9, controls: true, training: { maxSteps: 40 } };
    const { form, note } = startFor(spec, all[2]!);
    expect(note).toContain("candidate 2");
    expect(pruneSpec(form, "d")).toEqual({
      dataset: "d", model: `${P}/models/big`, maxParameters: "91000000", axes: "PRUNE_AXES_WIDTH", controls: true, modelId: "big-pruned-candidate-2", training: { maxSteps: 40 },
    });
    expect(startFor(spec, all[3]!).form.axes).toBe("PRUNE_AXES_DEPTH");
    expect(startFor(spec, all[0]!).form.axes).toBe("PRUNE_AXES_BOTH");
    const long = startFor({ ...spec, modelId: "x".repeat(63) }, all[0]!).form;
    expect(`${long.modelId}-teacher`.length).toBeLessThanOrEqual(63);
    expect(modelIdOf({ model: `${P}/models/${"y".repeat(63)}` }).length).toBeLessThanOrEqual(63);
  });
});
