import { describe, expect, it } from "vitest";
import preview from "../../tests/golden/preview.json";
import { addWeight, allLogits, decide, flips, makeProblem, measure, type Loss, type Problem } from "../src/lib/maths";

/** Written by scripts/golden_preview.py from the server's own code; its tests hold the server to it. */
interface Case {
  presence: number[][];
  mean: number[];
  std: number[];
  weight: number[][];
  bias: number[];
  responses: number[][];
  labels: number[][];
  change: { label: number; concept: number; weight: number };
  before: Expected;
  after: Expected;
  flipped: number[];
}
interface Expected {
  logits: number[][];
  decisions: number[][];
  fidelity: number;
  accuracy: number;
  recall: (number | null)[];
  precision: (number | null)[];
}

const golden = preview as unknown as Record<Loss, Case>;
const TOLERANCE = 4;

function check(problem: Problem, logits: Float64Array, expected: Expected): Uint8Array {
  const { items, classes, loss } = problem;
  const found = decide(logits, items, classes, loss, new Uint8Array(logits.length));
  expected.logits.forEach((row, i) => row.forEach((value, k) => expect(logits[k * items + i]).toBeCloseTo(value, TOLERANCE)));
  expected.decisions.forEach((row, i) => row.forEach((value, k) => expect(found[k * items + i]).toBe(Number(value))));
  const figures = measure(problem, found);
  expect(figures.fidelity).toBeCloseTo(expected.fidelity, TOLERANCE);
  expect(figures.accuracy).toBeCloseTo(expected.accuracy, TOLERANCE);
  for (const name of ["recall", "precision"] as const) {
    expected[name].forEach((value, k) => {
      if (value === null) expect(figures[name][k]).toBeNaN();
      else expect(figures[name][k]).toBeCloseTo(value, TOLERANCE);
    });
  }
  return found;
}

describe.each(["softmax", "bce"] as const)("the server's numbers, %s", (loss) => {
  const one = golden[loss];
  const concepts = one.mean.length;
  const raw = { presence: one.presence.flat(), mean: one.mean, std: one.std, responses: one.responses.flat(), labels: one.labels.flat() };
  const problem = makeProblem(raw, one.presence.length, concepts, one.bias.length, loss);
  const weights = { weight: Float64Array.from(one.weight.flat()), bias: Float64Array.from(one.bias) };

  it("come out before and after one weight is dragged", () => {
    const logits = allLogits(problem, weights);
    const before = check(problem, logits, one.before);
    const { label, concept, weight } = one.change;
    addWeight(problem, logits, label, concept, weight - weights.weight[label * concepts + concept]!);
    const after = check(problem, logits, one.after);
    expect(flips(problem, before, after).map((flip) => flip.item)).toEqual(one.flipped);
  });
});
