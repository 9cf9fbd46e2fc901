import { describe, expect, it } from "vitest";
import { asEdit, editBox, targetOf } from "../src/lib/edits";
import { addWeight, allLogits, decide, flips, makeProblem, measure, wilson, type Loss } from "../src/lib/maths";
import { countParts, itemsOf } from "../src/lib/subsets";
import { suspects } from "../src/lib/suspects";

/** Three items, two concepts, two classes; standardised presence is [[1, 0], [-1, 2], [0, -1]]. */
const RAW = {
  presence: [0.4, 0.2, 0.0, 0.6, 0.2, 0.0],
  mean: [0.2, 0.2],
  std: [0.2, 0.2],
  responses: [0.9, 0.1, 0.3, 0.7, 0.6, 0.4],
  labels: [1, 0, 0, 1, 0, 1],
};
const small = (loss: Loss = "softmax") => makeProblem(RAW, 3, 2, 2, loss);
const weights = { weight: new Float64Array([1, 0, 0, 0.5]), bias: new Float64Array([0.25, 0]) };

describe("a worked case", () => {
  it("computes logits by class", () => {
    const expected = [1.25, -0.75, 0.25, 0, 1, -0.5];
    allLogits(small(), weights).forEach((value, at) => expect(value).toBeCloseTo(expected[at]!, 6));
  });

  it("measures fidelity, accuracy, recall and precision", () => {
    const problem = small();
    const found = decide(allLogits(problem, weights), 3, 2, "softmax", new Uint8Array(6));
    const figures = measure(problem, found);
    expect(Array.from(found)).toEqual([1, 0, 1, 0, 1, 0]);
    expect(figures.fidelity).toBeCloseTo(1);
    expect(figures.accuracy).toBeCloseTo(2 / 3);
    expect(Array.from(figures.recall)).toEqual([1, 0.5]);
    expect(Array.from(figures.precision)).toEqual([0.5, 1]);
  });

  it("changes one weight as if all were computed again", () => {
    const problem = small();
    const logits = allLogits(problem, weights);
    addWeight(problem, logits, 1, 1, -1.5);
    const again = allLogits(problem, { ...weights, weight: new Float64Array([1, 0, 0, -1]) });
    again.forEach((value, at) => expect(logits[at]).toBeCloseTo(value, 9));
  });

  it("names what an edit flips", () => {
    const problem = small();
    const logits = allLogits(problem, weights);
    const before = decide(logits, 3, 2, "softmax", new Uint8Array(6));
    addWeight(problem, logits, 1, 1, -1.5);
    const after = decide(logits, 3, 2, "softmax", new Uint8Array(6));
    expect(flips(problem, before, after)).toEqual([
      { item: 1, kind: "worse" },
      { item: 2, kind: "better" },
    ]);
  });

  it("parts the images by who is right", () => {
    const problem = small();
    const found = decide(allLogits(problem, weights), 3, 2, "softmax", new Uint8Array(6));
    expect(countParts(problem, found).at(-1)).toEqual({ "teacher-right": 0, "student-right": 0, "both-wrong": 1, "both-right": 2 });
    expect(countParts(problem, found)[1]).toEqual({ "teacher-right": 0, "student-right": 0, "both-wrong": 1, "both-right": 1 });
    expect(itemsOf(problem, found, "both-wrong", 1)).toEqual([2]);
    expect(itemsOf(problem, found, "taken", 0)).toEqual([2]);
    expect(itemsOf(problem, found, "misaligned")).toEqual([]);
  });

  it("blames the weights that push missed images away", () => {
    const problem = small();
    const found = decide(allLogits(problem, weights), 3, 2, "softmax", new Uint8Array(6));
    // Item 2 is of class 1 and taken for class 0, but the teacher misses it too: nothing to win by tuning.
    expect(suspects(problem, weights, found, 1, 5)).toEqual([]);
    const better = makeProblem({ ...RAW, responses: [0.9, 0.1, 0.3, 0.7, 0.4, 0.6] }, 3, 2, 2, "softmax");
    expect(suspects(better, weights, found, 1, 5)).toEqual([{ label: 1, concept: 1, push: expect.closeTo(0.5), images: 1 }]);
  });

  it("takes several labels by each class", () => {
    const problem = small("bce");
    const found = decide(new Float64Array([1, -1, 1, -1, 1, 1]), 3, 2, "bce", new Uint8Array(6));
    expect(measure(problem, found).accuracy).toBeCloseTo(5 / 6);
  });
});

describe("the box of an edit", () => {
  it("mirrors up and down", () => {
    expect(editBox([0.4, -0.2], 0, "up", 1.5)).toEqual({ low: expect.closeTo(0.6), high: expect.closeTo(0.8) });
    expect(editBox([0.4, -0.2], 1, "down", 2)).toEqual({ low: expect.closeTo(-0.6), high: expect.closeTo(-0.4) });
  });

  it("measures a weight of 0 by the median size of the class", () => {
    expect(editBox([0, 0.1, -0.3, 0.2], 0, "up", 3)).toEqual({ low: expect.closeTo(0.4), high: expect.closeTo(0.8) });
  });

  it("begins where somebody dragged to", () => {
    for (const target of [0.9, -0.3, 0.41]) {
      const edit = asEdit([0.4, -0.2], 0, target)!;
      expect(targetOf([0.4, -0.2], 0, edit.turn, edit.factor)).toBeCloseTo(target, 9);
    }
    expect(asEdit([0.4], 0, 0.4)).toBeUndefined();
    expect(asEdit([0, 0], 0, 1)).toBeUndefined();
  });
});

it("gives Wilson's interval", () => {
  const [low, high] = wilson(0.8, 10);
  expect(low).toBeCloseTo(0.4902, 3);
  expect(high).toBeCloseTo(0.9433, 3);
});

