import { describe, expect, it } from "vitest";

import { EMPTY, add, group, keep, remove, synonyms, tidy, ungroup, wordProblem, wordsOf } from "../src/lib/concepts/choice";
import { arrange, companions, rowsOf, tabulate } from "../src/lib/concepts/table";
import { makeProblem } from "../src/lib/maths";

const WORDS = ["red", "green", "round"];
const CLASSES = ["apple", "pear"];
const presence = Float32Array.from([0.9, 0.1, 0.8, 0.7, 0.3, 0.6, 0.1, 0.9, 0.2, 0.3, 0.7, 0.2]);
const problem = makeProblem(
  { presence, mean: [0.5, 0.5, 0.45], std: [1, 1, 1], responses: [2, 0, 2, 0, 0, 2, 0, 2], labels: [1, 0, 1, 0, 0, 1, 0, 1] },
  4, 3, 2, "softmax",
);
const weights = { weight: Float64Array.from([2, 0, 1, -1, 3, 0]), bias: new Float64Array(2) };
const table = tabulate(problem, weights, presence, WORDS, CLASSES);

describe("table", () => {
  it("has presence, influence and uses per class", () => {
    const apple = rowsOf(table, 0);
    expect(apple[0]?.presence).toBeCloseTo(0.8);
    expect(apple[0]?.influence).toBeCloseTo(2 * 0.3);
    expect(apple.map((row) => row.uses)).toEqual([2, 1, 1]);
    expect(rowsOf(table, -1)[1]?.presence).toBeCloseTo(0.5);
    expect(rowsOf(table, -1)[0]?.influence).toBeCloseTo((0.6 + 0.3) / 2);
  });

  it("finds and orders rows, words of one's own first", () => {
    const own = { word: "raw", column: -1, presence: 0, influence: 0, weight: 0, uses: 0 };
    const rows = [...rowsOf(table, 1), own];
    expect(arrange(rows, table, "influence", "").map((row) => row.word)).toEqual(["raw", "green", "red", "round"]);
    expect(arrange(rows, table, "name", "R").map((row) => row.word)).toEqual(["raw", "green", "red", "round"]);
    expect(arrange(rows, table, "typical", "re").map((row) => row.word)).toEqual(["green", "red"]);
  });

  it("finds what goes along", () => {
    const found = companions(problem, 0, 2);
    expect(found[0]?.column).toBe(2);
    expect(found[0]?.correlation).toBeGreaterThan(0.9);
    expect(found[1]?.correlation).toBeCloseTo(-1);
  });
});

describe("choice", () => {
  it("leaves out, groups and adds", () => {
    let choice = keep(EMPTY, ["round"], false);
    choice = add(group(choice, "green", "red"), "stalk");
    expect(wordsOf(WORDS, choice)).toEqual(["red", "stalk"]);
    expect(synonyms(choice, "red")).toEqual(["green"]);
    expect(wordsOf(WORDS, keep(ungroup(choice, "green"), ["round"], true))).toEqual([...WORDS, "stalk"]);
  });

  it("keeps groups flat, also when their head joins another or they would turn in a circle", () => {
    let choice = group(EMPTY, "green", "red");
    choice = group(choice, "red", "round");
    expect(choice.sameAs).toEqual({ green: "round", red: "round" });
    expect(group(choice, "round", "green")).toEqual(choice);
  });

  it("removes a word of one's own from everywhere", () => {
    const choice = group(add(EMPTY, "crimson"), "red", "crimson");
    expect(remove(choice, "crimson")).toEqual(EMPTY);
  });

  it("tidies and refuses words", () => {
    expect(tidy("  red \n skin ")).toBe("red skin");
    expect(wordProblem("")).not.toBe("");
    expect(wordProblem("x".repeat(101))).toMatch(/100/);
    expect(wordProblem("red skin")).toBe("");
  });
});
