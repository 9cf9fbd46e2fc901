import { afterEach, describe, expect, it, vi } from "vitest";

import { after, arrange, changes, countStates, gapOf, histogram, isKept, perplexity, thresholdOf, type Sample } from "../src/lib/setup/samples";

const sample = (id: number, change: Partial<Sample> = {}): Sample => ({
  sampleId: `1-${id}`, prompt: `prompt ${id}`, answer: `answer ${id}`, round: 1, offDomain: false, tunedPerplexity: 2, basePerplexity: 4, nllGap: Math.log(2),
  state: "SAMPLE_STATE_KEPT", reason: "", tokenCount: 3, ...change,
});
const ids = (found: readonly Sample[]): string[] => found.map((one) => one.sampleId);

describe("arrange", () => {
  const all = [sample(1, { nllGap: 0.5 }), sample(2, { nllGap: -1, state: "SAMPLE_STATE_FILTERED", answer: "<b>Heron</b>" }), sample(3, { nllGap: 2, prompt: "a heron" })];

  it("filters by state and text and keeps the order made", () => {
    expect(ids(arrange(all, "", "", "made", false))).toEqual(["1-1", "1-2", "1-3"]);
    expect(ids(arrange(all, "", "HERON", "made", true))).toEqual(["1-3", "1-2"]);
    expect(ids(arrange(all, "SAMPLE_STATE_FILTERED", "", "made", false))).toEqual(["1-2"]);
    expect(ids(all)).toEqual(["1-1", "1-2", "1-3"]);
  });

  it("sorts numbers by size and words by letter", () => {
    expect(ids(arrange(all, "", "", "gap", true))).toEqual(["1-3", "1-1", "1-2"]);
    expect(ids(arrange(all, "", "", "prompt", false))).toEqual(["1-3", "1-1", "1-2"]);
    expect(ids(arrange(all, "", "", "state", false))).toEqual(["1-2", "1-1", "1-3"]);
  });
});

describe("a verdict", () => {
  it("restores what the filter dropped and drops what was kept", () => {
    expect(after("SAMPLE_STATE_KEPT", "drop")).toBe("SAMPLE_STATE_DROPPED");
    expect(after("SAMPLE_STATE_RESTORED", "drop")).toBe("SAMPLE_STATE_FILTERED");
    expect(after("SAMPLE_STATE_FILTERED", "drop")).toBe("SAMPLE_STATE_FILTERED");
    expect(after("SAMPLE_STATE_FILTERED", "keep")).toBe("SAMPLE_STATE_RESTORED");
    expect(after("SAMPLE_STATE_DROPPED", "keep")).toBe("SAMPLE_STATE_KEPT");
    expect(changes(sample(1, { state: "SAMPLE_STATE_FILTERED" }), "keep")).toBe(true);
    expect(changes(sample(1, { state: "SAMPLE_STATE_FILTERED", answer: " " }), "keep")).toBe(false);
    expect(changes(sample(1), "keep")).toBe(false);
    expect(isKept("SAMPLE_STATE_RESTORED")).toBe(true);
    expect(countStates([sample(1), sample(2, { state: "SAMPLE_STATE_FILTERED" })])).toMatchObject({ SAMPLE_STATE_KEPT: 1, SAMPLE_STATE_FILTERED: 1, SAMPLE_STATE_DROPPED: 0 });
  });
});

describe("histogram", () => {
  it("counts everything once, with tau on it and outliers at the ends", () => {
    const many = Array.from({ length: 400 }, (_, at) => sample(at, { nllGap: at / 400, offDomain: at % 4 === 0 }));
    const odd = [sample(999, { nllGap: 50 }), sample(998, { nllGap: NaN }), sample(997, { tunedPerplexity: 0, nllGap: 0 })];
    const found = histogram([...many, ...odd], Math.log(1.5))!;
    expect(odd.map(gapOf)).toEqual(["50.00", "–", "–"]);
    expect(found.inside.reduce((a, b) => a + b) + found.outside.reduce((a, b) => a + b)).toBe(401);
    expect(found.low).toBeLessThan(0.405);
    expect(found.low + found.step * found.inside.length).toBeLessThan(2);
  });

  it("is not there for too little", () => {
    expect(histogram([], 0.4)).toBeUndefined();
    expect(histogram([sample(1)], undefined)).toBeUndefined();
    expect(histogram([sample(1), sample(2)], undefined)).toBeUndefined();
  });

  it("knows the threshold of the filter", () => {
    expect(thresholdOf(undefined)).toBeCloseTo(Math.log(1.5));
    expect(thresholdOf({ tau: 2 })).toBeCloseTo(Math.log(2));
    expect(thresholdOf({ tau: 2, byDifference: true })).toBeUndefined();
  });

  it.each([[2.345678, "2.35"], [12345, "1.2e+4"], [0, "–"], [Infinity, "–"]])("%d is %s", (value, text) => expect(perplexity(value)).toBe(text));
});

describe("review", () => {
  afterEach(() => vi.unstubAllGlobals());

  it("changes what is on show once the gateway has agreed, and says what it refused", async () => {
    const bodies: unknown[] = [];
    let status = 200;
    vi.stubGlobal("fetch", async (path: string, init: { body?: string }) => {
      if (init.body) bodies.push({ path, ...(JSON.parse(init.body) as object) });
      const answer = status !== 200 ? { code: 9, message: "the job does not wait" } : path.includes(":review") ? { stateCounts: {} } : { samples: [sample(1), sample(2)], nextPageToken: "" };
      return new Response(JSON.stringify(answer), { status });
    });
    const { Review } = await import("../src/lib/setup/review.svelte");
    const review = new Review("projects/p/distillationJobs/j");
    await review.load();
    review.choose(["1-1", "1-2"], true);
    await review.judge([...review.chosen], "drop");
    expect(review.samples.map((one) => one.state)).toEqual(["SAMPLE_STATE_DROPPED", "SAMPLE_STATE_DROPPED"]);
    expect(review.chosen.size).toBe(0);
    expect(bodies[0]).toMatchObject({ path: "/v1/projects/p/distillationJobs/j:reviewSamples", dropIds: ["1-1", "1-2"] });
    status = 400;
    await review.judge(["1-1"], "keep");
    expect(review.samples[0]!.state).toBe("SAMPLE_STATE_DROPPED");
    expect(String(review.problem)).toContain("does not wait");
    status = 200;
    await review.finish();
    expect(review.finished).toBe(true);
    review.end();
  });
});
