import { describe, expect, it } from "vitest";

import type { EditEffect, StudentVersion } from "../src/lib/api/types";
import { cliOf, curlOf, quote } from "../src/lib/provenance/commands";
import { childrenOf, edgePath, place } from "../src/lib/provenance/layout";
import { metric, ordered, summary } from "../src/lib/provenance/wording";

const name = (n: number): string => `projects/default/students/fruit/versions/${n}`;
const node = (n: number, parent = 0) => ({ name: name(n), parent: parent ? name(parent) : "" });
const effect = (concept: string, label = "Pink Lady", factor = 2): EditEffect => ({
  edit: { label, concept, direction: "DIRECTION_UP", factor }, weightBefore: 0.1, weightAfter: 0.3, boxLow: 0.2, boxHigh: 0.4,
});
const version = (...effects: EditEffect[]): StudentVersion => ({
  name: name(3), parent: name(2), job: "", effects, changes: [], classConcepts: [], displayName: "",
});

describe("place", () => {
  it("keeps the line to the head straight and opens a lane per branch", () => {
    const tree = place([node(1), node(2, 1), node(3, 2), node(4, 1), node(5, 4)], name(5));
    const lanes = Object.fromEntries(tree.nodes.map((one) => [one.name.at(-1), one.lane]));
    expect(lanes).toEqual({ 5: 0, 4: 0, 3: 1, 2: 1, 1: 0 });
    expect(tree.nodes[0]?.name).toBe(name(5));
    expect(tree.edges).toHaveLength(4);
    expect(tree.lanes).toBe(2);
  });

  it("gives every branch of one version its own lane", () => {
    const tree = place([node(1), node(2, 1), node(3, 1), node(4, 1), node(5, 2)], name(4));
    const lanes = new Map(tree.nodes.map((one) => [one.name, one.lane]));
    expect(new Set([name(2), name(3), name(4)].map((one) => lanes.get(one))).size).toBe(3);
    expect(lanes.get(name(5))).toBe(lanes.get(name(2)));
  });

  it("uses a lane again where its branch has ended", () => {
    const tree = place([node(1), node(2, 1), node(3, 1), node(4, 3), node(5, 3), node(6, 5)], name(6));
    const lanes = Object.fromEntries(tree.nodes.map((one) => [one.name.at(-1), one.lane]));
    expect(lanes).toEqual({ 1: 0, 2: 1, 3: 0, 4: 1, 5: 0, 6: 0 });
    expect(tree.lanes).toBe(2);
  });

  it("keeps what was undone on the line of the head", () => {
    const tree = place([node(1), node(2, 1), node(3, 2)], name(1));
    expect(tree.nodes.map((one) => one.lane)).toEqual([0, 0, 0]);
  });

  it("draws straight and bent edges and knows children", () => {
    const tree = place([node(1), node(2, 1), node(3, 1)], name(3));
    const paths = tree.edges.map((edge) => edgePath(edge, 50, 20));
    expect(paths[0]).toContain("C");
    expect(paths[1]).toBe("M10 125V25");
    expect(childrenOf([node(1), node(2, 1), node(3, 1)], name(1))).toEqual(["2", "3"]);
  });
});

describe("commands", () => {
  it("says edits of one class and factor as one command", () => {
    expect(cliOf(version(effect("red skin"), effect("stalk")))).toBe(
      "stillhouse students tune fruit --class 'Pink Lady' --up 'red skin' --up stalk --factor 2 --base 2",
    );
  });

  it("has no command for edits of several classes, and none at all for a job's version", () => {
    expect(cliOf(version(effect("a"), effect("a", "Fuji")))).toBe("");
    expect(cliOf(version())).toBe("");
    expect(curlOf(version(), "http://x")).toBe("");
  });

  it("quotes whatever a name holds", () => {
    expect(quote("it's $(rm -rf)")).toBe(`'it'\\''s $(rm -rf)'`);
    const call = curlOf(version(effect("it's")), "http://127.0.0.1:7180");
    expect(call).toContain("'http://127.0.0.1:7180/v1/projects/default/students/fruit:tune'".replaceAll("'", ""));
    expect(call).toContain(`it'\\''s`);
  });
});

describe("wording", () => {
  it("tells versions and metrics", () => {
    expect(summary(version(effect("red skin"), effect("stalk")))).toBe("red skin ↑ for Pink Lady and 1 more");
    expect(metric("recall/A/B")).toBe("recall of A/B");
    expect(metric("fidelity")).toBe("fidelity");
  });

  it("puts changes of all images first, then those of the edited class", () => {
    const change = (value: number) => ({ value, low: value, high: value });
    const one = version(effect("a"));
    one.changes = ["recall/Fuji", "recall/Pink Lady", "fidelity"].map((m, i) => ({ metric: m, before: 0, after: 0, change: change(9 - i) }));
    expect(ordered(one).map((c) => c.metric)).toEqual(["fidelity", "recall/Pink Lady", "recall/Fuji"]);
  });
});
