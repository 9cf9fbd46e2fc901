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

/** Places versions (oldest first) newest on top; the line through the head stays straight, branches open lanes beside it. */
export function place(versions: readonly Node[], head: string): Tree {
  const main = lineThrough(versions, head);
  const lanes = new Map<string, number>();
  const continued = new Set<string>();
  let next = 1;
  for (const { name, parent } of versions) {
    const straight = main.has(name) || (!continued.has(parent) && lanes.has(parent) && !main.has(parent));
    lanes.set(name, main.has(name) ? 0 : straight ? (lanes.get(parent) ?? 0) : next++);
    if (straight) continued.add(parent);
  }
  const nodes = versions.map(({ name }, at) => ({ name, row: versions.length - 1 - at, lane: lanes.get(name) ?? 0 })).reverse();
  const byName = new Map(nodes.map((node) => [node.name, node]));
  const edges = versions.flatMap(({ name, parent }) => {
    const from = byName.get(parent);
    const to = byName.get(name);
    return from && to ? [{ from, to }] : [];
  });
  return { nodes, edges, lanes: next };
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
