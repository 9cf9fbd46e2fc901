import { describe, expect, it } from "vitest";

import type { DistillationJob } from "../src/lib/api/types";
import type { Model } from "../src/lib/setup/calls";
import { ARCHITECTURES, begin, classifierSpec, learningProblem, networkProblem, type ClassifierForm } from "../src/lib/setup/classifier";
import { TRAIN, firstTeacher, hasReport, jobTitle, kindOf, nameFits, specOf, stageTitle, stagesOf } from "../src/lib/setup/plan";
import { facts, gains, roundsOf, tabulate, type Report } from "../src/lib/setup/report";

const P = "projects/p";
const FORM: ClassifierForm = begin({ teacher: "t", backbone: "b" });

describe("classifier form", () => {
  it("begins with a teacher for the data where there is one", () => {
    const models = [{ name: `${P}/models/x` }, { name: `${P}/models/efficientnet-lite0` }] as Model[];
    expect(firstTeacher("p", ["t2", "t1"], models)).toEqual({ teacher: "t2", backbone: `${P}/models/efficientnet-lite0` });
    expect(firstTeacher("p", [], models.slice(0, 1))).toEqual({ teacher: TRAIN, backbone: `${P}/models/x` });
    expect(firstTeacher("p", [], []).backbone).toBe(`${P}/models/efficientnet-lite0`);
  });

  it("says only what is not as usual", () => {
    expect(classifierSpec(FORM, "d")).toEqual({ dataset: "d", architecture: "small-cnn", augmentation: { policy: "flip_crop", views: 4 }, training: {} });
    const all: ClassifierForm = {
      ...FORM, architecture: " ", weights: "lite0", inputSize: 96, policy: "strong", views: 8, controls: true, seeds: 3, modelId: "m",
      training: { epochs: 9, steps: 0, batch: 32, learningRate: 0.01, temperature: 2, softWeight: 0.5, featureWeight: 1, seed: 7 },
    };
    expect(classifierSpec(all, "d")).toEqual({
      dataset: "d", weights: "lite0", inputSize: 96, augmentation: { policy: "strong", views: 8 }, controls: true, trainingSeeds: 3, modelId: "m",
      training: { epochs: 9, batchImages: 32, learningRate: 0.01, temperature: 2, softWeight: 0.5, featureWeight: 1, seed: "7" },
    });
    expect(classifierSpec({ ...all, training: { ...all.training, steps: 40 } }, "d").training).toMatchObject({ maxSteps: 40 });
    expect(classifierSpec({ ...all, training: { ...all.training, steps: 40 } }, "d").training).not.toHaveProperty("epochs");
    expect(classifierSpec({ ...FORM, policy: "none", views: 8 }, "d").augmentation).toEqual({ policy: "none", views: 1 });
  });

  it("sees what is wrong", () => {
    for (const architecture of ARCHITECTURES) expect(networkProblem({ ...FORM, architecture })).toBe("");
    expect(networkProblem({ ...FORM, architecture: "" })).toMatch(/Write a network/);
    expect(networkProblem({ ...FORM, architecture: "", weights: "lite0" })).toBe("");
    expect(networkProblem({ ...FORM, architecture: "../x" })).toMatch(/timm/);
    for (const inputSize of [8, 4096]) expect(networkProblem({ ...FORM, inputSize })).toMatch(/16 to 2048/);
    expect(learningProblem(FORM)).toBe("");
    expect(learningProblem({ ...FORM, training: { ...FORM.training, batch: 1 } })).toMatch(/2 images/);
    expect([nameFits(""), nameFits("a-b"), nameFits("-")]).toEqual([true, true, false]);
  });
});

describe("classifier job", () => {
  const job = { stages: [], classifier: { dataset: `${P}/datasets/pets`, teacher: "t" }, report: { digest: "ab", sizeBytes: "1" } } as unknown as DistillationJob;

  it("has a title, stages, a report, and can be started again", () => {
    expect(kindOf(job)).toBe("classifier");
    expect(jobTitle(job)).toBe("Classifier for pets");
    expect(stageTitle("ingest", "classifier")).toBe("Read the images");
    expect(stageTitle("fit", "classifier")).toBe("Train the model");
    expect(stagesOf(job)).toEqual(["ingest", "check", "estimate", "teacher_outputs", "teacher_views", "fit", "publish"]);
    expect(specOf(job)).toEqual({ classifier: job.classifier });
    expect(hasReport(job)).toBe(true);
    expect(hasReport({ ...job, classifier: undefined, concept: {} } as unknown as DistillationJob)).toBe(false);
  });
});

describe("report", () => {
  const figure = (value: number) => ({ value, low: value - 0.05, high: value + 0.05 });
  const report: Report = {
    kind: "classifier",
    accuracy: { teacher: figure(0.9), soft_hard: figure(0.8), alone: figure(0.7) },
    agreement: { soft_hard: figure(0.85), alone: figure(0.75) },
    expected_calibration_error: { soft_hard: figure(0.06) },
    paired_alone: { accuracy: figure(0.1) },
    arms: [{ arm: "soft_hard" }, { arm: "alone" }, { arm: "odd" }],
    architecture: "small-cnn", input_px: 64, test_images: 1200,
    size: { parameters: 23_844, weights_bytes: 97_000, onnx_bytes: null },
    latency: { median_ms: 0.4123, onnx_median_ms: null, threads: 2, device: "cpu" },
    no_onnx: "an operator is missing",
  };

  it("shows teacher and arms of a classifier job beside one another", () => {
    expect(tabulate(report)).toEqual({
      columns: ["Learned from", "Accuracy", "Calibration error", "Decides like the teacher"],
      rows: [
        ["the teacher", "0.900 [0.850, 0.950]", "–", "–"],
        ["teacher and labels", "0.800 [0.750, 0.850]", "0.060 [0.010, 0.110]", "0.850 [0.800, 0.900]"],
        ["labels alone", "0.700 [0.650, 0.750]", "–", "0.750 [0.700, 0.800]"],
      ],
    });
    expect(gains(report)).toEqual({ columns: ["Teacher and labels minus", "Accuracy"], rows: [["labels alone", "0.100 [0.050, 0.150]"]] });
    expect(facts(report)).toEqual([
      ["Network", "small-cnn, 64 px"], ["Parameters", "23,844"], ["Weights", "97 KB"], ["ONNX file", "an operator is missing"],
      ["One image, PyTorch", "0.412 ms on cpu, 2 threads"], ["Test images", "1,200"],
    ]);
  });

  it("shows a prune job by model, and its own arm beside each control", () => {
    const pruned: Report = {
      kind: "prune",
      before: { cross_entropy: figure(6) },
      arms: [{ arm: "prune", examples: 4096, metrics: { cross_entropy: figure(3) } }, { arm: "random_cut", metrics: { cross_entropy: figure(3.5) } }],
      references: { full: { cross_entropy: figure(2.5) }, uncorrected: {} },
      paired: { random_cut: { cross_entropy: figure(-0.5) } },
      size: { asked: { non_embedding_share: 0.6 }, got: { parameters: 92_000_000, non_embedding_share: 0.5981, bytes: 368_000_000 } },
    };
    expect(tabulate(pruned).columns).toEqual(["Model", "Sequences", "Cross-entropy, nats a token"]);
    expect(tabulate(pruned).rows.map(([name, count]) => [name, count])).toEqual([
      ["the cut before training", ""], ["the cut, distilled", "4,096"], ["random cut", ""], ["the whole model", ""],
    ]);
    expect(gains(pruned).rows).toEqual([["random cut", "−0.500 [−0.550, −0.450]"]]);
    expect(facts(pruned)).toEqual([
      ["Asked for at most", "60.0 % outside the embeddings"], ["Parameters", "92M"], ["Left outside the embeddings", "59.8 %"], ["Weights", "368 MB"],
    ]);
    const timed = { asked: { max_latency_ms: 20 }, got: { latency_ms: 11.25 }, measured_on: { device_name: "abacus", threads: 2, precision: "float32", whole_model_ms: 20.5 } };
    expect(facts({ kind: "prune", size: timed })).toEqual([
      ["Asked for at most", "20.0 ms a pass"], ["A forward pass", "11.3 ms on abacus, float32, 2 threads"], ["The whole model’s", "20.5 ms"],
    ]);
    const rounds = [{ round: 1, non_embedding_share: 0.7, steps: 100, before: { cross_entropy: figure(5) }, after: { cross_entropy: figure(3) } }, { round: 2 }];
    expect(roundsOf({ kind: "prune", rounds }).rows).toEqual([["1", "70.0 %", "100", "5.000 [4.950, 5.050]", "3.000 [2.950, 3.050]"], ["2", "–", "", "–", "–"]]);
    expect(roundsOf({ kind: "tuneshift", rounds }).rows).toEqual([]);
    expect(facts({})).toEqual([]);
    expect(gains({}).rows).toEqual([]);
  });
});
