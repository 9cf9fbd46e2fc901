/** Resource names: `projects/{project}/students/{student}/versions/{number}` and their parts. */

/** The last part of a resource name: the version's number, the student's id. */
export function lastPart(name: string): string {
  return name.slice(name.lastIndexOf("/") + 1);
}

/** Full name of a student. */
export function studentName(project: string, student: string): string {
  return `projects/${project}/students/${student}`;
}

/** Full name of a version. */
export function versionName(project: string, student: string, version: string): string {
  return `${studentName(project, student)}/versions/${version}`;
}

/** Address of an image's thumbnail; `box` is (left, top, right, bottom) in shares of its sides. */
export function imageUrl(
  project: string,
  digest: string,
  sizePx: number,
  box?: { left?: number; top?: number; right?: number; bottom?: number },
): string {
  const part = box
    ? `&box=${[box.left ?? 0, box.top ?? 0, box.right ?? 1, box.bottom ?? 1].map((x) => x.toFixed(4)).join(",")}`
    : "";
  return `/v1/projects/${encodeURIComponent(project)}/images/${digest}?size_px=${sizePx}${part}`;
}
