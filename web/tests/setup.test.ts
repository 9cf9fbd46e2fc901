import { afterEach, describe, expect, it, vi } from "vitest";

import type { Dataset, DistillationJob } from "../src/lib/api/types";
import * as chain from "../src/lib/setup/chain";
import type { Model } from "../src/lib/setup/calls";
import { TRAIN, backbones, conceptSpec, duration, forPeople, idProblem, stageTitle, trainedFor, wordsOf, type Form } from "../src/lib/setup/plan";

const P = "projects/p";
const dataset = (id: string, classes: string[]): Dataset => ({ name: `${P}/datasets/${id}`, classes }) as Dataset;
const headJob = (data: string, model: string, state = "JOB_STATE_SUCCEEDED"): DistillationJob =>
  ({ name: `${P}/distillationJobs/${data}`, state, model: `${P}/models/${model}`, teacherHead: { dataset: `${P}/datasets/${data}` } }) as unknown as DistillationJob;

describe("plan", () => {
  it("takes teachers trained on the same classes, and everything else as a backbone", () => {
    const [a, b, c] = [dataset("a", ["x", "y"]), dataset("b", ["x", "y"]), dataset("c", ["z"])];
    const jobs = [headJob("b", "t2"), headJob("a", "t1"), headJob("c", "t3")];
    expect(trainedFor(a, [a, b, c], jobs)).toEqual([`${P}/models/t2`, `${P}/models/t1`]);
    const models = ["t1", "lite"].map((id) => ({ name: `${P}/models/${id}` }) as Model);
    expect(backbones(models, jobs).map((one) => one.name)).toEqual([`${P}/models/lite`]);
  });

  it("makes a job of a form and leaves out what is as usual", () => {
    const form: Form = { teacher: TRAIN, backbone: "", conceptSet: "", words: "red skin\nstalk, red skin;; ", studentId: "", weights: 10, encoder: "", seed: 0, wholeImageOnly: false };
    expect(conceptSpec(form, "d", "t")).toEqual({ dataset: "d", teacher: "t", concepts: ["red skin", "stalk"], nec: 10 });
    expect(conceptSpec({ ...form, words: "", seed: 3, wholeImageOnly: true }, "d", "t")).toEqual({ dataset: "d", teacher: "t", nec: 10, seed: "3", wholeImageOnly: true });
    expect(wordsOf("a  b")).toEqual(["a b"]);
  });

  it.each([[0.2, "under a second"], [40, "40 s"], [200, "3 min"], [4800, "1 h 20 min"], [7200, "2 h"]])("%d s is %s", (s, text) =>
    expect(duration(s)).toBe(text),
  );

  it("says names instead of resource names", () => {
    expect(forPeople("projects/p/models/t1 and projects/p/datasets/a-b do not fit")).toBe("t1 and a-b do not fit");
    expect(forPeople("the archive is damaged")).toBe("The archive is damaged");
  });

  it("refuses names that the gateway would refuse and names stages", () => {
    expect(idProblem("fruit-2")).toBe("");
    for (const id of ["", "2x", "a-", "A", "x".repeat(64)]) expect(idProblem(id)).not.toBe("");
    expect(stageTitle("fit", "teacherHead")).toBe("Fit the teacher");
    expect(stageTitle("some_thing", "concept")).toBe("some thing");
  });
});

describe("chain", () => {
  afterEach(() => vi.unstubAllGlobals());

  it("gives the student of a teacher job once that has ended well, with one request id", () => {
    const kept = new Map<string, string>();
    vi.stubGlobal("localStorage", { getItem: (key: string) => kept.get(key) ?? null, setItem: (key: string, text: string) => kept.set(key, text) });
    const job = headJob("a", "t1", "JOB_STATE_RUNNING");
    chain.remember(job.name, { concept: { dataset: `${P}/datasets/a` } });
    expect(chain.due(job)).toBeUndefined();
    const done = headJob("a", "t1");
    expect(chain.due(done)?.spec).toEqual({ concept: { dataset: `${P}/datasets/a`, teacher: `${P}/models/t1` } });
    expect(chain.due(done)?.requestId).toBe(chain.due(done)?.requestId);
    chain.forget(job.name);
    expect(chain.due(done)).toBeUndefined();
    chain.remember(job.name, { classifier: { dataset: `${P}/datasets/a`, architecture: "small-cnn" } });
    expect(chain.due(done)?.spec).toEqual({ classifier: { dataset: `${P}/datasets/a`, architecture: "small-cnn", teacher: `${P}/models/t1` } });
  });

  it("does without storage", () => {
    vi.stubGlobal("localStorage", { getItem: () => { throw new Error("forbidden"); }, setItem: () => { throw new Error("forbidden"); } });
    expect(() => chain.remember("j", { concept: { dataset: "d" } })).not.toThrow();
    expect(chain.following("j")).toBeUndefined();
  });
});
