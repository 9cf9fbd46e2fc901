/** A concept set that another view has just stored, for the next job. */

const KEY = "stillhouse.conceptSet";

/** Leaves a concept set's name for the setup view. */
export function handOver(name: string): void {
  sessionStorage.setItem(KEY, name);
}

/** Returns the set that was left for a project; empty where none was. */
export function takeOver(project: string): string {
  const name = sessionStorage.getItem(KEY) ?? "";
  return name.startsWith(`projects/${project}/`) ? name : "";
}
