/** An edit as a command that repeats it, for the shell. Pure functions. */

import type { ConceptEdit, StudentVersion } from "../api/types";
import { lastPart } from "../names";

const DEFAULT_PROJECT = "default";

/** Returns the parts of a version's name. */
function partsOf(version: string): { project: string; student: string } {
  const [, project = "", , student = ""] = version.split("/");
  return { project, student };
}

/**
 * Returns `stillhouse students tune …` that repeats a version's edits on its parent; empty where the command line cannot
 * say it: it takes one class and one factor, and edits made together are not the same one after the other.
 */
export function cliOf(version: StudentVersion): string {
  const edits = version.effects.map((effect) => effect.edit);
  const [first] = edits;
  if (!first || edits.some((edit) => edit.label !== first.label || edit.factor !== first.factor)) return "";
  const { project, student } = partsOf(version.name);
  const ways = edits.map((edit) => `${edit.direction === "DIRECTION_UP" ? "--up" : "--down"} ${quote(edit.concept)}`);
  return [
    `stillhouse students tune ${quote(student)} --class ${quote(first.label)} ${ways.join(" ")}`,
    `--factor ${first.factor} --base ${lastPart(version.parent)}`,
    ...(project === DEFAULT_PROJECT ? [] : [`--project ${quote(project)}`]),
  ].join(" ");
}

/** Returns a curl call that repeats a version's edits on its parent; empty for a version that a job made. */
export function curlOf(version: StudentVersion, origin: string): string {
  if (!version.effects.length) return "";
  const { project, student } = partsOf(version.name);
  const edits: ConceptEdit[] = version.effects.map(({ edit }) => ({ ...edit }));
  const body = JSON.stringify({ edits, baseVersion: version.parent });
  return [
    `curl -sS -X POST ${quote(`${origin}/v1/projects/${project}/students/${student}:tune`)} \\`,
    "  -H 'Content-Type: application/json' \\",
    `  -d ${quote(body)}`,
  ].join("\n");
}

/** Returns a text as one word of a shell. */
export function quote(text: string): string {
  return /^[A-Za-z0-9_./:-]+$/.test(text) ? text : `'${text.replaceAll("'", `'\\''`)}'`;
}
