/** The tree of versions as a graph of rows and lanes. Pure functions. */

import { lastPart } from "../names";

export interface Node {
  name: string;
  parent: string;
}

export interface Placed {
  name: string;
  /** 0 is the newest version. */
  row: number;
  /** 0 is the line that leads to the head, and on to what redo would bring back. */
  lane: number;
}

export interface Edge {
  from: Placed;
  to: Placed;
}

export interface Tree {
  nodes: Placed[];
  edges: Edge[];
  lanes: number;
}

/** Places versions (oldest first) newest on top; the line through the head stays straight, branches lie beside it. */
export function place(versions: readonly Node[], head: string): Tree {
  const rows = new Map(versions.map(({ name }, at) => [name, versions.length - 1 - at]));
  const lanes = new Map<string, number>();
  const taken: Span[][] = [];
  for (const line of linesOf(versions, lineThrough(versions, head))) {
    const lane = line.isMain ? 0 : freeLane(taken, spanOf(line, rows));
    for (const name of line.names) lanes.set(name, lane);
  }
  const nodes = versions.map(({ name }) => ({ name, row: rows.get(name) ?? 0, lane: lanes.get(name) ?? 0 })).reverse();
  const byName = new Map(nodes.map((node) => [node.name, node]));
  const edges = versions.flatMap(({ name, parent }) => {
    const from = byName.get(parent);
    const to = byName.get(name);
    return from && to ? [{ from, to }] : [];
  });
  return { nodes, edges, lanes: 1 + Math.max(0, ...lanes.values()) };
}

/** Versions that follow one another without a turn, oldest first. */
interface Line {
  names: string[];
  /** What the first was made from. */
  parent: string;
  isMain: boolean;
}

interface Span {
  top: number;
  bottom: number;
}

function linesOf(versions: readonly Node[], main: Set<string>): Line[] {
  const found: Line[] = [];
  const lineOf = new Map<string, Line>();
  for (const { name, parent } of versions) {
    const above = lineOf.get(parent);
    // A line goes on with the first child of its last version; the main line with its own.
    const goesOn = above && above.isMain === main.has(name) && above.names.at(-1) === parent;
    const line = goesOn ? above : { names: [], parent, isMain: main.has(name) };
    if (!goesOn) found.push(line);
    line.names.push(name);
    lineOf.set(name, line);
  }
  return found;
}

/** Rows that a branch needs for itself: from its newest version to just above the one it comes from. */
function spanOf(line: Line, rows: Map<string, number>): Span {
  const first = rows.get(line.names[0] ?? "") ?? 0;
  return { top: rows.get(line.names.at(-1) ?? "") ?? 0, bottom: (rows.get(line.parent) ?? first + 1) - 1 };
}

/** Takes the nearest lane beside the main line that is free over a span. */
function freeLane(taken: Span[][], span: Span): number {
  let lane = 1;
  while (taken[lane]?.some((one) => one.top <= span.bottom && span.top <= one.bottom)) lane += 1;
  (taken[lane] ??= []).push(span);
  return lane;
}

/** Returns the head, all it came from, and the newest child of each version after it. */
function lineThrough(versions: readonly Node[], head: string): Set<string> {
  const parents = new Map(versions.map((one) => [one.name, one.parent]));
  const found = new Set<string>();
  for (let name = head; name && !found.has(name); name = parents.get(name) ?? "") found.add(name);
  for (let name = head; name; ) {
    name = versions.findLast((one) => one.parent === name && !found.has(one.name))?.name ?? "";
    if (name) found.add(name);
  }
  return found;
}

/** Returns an SVG path from a parent up to its child: along the child's lane, bent just above the parent. */
export function edgePath({ from, to }: Edge, rowPx: number, lanePx: number): string {
  const x = (lane: number): number => lane * lanePx + lanePx / 2;
  const y = (row: number): number => row * rowPx + rowPx / 2;
  if (from.lane === to.lane) return `M${x(from.lane)} ${y(from.row)}V${y(to.row)}`;
  const bend = y(from.row) - rowPx * 0.6;
  return `M${x(from.lane)} ${y(from.row)}C${x(from.lane)} ${bend} ${x(to.lane)} ${y(from.row)} ${x(to.lane)} ${bend}V${y(to.row)}`;
}

/** Returns versions that were made from one, by number. */
export const childrenOf = (versions: readonly Node[], name: string): string[] =>
  versions.filter((one) => one.parent === name).map((one) => lastPart(one.name));
