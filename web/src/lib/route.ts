/** The address of what is selected: `#/p/{project}/s/{student}/{view}?v=3&class=...`. Pure functions. */

export const VIEWS = ["setup", "performance", "concepts", "tuning", "images", "provenance"] as const;
export type View = (typeof VIEWS)[number];

/** What all views show. Empty strings mean: nothing chosen. */
export interface Selection {
  project: string;
  student: string;
  view: View;
  /** Version number, or `head`. */
  version: string;
  label: string;
  concept: string;
  subset: string;
  /** Item id of the image that is open. */
  image: string;
}

export const NOTHING: Selection = {
  project: "default",
  student: "",
  view: "setup",
  version: "head",
  label: "",
  concept: "",
  subset: "",
  image: "",
};

const QUERY: readonly (readonly [string, "version" | "label" | "concept" | "subset" | "image"])[] = [
  ["v", "version"],
  ["class", "label"],
  ["concept", "concept"],
  ["subset", "subset"],
  ["image", "image"],
];

/** Reads a location hash; whatever it does not name keeps the value of `NOTHING`. */
export function parseHash(hash: string): Selection {
  const [path = "", query = ""] = hash.replace(/^#/, "").split("?", 2);
  const parts = path.split("/").filter(Boolean).map(decode);
  const found: Selection = { ...NOTHING };
  if (parts[0] === "p" && parts[1]) found.project = parts[1];
  const hasStudent = parts[2] === "s" && parts[3];
  if (hasStudent) found.student = parts[3] as string;
  const view = hasStudent ? parts[4] : parts[2];
  if (VIEWS.includes(view as View)) found.view = view as View;
  else if (hasStudent) found.view = "performance";
  const values = new URLSearchParams(query);
  for (const [key, field] of QUERY) found[field] = values.get(key) ?? NOTHING[field];
  return found;
}

/** Writes a selection as a location hash; parseHash reads it back. */
export function formatHash(selection: Selection): string {
  const student = selection.student ? `/s/${encodeURIComponent(selection.student)}` : "";
  const path = `#/p/${encodeURIComponent(selection.project)}${student}/${selection.view}`;
  const values = new URLSearchParams();
  for (const [key, field] of QUERY) {
    if (selection[field] && selection[field] !== NOTHING[field]) values.set(key, selection[field]);
  }
  const query = values.toString();
  return query ? `${path}?${query}` : path;
}

function decode(part: string): string {
  try {
    return decodeURIComponent(part);
  } catch {
    return "";
  }
}
